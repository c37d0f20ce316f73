"""Where the time of a conversion to Q4_K_M goes: the shares of a worker's steps.

    python tests/bench/convert_stages.py [--type Q4_K_M] [--layers 6] [--folder DIR]

The model has the shape of TinyLlama-1.1B with random bfloat16 weights and fewer layers. One worker converts it twice; the
second conversion is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from convert_speed import make_checkpoint

from quantcli.conversion.convert import convert

STEPS = {
    "dequantize the source": "quantcli.kernels.rows.dequantize",
    "check the source": "quantcli.conversion.execute.check_source",
    "search and pack": "quantcli.conversion.encode.ReferenceEncoder.encode",
    "check the result": "quantcli.conversion.execute.check_converted",
    "write": "quantcli.formats.gguf.writer.GGUFWriter.write",
}
WORKER = "quantcli.conversion.execute._Worker.convert"


def time_calls(target: str, seconds: dict[str, float]) -> None:
    """From now on add the time of each call of a function to `seconds[target]`."""
    owner_name, _, name = target.rpartition(".")
    owner = resolve_name(owner_name)
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[target] += time.perf_counter() - start

    seconds[target] = 0.0
    setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = make_checkpoint(Path(folder) / "model", options.layers)
        output, seconds = Path(folder) / "out.gguf", dict[str, float]()
        convert(source, options.type, output, threads=1)
        for target in (WORKER, *STEPS.values()):
            time_calls(target, seconds)
        convert(source, options.type, output, threads=1, overwrite=True)
    print("| step | share |\n| --- | ---: |")
    for step, target in STEPS.items():
        print(f"| {step} | {seconds[target] / seconds[WORKER]:.1%} |")


if __name__ == "__main__":
    main()
