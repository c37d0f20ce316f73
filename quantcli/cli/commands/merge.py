"""`quantize merge`: merge the shards of a split model into one GGUF file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.options import json_option, overwrite_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.cli.output_paths import OutputPath
from quantcli.core.display import binary_size
from quantcli.core.listing import counted
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.split import merge_gguf


@described("merge")
@click.argument("first_shard", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=OutputPath(), metavar="OUT", required=True, help="Output file.")
@overwrite_option
@json_option()
def command(first_shard: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """FIRST_SHARD is the first file of a model split by this program or by gguf-split. The shards are kept.

    \b
    quantize merge model-00001-of-00003.gguf -o model.gguf
    """
    started = time.perf_counter()
    with open_gguf(first_shard) as source:
        tensors = source.tensors.values()
        with byte_progress("merging", sum(tensor.nbytes for tensor in tensors)) as bar:
            size = merge_gguf(source, output, overwrite=overwrite, advance=bar.update)
    if as_json:
        seconds = time.perf_counter() - started
        print_json({"output": str(output), "tensors": len(tensors), "output_bytes": size, "seconds": seconds})
    else:
        say(f"{output}: {counted(len(tensors), 'tensor')} from {counted(len(source.paths), 'shard')}, {binary_size(size)}")
