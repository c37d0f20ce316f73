"""Heat maps, layer by role: of types, coloured by their bits, and of errors, coloured by the relative RMSE."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from quantcli.core.block_types import BlockType
from quantcli.quality.report.content import OUTSIDE, ReportFile, ReportTensor
from quantcli.quality.report.elements import Element, element, percent

ROW: Final = 20
"""The height of a row, in pixels."""

_NARROW: Final = 240
"""Pixels of the narrowest map without its labels."""

_LETTER: Final = 7.0
_WIDE_CELLS: Final = 40
"""Of more layers, cells have thinner lines between them."""

BIT_STEPS: Final = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0, 20.0)
"""Types with fewer bits than the first have colour 0, others the number of steps that are not more."""

ERROR_STEPS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
"""Likewise for relative errors."""

_ORDER: Final = (
    "token_embd", "output", "attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
    "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp",
)  # fmt: skip
"""The order of rows. Others follow in the order of the file."""


@dataclass(frozen=True)
class Grid:
    """The matrices of a file, a row for each role. A row of matrices outside the layers has one cell.

    layers   how many
    rows     role, and its tensors by layer, None where a layer has none
    """

    layers: int
    rows: tuple[tuple[str, tuple[ReportTensor | None, ...]], ...]


def grid_of(file: ReportFile) -> Grid:
    """The grid of a file. Norms, biases and other vectors are not in it."""
    matrices = [tensor for tensor in file.tensors if tensor.is_matrix]
    layers = 1 + max((tensor.layer for tensor in matrices), default=OUTSIDE)
    by_part: dict[tuple[bool, str], dict[int, ReportTensor]] = {}
    for tensor in matrices:
        by_part.setdefault((tensor.layer == OUTSIDE, tensor.part), {})[tensor.layer] = tensor
    order = sorted(by_part, key=lambda key: (not key[0], role_order(key[1])))
    rows = []
    for outside, part in order:
        found = by_part[outside, part]
        cells = (found[OUTSIDE],) if outside else tuple(found.get(layer) for layer in range(layers))
        rows.append((part, cells))
    return Grid(layers, tuple(rows))


def is_outside(cells: Sequence[ReportTensor | None]) -> bool:
    """Whether a row is of a matrix outside the layers."""
    return cells[0] is not None and cells[0].layer == OUTSIDE


def role_order(part: str) -> int:
    """The place of a role in maps and tables."""
    return _ORDER.index(part) if part in _ORDER else len(_ORDER)


def type_step(type: BlockType) -> int:
    """The colour of a type."""
    return bisect_right(BIT_STEPS, type.bits_per_weight)


def error_step(relative: float) -> int:
    """The colour of a relative error."""
    return bisect_right(ERROR_STEPS, relative)


def type_map(file: ReportFile, grid: Grid, number: int) -> Element:
    """The map of types, with the names of types where they have room. `number` is its place in the page's data."""
    return _map(f"Types of {file.label}, layer by role", grid, number, _type_cells(grid), _run_labels(grid))


def error_map(file: ReportFile, grid: Grid, number: int) -> Element:
    """The map of errors."""

    return _map(f"Relative error of {file.label}, layer by role", grid, number, _error_cells(file, grid), [])


def map_data(file: ReportFile, grid: Grid) -> dict[str, Any]:
    """What the page's script says of cells: rows of types and of relative errors in percent, null where there is none."""
    rows: list[dict[str, Any]] = []
    for part, cells in grid.rows:
        errors = [_relative(file, tensor) for tensor in cells]
        row: dict[str, Any] = {"part": part, "types": [(type and type.name, count) for type, count in _type_runs(cells)]}
        row |= {"outside": True} if is_outside(cells) else {}
        rows.append(row | ({"errors": errors} if file.errors else {}))
    return {"label": file.label, "layers": grid.layers, "rows": rows}


def _relative(file: ReportFile, tensor: ReportTensor | None) -> float | None:
    error = file.errors.get(tensor.name) if tensor else None
    relative = error.relative_rmse if error else None
    return None if relative is None else float(f"{100 * relative:.3g}")


def _type_runs(cells: Sequence[ReportTensor | None]) -> list[tuple[BlockType | None, int]]:
    """The types of a row, each with the number of layers that follow one another with it."""
    types = [tensor.type if tensor else None for tensor in cells]
    return [(type, len(list(group))) for type, group in groupby(types)]


def _type_cells(grid: Grid) -> list[Element]:
    """A cell for each run of layers with one type."""
    found = []
    for y, (_, cells) in enumerate(grid.rows):
        span, start = max(1, grid.layers) // len(cells), 0
        for type, count in _type_runs(cells):
            if type is not None:
                found.append((f"b{type_step(type)}", start, y, count * span))
            start += count
    return _paths(found)


def _error_cells(file: ReportFile, grid: Grid) -> list[Element]:
    """A cell for each tensor."""
    found = []
    for y, (_, cells) in enumerate(grid.rows):
        span = max(1, grid.layers) // len(cells)
        found += [(_error_class(file, tensor), x, y, span) for x, tensor in enumerate(cells) if tensor is not None]
    return _paths(found)


def _error_class(file: ReportFile, tensor: ReportTensor) -> str:
    error = file.errors.get(tensor.name)
    if error is None or error.relative_rmse is None:
        return "none"
    return "equal" if error.equal else f"e{error_step(error.relative_rmse)}"


def _paths(cells: Sequence[tuple[str, int, int, int]]) -> list[Element]:
    """A path for each class of cells, from class, layer, row and width in layers."""
    paths: dict[str, list[str]] = {}
    for name, x, y, span in cells:
        paths.setdefault(name, []).append(f"M{x} {y}h{span}v1h-{span}z")
    return [element("path", class_=name, d="".join(parts)) for name, parts in sorted(paths.items())]


def _run_labels(grid: Grid) -> list[Element]:
    """The name of the type in the middle of each run of equal types that is wide enough for it."""
    labels = []
    for y, (_, cells) in enumerate(grid.rows):
        start = 0
        for type, count in _type_runs(cells):
            if type is not None and count / len(cells) * _NARROW > _LETTER * len(type.name) + 4:
                middle = percent((start + count / 2) / len(cells))
                ink = f"run i{type_step(type)}"
                labels.append(element("text", type.name, class_=ink, x=middle, y=ROW * y + 14, text_anchor="middle"))
            start += count
    return labels


def _map(name: str, grid: Grid, number: int, cells: Sequence[Element], labels: Sequence[Element]) -> Element:
    """Labels of rows beside a map whose cells are stretched to its width."""
    height = ROW * len(grid.rows)
    stretched = element(
        "svg", *cells, viewBox=f"0 0 {max(1, grid.layers)} {len(grid.rows)}", preserveAspectRatio="none", width="100%",
        height=height,
    )  # fmt: skip
    cursor = element("rect", class_="cursor", height=ROW, visibility="hidden")
    described = element("desc", "The arrow keys go from cell to cell. The table of the tensors has the same values.")
    kind = "cells" if grid.layers <= _WIDE_CELLS else "cells fine"
    drawn = element(
        "svg", element("title", name), described, stretched, *labels, cursor,
        class_=kind, role="img", aria_label=name, tabindex="0", data_map=number, data_row=ROW, width="100%", height=height,
    )  # fmt: skip
    names = element("div", *(element("span", part) for part, _ in grid.rows), class_="rows")
    ends = element("div", *(element("span", text) for text in _ends(grid.layers)), class_="ends")
    return element("div", names, element("div", drawn, ends), class_="map", style=f"--row: {ROW}px")


def _ends(layers: int) -> list[str]:
    if not layers:
        return []
    return ["layer 0"] + ([str(layers - 1)] if layers > 1 else [])
