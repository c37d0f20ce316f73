"""How much memory does collecting second moments take? Private memory of models with few and more layers.

    python tests/bench/moments_memory.py VOCABULARY --text F [--layers 2,6] [--tokens 8192] [--threads 2]

The model has the shape of TinyLlama 1.1B and random weights in F16; its tokenizer is that of the GGUF file VOCABULARY, of
32,000 tokens. Each run is a process that sends the tokens through all layers and lets each layer's moments go. Memory is
the peak of its private memory (RssAnon of Linux), beside that of a process that has loaded the model and collects nothing.
The mapped weights are not part of it. The bar is two layers of weights, the hidden states of all tokens, and the largest
moment matrix; it is computed, and memory must stay below it and not grow with the layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from eval_speed import timed
from quality_cost import write_model
from random_model import INNER, WIDTH, tensors

MIB = 1 << 20


def collect(model: Path, text: Path, tokens: int, threads: int, every_layer: bool) -> None:
    """Load a model, and collect the moments of all layers."""
    from quantcli.conversion.locate import locate
    from quantcli.conversion.source import open_source
    from quantcli.kernels.threads import use_threads
    from quantcli.quality.moment_run import MomentRun
    from quantcli.quality.source_file import SourceFile

    use_threads(threads)
    with open_source(locate(model).place) as source:
        run = MomentRun(
            SourceFile.of(source), [("text", text.read_text(encoding="utf-8"))], tokens,
            wanted=lambda name: True, begin=lambda what, count: lambda done: None,
        )  # fmt: skip
        for layer in range(run.layers if every_layer else 0):
            run.inputs_of(layer)


def bar(tokens: int) -> float:
    """MiB of two layers of F16 weights, the hidden states of all tokens and the largest moment matrix, in F32."""
    layer = sum(2 * tensor.size for tensor in tensors() if tensor.name.startswith("blk.0."))
    return (2 * layer + 4 * tokens * WIDTH + 4 * INNER * INNER) / MIB


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--layers", default="2,6")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--collect", choices=["nothing", "moments"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        collect(options.vocabulary, options.text, options.tokens, options.threads, options.collect == "moments")
        return
    print("| layers | s | private MiB, loaded | private MiB, collecting | added | bar |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for layers in map(int, options.layers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.gguf"
            write_model(model, options.vocabulary, layers)
            command = [
                sys.executable, __file__, str(model), "--text", str(options.text), "--tokens", str(options.tokens),
                "--threads", str(options.threads), "--collect",
            ]  # fmt: skip
            timed([*command, "nothing"])  # compiles the kernels
            (_, before, _), (seconds, after, _) = timed([*command, "nothing"]), timed([*command, "moments"])
        figures = f"{before:.0f} | {after:.0f} | {after - before:.0f} | {bar(options.tokens):.0f}"
        print(f"| {layers} | {seconds:.0f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
