"""`quantize split`: split a GGUF file into shards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from quantcli.cli.commands import described
from quantcli.cli.options import file_argument, json_option
from quantcli.cli.output import byte_progress, columns, print_json, show
from quantcli.cli.output_paths import OutputPath, is_folder, made_folder
from quantcli.core.display import binary_size
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import Partition, by_count, by_size, parse_size, shard_prefix
from quantcli.formats.gguf.split import split_gguf

if TYPE_CHECKING:
    from quantcli.formats.tensor_writer import Shard

DEFAULT_TENSORS: Final = 128
"""The default number of tensors per shard, as in gguf-split."""


@described("split")
@file_argument
@click.option("--split-max-size", metavar="SIZE", help="Maximum tensor data per shard: 2G, 500M (powers of 1000).")
@click.option(
    "--split-max-tensors", type=click.IntRange(min=1), metavar="N", help=f"Tensors per shard. Default: {DEFAULT_TENSORS}."
)
@click.option(
    "-o", "--output", type=OutputPath(folder=True), metavar="PREFIX",
    help="Prefix of the shards' names, or a directory (DIR/). Default: FILE without .gguf.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace existing shards.")
@click.option("--dry-run", is_flag=True, help="Show the shards; write nothing.")
@json_option()
def command(
    file: Path,
    split_max_size: str | None,
    split_max_tensors: int | None,
    output: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Shards are named PREFIX-00001-of-00003.gguf ..., as by gguf-split, and appear when all are complete. Every command
    takes the first shard as the whole model. A tensor larger than SIZE gets its own shard. FILE may be the first shard of
    a split model.

    \b
    quantize split model.gguf --split-max-size 2G
    quantize split model.gguf --split-max-tensors 64 -o parts/model
    """
    partition = _partition(split_max_size, split_max_tensors)
    started = time.perf_counter()
    with open_gguf(file) as source:
        total = sum(tensor.nbytes for tensor in source.tensors.values())
        with made_folder(None if dry_run else output), byte_progress("splitting", total) as bar:
            prefix = _prefix(file, output)
            shards = split_gguf(source, prefix, partition, overwrite=overwrite, dry_run=dry_run, advance=bar.update)
    if as_json:
        described = [{"path": str(shard.path), "tensors": shard.tensors, "bytes": shard.file_bytes} for shard in shards]
        print_json({"dry_run": dry_run, "parts": described, "seconds": time.perf_counter() - started})
    else:
        _show(shards, dry_run)


def _partition(max_size: str | None, max_tensors: int | None) -> Partition:
    if max_size is None:
        return by_count(max_tensors or DEFAULT_TENSORS)
    if max_tensors is not None:
        raise UsageError("--split-max-size and --split-max-tensors exclude each other")
    return by_size(parse_size(max_size))


def _prefix(file: Path, output: str | None) -> Path:
    own = shard_prefix(file)
    if output is None:
        return own
    path = Path(output)
    return path / own.name if is_folder(output) or path.is_dir() else shard_prefix(path)


def _show(shards: list[Shard], dry_run: bool) -> None:
    right = ("Tensors", "Size")
    table = columns("Shard", *right, right=right)
    for shard in shards:
        table.add_row(str(shard.path), str(shard.tensors), binary_size(shard.file_bytes))
    show(table)
    if dry_run:
        click.echo("nothing was written")
