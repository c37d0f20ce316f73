"""The tables of a report, which have the values of all charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from quantcli.core.display import binary_size, decimal_count
from quantcli.quality.positions import Band
from quantcli.quality.report.byte_bars import GROUPS, bytes_by_group
from quantcli.quality.report.content import OUTSIDE, Report, ReportFile, ReportTensor, ReportText
from quantcli.quality.report.elements import Element, element
from quantcli.quality.report.heat_map import Grid, is_outside, role_order
from quantcli.quality.report.position_lines import value_of
from quantcli.quality.report.prices import Price
from quantcli.quality.report.scales import short, with_error
from quantcli.quality.statistics import Estimate, Evaluation

Cell = str | Element

VECTORS: Final = "norms, biases"


@dataclass(frozen=True)
class Table:
    """A table. The columns in `left` hold text, the others numbers. The first column names the rows. With `wraps`, the text
    of the last column is long."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: frozenset[int] = frozenset({0})
    wraps: bool = False


def price_table(report: Report, prices: Sequence[Price]) -> Table:
    """A row for each file."""
    measured = [] if not prices else ["KL divergence", "same top token", "perplexity"]
    if prices and prices[0].same_top is None:
        measured = ["perplexity"]
    rows = []
    for index, file in enumerate(report.files):
        cells: list[Cell] = [file.label, binary_size(file.file_bytes)]
        if prices:
            price = prices[index]
            if price.dominated:
                cells[0] = element("s", file.label, title=f"dominated by {price.dominated}")
            if price.same_top is not None:
                cells += [_estimated(price.cost), f"{price.same_top.value:.1%}"]
            cells.append(_estimated(price.perplexity))
        rows.append((*cells, f"{file.bits_per_weight:.2f}"))
    return Table(("file", "size", *measured, "bits per weight"), tuple(rows))


def text_table(report: Report) -> Table:
    """A row for each text and file, with all figures of `quantize eval`."""
    rows = []
    for text in report.texts:
        for file, found in zip(report.files, text.result.evaluations, strict=True):
            rows.append((text.name, file.label, with_error(found.perplexity, found.stderr), *_beside(found)))
    return Table(("text", "file", "perplexity", *(_BESIDE if report.base else ())), tuple(rows), frozenset({0, 1}))


_BESIDE: Final = ("base perplexity", "KL divergence", "median", "99 %", "99.9 %", "maximum", "same top token", "RMS Δp")


def _beside(found: Evaluation) -> tuple[str, ...]:
    beside = found.divergence
    if beside is None:
        return ()
    places = (beside.median, beside.p99, beside.p999, beside.max)
    return (
        short(beside.base_perplexity),
        with_error(beside.mean, beside.stderr),
        *map(short, places),
        f"{beside.same_top:.2%}",
        f"{beside.rms_change.value:.2%}",
    )


def position_table(files: Sequence[ReportFile], lines: Sequence[tuple[Band, ...]]) -> Table:
    """A row for each band of positions, a column for each file."""
    rows = [
        (f"{bands[0].start} to {bands[0].stop - 1}", *(_estimated(value_of(band)) for band in bands))
        for bands in zip(*lines, strict=True)
    ]
    return Table(("tokens", *(file.label for file in files)), tuple(rows))


def byte_table(files: Sequence[ReportFile]) -> Table:
    """A row for each file, a column for each group of bytes."""
    found = [bytes_by_group(file) for file in files]
    groups = [group for group in GROUPS if any(group in counts for counts in found)]
    rows = tuple(
        (file.label, *(binary_size(counts[group]) if group in counts else "-" for group in groups))
        for file, counts in zip(files, found, strict=True)
    )
    return Table(("file", *groups), rows)


def plan_table(file: ReportFile) -> Table:
    """A row for each group of tensors of one role, type and reason."""
    groups: dict[tuple[str, str, str], list[ReportTensor]] = {}
    for tensor in file.tensors:
        part = tensor.part if tensor.is_matrix else VECTORS
        groups.setdefault((part, tensor.type.name, tensor.reason if tensor.is_matrix else ""), []).append(tensor)
    headings = ["tensors", "type", "layers", "weights", "size"]
    headings += ["relative error"] if file.errors else []
    explained = any(tensor.reason for tensor in file.tensors)
    rows = []
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == VECTORS, role_order(item[0][0])))
    for (part, type, reason), group in ordered:
        layers = sorted({tensor.layer for tensor in group if tensor.layer != OUTSIDE})
        weights, nbytes = sum(tensor.weights for tensor in group), sum(tensor.nbytes for tensor in group)
        cells = [part, type, ranges(layers) or "-", decimal_count(weights), binary_size(nbytes)]
        cells += [_error_range(file, group)] if file.errors else []
        rows.append((*cells, reason or "-") if explained else tuple(cells))
    if explained:
        headings.append("reason")
    left = {0, 1, 2} | ({len(headings) - 1} if explained else set())
    return Table(tuple(headings), tuple(rows), frozenset(left), wraps=explained)


def tensor_table(file: ReportFile, grid: Grid) -> Table:
    """The cells of a file's heat maps: a row for each layer, a column for each role."""

    def cell(tensor: ReportTensor | None) -> str:
        if tensor is None:
            return "-"
        error = file.errors.get(tensor.name)
        relative = error.relative_rmse if error else None
        return tensor.type.name + ("" if relative is None else f" {relative:.2%}")

    inner = [(part, cells) for part, cells in grid.rows if not is_outside(cells)]
    rows = tuple((str(layer), *(cell(cells[layer]) for _, cells in inner)) for layer in range(grid.layers))
    return Table(("layer", *(part for part, _ in inner)), rows, frozenset(range(len(inner) + 1)))


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs shortened: `0-3, 5`."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)] if numbers else []
    stops = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]] if numbers else []
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def _estimated(found: Estimate) -> str:
    return with_error(found.value, found.stderr)


def _error_range(file: ReportFile, group: Sequence[ReportTensor]) -> str:
    """The smallest and largest relative error of some tensors."""
    errors = [file.errors[tensor.name] for tensor in group if tensor.name in file.errors]
    found = sorted(error.relative_rmse for error in errors if error.relative_rmse is not None)
    if not found:
        return "-"
    low, high = f"{found[0]:.2%}", f"{found[-1]:.2%}"
    return low if low == high else f"{low} to {high}"


def total_tokens(texts: Sequence[ReportText]) -> int:
    """The scored tokens of all texts."""
    return sum(text.result.evaluations[0].tokens for text in texts)
