"""Make `recipes/MODEL.json.gz`: what llama.cpp makes of a small model, for every file type.

    python tests/golden/make_recipe_goldens.py LLAMA_CPP

LLAMA_CPP is llama.cpp's source directory; its converter needs torch and transformers. Its quantizer is that of
llama-cpp-python. Nothing of quantcli is used.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

HERE = Path(__file__).parent
MODELS = {HERE.parents[1] / "examples" / "storyteller": "bf16", HERE / "stories260K": "f32"}
"""Each model, and the type of the intermediate file: the checkpoint's own, so that the converter loses nothing."""

PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
REFUSED = {"error": "refused"}


def file_types() -> dict[str, int]:
    """The file types of llama.h, by name."""
    found = {}
    for prefix in PREFIXES:
        names = (name for name in vars(llama_cpp) if name.startswith(prefix))
        found |= {name.removeprefix(prefix): getattr(llama_cpp, name) for name in names}
    return found


def describe(path: Path) -> dict[str, Any]:
    """Every tensor's type and digest, in the order of the file."""
    return {
        tensor.name: [tensor.tensor_type.name, hashlib.sha256(tensor.data.tobytes()).hexdigest()]
        for tensor in gguf.GGUFReader(path).tensors
    }


def quantize(source: Path, target: Path, file_type: int) -> dict[str, Any]:
    """What llama-quantize makes of `source`; nothing for the types that the gguf package cannot read back."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        return REFUSED
    try:
        return describe(target)
    except ValueError:
        return {}


def main(reference: Path) -> None:
    """Write the goldens of every model."""
    environment = {**os.environ, "PYTHONPATH": str(reference / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    for model, kind in MODELS.items():
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name) / "source.gguf", Path(name) / "target.gguf"
            command = [sys.executable, reference / "convert_hf_to_gguf.py", model, "--outfile", source, "--outtype", kind]
            subprocess.run([str(word) for word in command], env=environment, check=True)
            made = {file_type: quantize(source, target, number) for file_type, number in file_types().items()}
            with gzip.GzipFile(HERE / "recipes" / f"{model.name}.json.gz", "wb", mtime=0) as file:
                file.write(json.dumps(made, indent=1).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
