"""`quantize merge`: the parts of a model to one GGUF file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.options import json_option, overwrite_option
from quantcli.cli.output import binary_size, byte_progress, print_json
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.split import merge_gguf


@described("merge")
@click.argument("first_part", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", required=True, help="File to write.")
@overwrite_option
@json_option()
def command(first_part: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """The parts, which gguf-split may have made, stay.

    \b
    quantize merge model-00001-of-00003.gguf -o model.gguf
    """
    started = time.perf_counter()
    with open_gguf(first_part) as source:
        tensors = source.tensors.values()
        with byte_progress("merging", sum(tensor.nbytes for tensor in tensors)) as bar:
            size = merge_gguf(source, output, overwrite=overwrite, advance=bar.update)
    if as_json:
        seconds = time.perf_counter() - started
        print_json({"output": str(output), "tensors": len(tensors), "output_bytes": size, "seconds": seconds})
    else:
        click.echo(f"{output}: {len(tensors)} tensors from {len(source.paths)} parts, {binary_size(size)}")
