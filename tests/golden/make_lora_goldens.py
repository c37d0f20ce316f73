"""Make lora/merges.json with peft, and lora/adapters.json with the reference's converter of adapters.

    python tests/golden/make_lora_goldens.py PATH_OF_LLAMA_CPP

PATH_OF_LLAMA_CPP is a source tree of llama.cpp; torch, transformers and peft must be installed. The models and adapters are
those of `lora_cases.py`. Nothing of quantcli is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

from lora_cases import CONVERSIONS, MERGES, conversion  # noqa: E402
from make_architecture_goldens import described  # noqa: E402
from tiny_checkpoint import write_adapter, write_checkpoint  # noqa: E402


def merged(place: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The tensors that peft's merge changes: type, shape and bytes by their names in the checkpoint."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    directory, adapter = write_checkpoint(place, case["base"]), write_adapter(place, case["adapter"])
    kind = next(iter(case["base"]["tensors"].values()))[0]
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[kind]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    was_tied = model.config.tie_word_embeddings
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    found = {}
    for name, tensor in model.state_dict().items():
        is_new = was_tied and not tied and name == "lm_head.weight"
        if (torch.equal(tensor, before[name]) and not is_new) or (tied and name == "lm_head.weight"):
            continue
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        found[name.removeprefix("transformer.")] = [kind, list(tensor.shape), base64.b64encode(data).decode()]
    return found


def converted(place: Path, reference: Path, name: str, outtype: str) -> dict[str, Any]:
    """What the reference makes of an adapter: metadata, names, types and shapes, and the digest of the whole file."""
    case, adapter = conversion(name)
    base, directory = write_checkpoint(place, case), write_adapter(place, adapter)
    script, output = reference / "convert_lora_to_gguf.py", place / "out.gguf"
    sys.argv = [str(script), str(directory), "--base", str(base), "--outfile", str(output), "--outtype", outtype]
    runpy.run_path(str(script), run_name="__main__")
    found = described(output)
    tensors = [row[:3] for row in found["tensors"]]
    return {**found, "tensors": tensors, "sha256": hashlib.sha256(output.read_bytes()).hexdigest()}


def main() -> None:
    """See the module's description."""
    reference = Path(sys.argv[1])
    sys.path[:0] = [str(reference), str(reference / "gguf-py")]
    (HERE / "lora").mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    merges, adapters = {}, {}
    for name, case in MERGES.items():
        with tempfile.TemporaryDirectory() as place:
            merges[name] = merged(Path(place), case)
    for name, (_, outtypes, _) in CONVERSIONS.items():
        for outtype in outtypes:
            with tempfile.TemporaryDirectory() as place:
                adapters[f"{name} {outtype}"] = converted(Path(place), reference, name, outtype)
    for name, goldens in (("merges", merges), ("adapters", adapters)):
        text = json.dumps(goldens, separators=(",", ":")).replace('},"', '},\n"').replace('],["', '],\n["')
        (HERE / "lora" / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
