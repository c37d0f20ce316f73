"""Private memory of conversions from every kind of source: a directory, a hub that is read where it is, a PyTorch file, a
checkpoint with a LoRA adapter.

    python tests/bench/source_memory.py [--layers 4] [--threads 2] [--folder DIR] [--type Q8_0]

Models have the width of TinyLlama-1.1B and random bfloat16 weights, 0.6 GB with 4 layers; every source is measured once
more with twice the layers, which shows whether memory grows. The hub is on loopback, in this process; the adapter has rank
64 on every matrix, embeddings included. Needs torch, to write the PyTorch file. Memory is the peak of RssAnon, as for
convert_speed.py; what the cache of the hub and temporary folders hold afterwards is looked at too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "formats")]

from convert_speed import make_checkpoint, measure, safetensors_header  # noqa: E402
from hub_server import Hub  # noqa: E402

RANK = 64


def make_adapter(model: Path, folder: Path) -> Path:
    """An adapter of rank 64 on every matrix of a model."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with (model / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {}
    for name, entry in header.items():
        module, shape = f"base_model.model.{name.removesuffix('.weight')}", entry["shape"]
        if "embed_tokens" in name:
            shapes |= {f"{module}.lora_embedding_A": (RANK, shape[0]), f"{module}.lora_embedding_B": (shape[1], RANK)}
        elif len(shape) == 2:
            shapes |= {f"{module}.lora_A.weight": (RANK, shape[1]), f"{module}.lora_B.weight": (shape[0], RANK)}
    random = np.random.default_rng(1)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(safetensors_header(shapes, "F32", 4))
        for shape in shapes.values():
            (0.01 * random.standard_normal(shape, dtype=np.float32)).tofile(file)
    return folder


def make_pytorch(model: Path, folder: Path) -> Path:
    """The same weights as torch saves them."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir()
    for name in ("config.json", "tokenizer.model"):
        (folder / name).write_bytes((model / name).read_bytes())
    torch.save(load_file(model / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def sources(folder: Path, layers: int, stack: ExitStack) -> Iterator[tuple[str, list[str | Path], dict[str, str]]]:
    """Each kind of source: what to call it, the words for it, and the environment."""
    model = make_checkpoint(folder / "model", layers)
    yield "a directory", [model], {}
    yield "with --lora", [model, "--lora", make_adapter(model, folder / "adapter")], {}
    yield "a PyTorch file", [make_pytorch(model, folder / "pytorch")], {}
    hub = stack.enter_context(Hub())
    hub.commit("org/model", {path.name: path.read_bytes() for path in model.iterdir()})
    hub.commit("org/pytorch", {path.name: path.read_bytes() for path in (folder / "pytorch").iterdir()})
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir()
    for name in ("model", "pytorch"):
        yield f"--remote, {name}", [f"org/{name}", "--remote"], home
    left = [path for place in ("home", "temporary") for path in (folder / place).rglob("*") if path.is_file()]
    print(f"stored beside the outputs: {', '.join(map(str, left)) or 'nothing'}", file=sys.stderr)


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--type", default="Q8_0")
    options = parser.parse_args()
    print("| source | layers | private MiB, peak | wall s |")
    print("| --- | ---: | ---: | ---: |")
    for layers in (options.layers, 2 * options.layers):
        with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
            for what, words, environment in sources(Path(name), layers, stack):
                command = [sys.executable, "-m", "quantcli", *words, "--type", options.type, "-o", Path(name) / "out.gguf"]
                taken = measure([*command, "--overwrite", "--threads", str(options.threads)], environment)
                print(f"| {what} | {layers} | {taken.private:.0f} | {taken.wall:.1f} |", flush=True)


if __name__ == "__main__":
    main()
