"""`quantize compare A B`: how much the weights of two files of one model differ, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.options import PATH, arch_file_option, json_option, threads_option
from quantcli.cli.output import byte_progress, columns, heading, print_json, show
from quantcli.cli.text_tables import View
from quantcli.core.listing import listed

if TYPE_CHECKING:
    from quantcli.quality.tensor_errors import Comparison, TensorError


@described("compare")
@click.argument("first", metavar="A", type=PATH)
@click.argument("second", metavar="B", type=PATH)
@click.option("--imatrix", type=PATH, metavar="F", help="Importance matrix: add the importance-weighted RMSE.")
@arch_file_option
@threads_option
@json_option()
def command(
    first: Path, second: Path, imatrix: Path | None, arch_file: Path | None, threads: int | None, as_json: bool
) -> None:
    """A is the reference, such as the unquantized model, and B another file of the same model. Each is a GGUF file or a
    checkpoint. For each tensor: the root mean square error (RMSE), the same relative to the weights of A, the
    signal-to-quantization-noise ratio (SQNR) in dB, the cosine similarity, and the largest RMSE of a block. The tensor with
    the largest relative RMSE is first.

    \b
    quantize compare model-F16.gguf model-Q4_K_M.gguf
    quantize compare ORG-model/ model-Q4_K_M.gguf --imatrix imatrix.gguf
    """
    from quantcli.conversion.convert import working_threads
    from quantcli.conversion.locate import locate
    from quantcli.conversion.source import open_source
    from quantcli.formats.imatrix import read_imatrix
    from quantcli.quality.tensor_errors import compare_tensors

    announce_compiling()
    importance = None if imatrix is None else read_imatrix(imatrix)
    with ExitStack() as stack:
        located = [locate(path) for path in (first, second)]
        sources = [
            stack.enter_context(open_source(place.place, model_id=place.model_id, architecture_file=arch_file))
            for place in located
        ]
        report_truncation(*(path for source in sources for path in source.paths))
        total = sum(tensor.nbytes for tensor in sources[0].tensors.values())
        bar = stack.enter_context(byte_progress("comparing", total))
        found = compare_tensors(
            sources[0].tensors, sources[1].tensors, importance, threads=working_threads(threads), advance=bar.update
        )
    if as_json:
        print_json(_document(found, first, second, imatrix))
    else:
        show(*_views(found, first, second, imatrix))


def _document(found: Comparison, first: Path, second: Path, imatrix: Path | None) -> dict[str, Any]:
    document: dict[str, Any] = {"first": str(first), "second": str(second)}
    if imatrix is not None:
        document["imatrix"] = str(imatrix)
    return document | {
        "tensors": [_row(error) for error in found.errors],
        "only_in_first": list(found.missing),
        "only_in_second": list(found.added),
        "shapes": [{"name": name, "first": list(a), "second": list(b)} for name, a, b in found.shapes],
    }


def _row(error: TensorError) -> dict[str, Any]:
    row = asdict(error)
    first, second = row.pop("types")
    return {"name": row.pop("name"), "first_type": first, "second_type": second} | row


_MEASURED: Final = ("RMSE", "relative", "SQNR dB", "cosine", "block RMSE")


def _views(found: Comparison, first: Path, second: Path, imatrix: Path | None) -> Iterator[View]:
    measured = _MEASURED if imatrix is None else (*_MEASURED, "weighted RMSE")
    different = [error for error in found.errors if not error.equal]
    if different:
        table = columns("tensor", "A", "B", *measured, right=measured)
        for error in different:
            table.add_row(error.name, *error.types, *_cells(error)[: len(measured)])
        yield table
    if equal := len(found.errors) - len(different):
        yield heading(f"{equal} of {len(found.errors)} tensors have equal weights")
    for path, names in ((first, found.missing), (second, found.added)):
        if names:
            yield heading(f"Only in {path}: {listed(names)}")
    if found.shapes:
        yield heading("Different shapes")
        shapes = columns("tensor", "A", "B")
        for name, a, b in found.shapes:
            shapes.add_row(name, str(list(a)), str(list(b)))
        yield shapes


def _cells(error: TensorError) -> tuple[str, ...]:
    return (
        f"{error.rmse:.3e}",
        _shown(error.relative_rmse, ".3%"),
        _shown(error.sqnr, ".2f"),
        _shown(error.cosine, ".6f"),
        f"{error.block_rmse:.3e}",
        _shown(error.weighted_rmse, ".3e"),
    )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
