"""`quantize split`: one GGUF file to several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from quantcli.cli.commands import described
from quantcli.cli.options import file_argument, json_option
from quantcli.cli.output import binary_size, byte_progress, columns, print_json, show
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.parts import Partition, by_count, by_size, parse_size, part_prefix
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.split import split_gguf

if TYPE_CHECKING:
    from quantcli.formats.gguf.writer import Part

DEFAULT_TENSORS: Final = 128
"""The default number of tensors per part, as in gguf-split."""


@described("split")
@file_argument
@click.option("--split-max-size", metavar="SIZE", help="Tensor data in a part, at most: 2G, 500M (powers of 1000).")
@click.option(
    "--split-max-tensors", type=click.IntRange(min=1), metavar="N", help=f"Tensors in a part. Default: {DEFAULT_TENSORS}."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="PREFIX",
    help="What the parts' names begin with, or a directory. Default: FILE without .gguf.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace existing parts.")
@click.option("--dry-run", is_flag=True, help="Show the parts; write nothing.")
@json_option()
def command(
    file: Path,
    split_max_size: str | None,
    split_max_tensors: int | None,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """The parts are named PREFIX-00001-of-00003.gguf and so on, as by gguf-split.
    All parts appear when all are complete. Every command takes the first part for the whole model. A tensor larger than
    SIZE gets a part of its own. FILE may be the first part of a model that is split already, to split it otherwise.

    \b
    quantize split model.gguf --split-max-size 2G
    quantize split model.gguf --split-max-tensors 64 -o parts/model
    """
    partition = _partition(split_max_size, split_max_tensors)
    started = time.perf_counter()
    with open_gguf(file) as source:
        total = sum(tensor.nbytes for tensor in source.tensors.values())
        with byte_progress("splitting", total) as bar:
            prefix = _prefix(file, output)
            parts = split_gguf(source, prefix, partition, overwrite=overwrite, dry_run=dry_run, advance=bar.update)
    if as_json:
        described = [{"path": str(part.path), "tensors": part.tensors, "bytes": part.file_bytes} for part in parts]
        print_json({"dry_run": dry_run, "parts": described, "seconds": time.perf_counter() - started})
    else:
        _show(parts, dry_run)


def _partition(max_size: str | None, max_tensors: int | None) -> Partition:
    if max_size is None:
        return by_count(max_tensors or DEFAULT_TENSORS)
    if max_tensors is not None:
        raise UsageError("--split-max-size and --split-max-tensors exclude each other")
    return by_size(parse_size(max_size))


def _prefix(file: Path, output: Path | None) -> Path:
    own = part_prefix(file)
    if output is None:
        return own
    return output / own.name if output.is_dir() else part_prefix(output)


def _show(parts: list[Part], dry_run: bool) -> None:
    right = ("Tensors", "Size")
    table = columns("Part", *right, right=right)
    for part in parts:
        table.add_row(str(part.path), str(part.tensors), binary_size(part.file_bytes))
    show(table)
    if dry_run:
        click.echo("nothing was written")
