"""The page of a report: its sections in `report.html`, with style and script in it. It loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2

from quantcli.core.block_types import BlockType
from quantcli.core.display import binary_size, printable
from quantcli.core.listing import counted
from quantcli.quality.report import tables
from quantcli.quality.report.byte_bars import GROUPS, byte_bars, bytes_by_group
from quantcli.quality.report.content import Report, ReportFile
from quantcli.quality.report.elements import Element, element
from quantcli.quality.report.heat_map import (
    ERROR_STEPS,
    Grid,
    error_map,
    error_step,
    grid_of,
    map_data,
    type_map,
    type_step,
)
from quantcli.quality.report.position_lines import bands_by_file, position_lines
from quantcli.quality.report.prices import Price, prices
from quantcli.quality.report.scatter import scatter
from quantcli.quality.report.text_bars import by_damage, text_bars

MOST_BYTES: Final = 500_000
"""A page is smaller than this."""


@dataclass(frozen=True)
class Detail:
    """How much a page shows: whether it has tables of the cells of heat maps, and the most cells that all maps have."""

    cell_tables: bool
    cells: float


DETAILS: Final = (
    Detail(True, math.inf),
    Detail(False, math.inf),
    Detail(False, 8000),
    Detail(False, 2000),
    Detail(False, 0),
)
"""From all to least. The JSON document has what a large page lacks."""


@dataclass(frozen=True)
class Verbatim:
    """Markup, a style or a script of our own."""

    text: str

    def __html__(self) -> str:
        """The text as it is."""
        return self.text


@dataclass(frozen=True)
class FileSection:
    """What the page shows of one file."""

    file: ReportFile
    types: Element | None
    errors: Element | None
    plan: tables.Table
    cells: tables.Table | None


def render(report: Report) -> str:
    """The page, with the most detail with which it is small enough."""
    page = ""
    for detail in DETAILS:
        page = render_with(report, detail)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def render_with(report: Report, detail: Detail) -> str:
    """The page with this detail."""
    found = report_prices(report)
    lines = bands_by_file(report)
    mapped = _mapped(report.files, detail.cells)
    script = _own("report.js")
    return _template().render(
        report=report,
        style=Verbatim(_own("report.css")),
        script=Verbatim(script),
        policy=_policy(script),
        lede=_lede(report),
        remarks=_remarks(found),
        scatter=scatter(found, report.base.label if report.base else None) if found else None,
        prices=tables.price_table(report, found),
        texts=_text_charts(report),
        text_table=tables.text_table(report),
        positions=position_lines([file.label for file in report.files], lines) if lines else None,
        position_table=tables.position_table(report.files, lines) if lines else None,
        type_key=_type_key(report.files),
        error_key=_error_key() if report.base else None,
        sections=[_section(file, grid, index, detail) for index, (file, grid) in enumerate(mapped)],
        cell_tables=detail.cell_tables,
        unmapped=[file.label for file, grid in mapped if grid is None],
        data=Verbatim(_data([None if grid is None else map_data(file, grid) for file, grid in mapped])),
        byte_bars=byte_bars(report.files),
        byte_key=_byte_key(report.files),
        byte_table=tables.byte_table(report.files),
    )


def report_prices(report: Report) -> list[Price]:
    """The prices of all files; none without texts."""
    sizes = [file.file_bytes for file in report.files]
    results = [text.result for text in report.texts]
    return prices([file.label for file in report.files], sizes, results) if results else []


def _mapped(files: Sequence[ReportFile], most: float) -> list[tuple[ReportFile, Grid | None]]:
    """The files with their grids, None for those with which the maps would have too many cells."""
    left = most
    found: list[tuple[ReportFile, Grid | None]] = []
    for file in files:
        grid = grid_of(file)
        left -= sum(len(cells) for _, cells in grid.rows)
        found.append((file, grid if left >= 0 and grid.rows else None))
    return found


def _section(file: ReportFile, grid: Grid | None, number: int, detail: Detail) -> FileSection:
    plan = tables.plan_table(file)
    if grid is None:
        return FileSection(file, None, None, plan, None)
    errors = error_map(file, grid, number) if file.errors else None
    cells = tables.tensor_table(file, grid) if detail.cell_tables else None
    return FileSection(file, type_map(file, grid, number), errors, plan, cells)


def _text_charts(report: Report) -> list[tuple[str, Element]]:
    """A chart for each file, where there are texts to compare."""
    if len(report.texts) < 2:
        return []
    texts = by_damage(report.texts)
    return [(file.label, text_bars(file, index, texts)) for index, file in enumerate(report.files)]


def _lede(report: Report) -> str:
    parts = [counted(len(report.files), "file")]
    if report.base:
        parts.append(f"compared with {report.base.label} ({binary_size(report.base.file_bytes)})")
    if report.texts:
        tokens = counted(tables.total_tokens(report.texts), "scored token")
        parts.append(f"on {counted(len(report.texts), 'text')}, {tokens}")
    return " ".join(parts) + "."


def _remarks(found: Sequence[Price]) -> list[str]:
    """What the plot says in words."""
    return [
        f"{price.label} is dominated: {price.dominated} is no larger, and no worse on these texts."
        for price in found
        if price.dominated
    ]


def _type_key(files: Sequence[ReportFile]) -> list[Element]:
    """The types of matrices in all files, by bits, each in its colour."""
    kinds: dict[str, BlockType] = {
        tensor.type.name: tensor.type for file in files for tensor in file.tensors if tensor.is_matrix
    }
    return [
        element(
            "li",
            element("span", kind.name, class_=f"swatch b{type_step(kind)}"),
            element("small", f"{kind.bits_per_weight:.4g} bits"),
        )
        for kind in sorted(kinds.values(), key=lambda kind: (kind.bits_per_weight, kind.name))
    ]


def _error_key() -> list[Element]:
    """The steps of the scale of errors, each with its lower end in percent."""
    return [
        element("li", element("span", class_=f"swatch e{error_step(low)}"), element("small", f"{100 * low:g}"))
        for low in (0.0, *ERROR_STEPS)
    ]


def _byte_key(files: Sequence[ReportFile]) -> list[Element]:
    """The groups of bytes of all files, each in its colour."""
    found = {group for file in files for group in bytes_by_group(file)}
    return [
        element("li", element("span", class_=f"swatch c{index}"), element("small", group))
        for index, group in enumerate(GROUPS)
        if group in found
    ]


def _data(maps: Sequence[dict[str, Any] | None]) -> str:
    """The data of the maps as JSON that cannot end the element it is in."""
    text = json.dumps([_shown(found) for found in maps], separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list | tuple) else value


def _policy(script: str) -> str:
    """A content security policy: our own script and style, and nothing from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printed
    )
    return environment.from_string(_own("report.html"))


def _printed(value: Any) -> Any:
    """Strings without control characters, except our own markup."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
