"""A bar for each file of its bytes, by what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quantcli.core.display import binary_size, printable
from quantcli.core.errors import clipped
from quantcli.quality.report.content import OUTSIDE, ReportFile, ReportTensor
from quantcli.quality.report.elements import Element, chart, element, mark, percent

GROUPS: Final = (
    "embedding",
    "output",
    "attention",
    "feed-forward",
    "experts",
    "state space",
    "norms and others",
    "metadata",
)
"""In the order in which they are stacked."""

_ROW: Final = 46
_NARROW: Final = 330
"""The least pixels of the chart on narrow pages, and on wide ones, which have more labels."""

_WIDE: Final = 830
_LETTER: Final = 6.6

_LONGEST: Final = 34
"""Letters of the name of a file."""

_PREFIXES: Final = (
    ("attn_norm", "norms and others"),
    ("attn_q_norm", "norms and others"),
    ("attn_k_norm", "norms and others"),
    ("ffn_norm", "norms and others"),
    ("attn_", "attention"),
    ("ssm_", "state space"),
    ("shortconv", "state space"),
    ("ffn_", "feed-forward"),
)


def group_of(tensor: ReportTensor) -> str:
    """What a tensor is for."""
    if tensor.layer == OUTSIDE:
        if "embd" in tensor.part:
            return "embedding" if tensor.is_matrix else "norms and others"
        return "output" if tensor.part == "output" else "norms and others"
    if "_exps" in tensor.part or "_shexp" in tensor.part:
        return "experts"
    return next((group for prefix, group in _PREFIXES if tensor.part.startswith(prefix)), "norms and others")


def bytes_by_group(file: ReportFile) -> dict[str, int]:
    """Bytes of each group that has some. Metadata are all that is not tensor data."""
    found = dict.fromkeys(GROUPS, 0)
    for tensor in file.tensors:
        found[group_of(tensor)] += tensor.nbytes
    found["metadata"] = max(0, file.file_bytes - sum(tensor.nbytes for tensor in file.tensors))
    return {group: count for group, count in found.items() if count}


def byte_bars(files: Sequence[ReportFile]) -> Element:
    """The bars, that of the largest file as wide as the chart."""
    widest = max(file.file_bytes for file in files)
    rows = [part for number, file in enumerate(files) for part in _bar(file, _ROW * number, widest)]
    said = "A bar for each file, divided by what the bytes are for; the table has the values."
    return chart("Bytes by role", said, _ROW * len(files) - 6, *rows)


def _bar(file: ReportFile, y: float, widest: int) -> list[Element]:
    parts = [
        element("text", clipped(printable(file.label), _LONGEST), class_="name", x="0", y=y + 12),
        element("text", binary_size(file.file_bytes), class_="value", x="100%", y=y + 12, text_anchor="end"),
    ]
    start = 0
    for group, count in bytes_by_group(file).items():
        left, width, colour = start / widest, count / widest, GROUPS.index(group)
        said = f"{file.label}, {group}: {binary_size(count)}, {count / file.file_bytes:.1%} of the file"
        inner = [element("rect", class_=f"part c{colour}", x=percent(left), y=y + 18, width=percent(width), height=18)]
        needed = _LETTER * len(group) + 6
        if width * _WIDE > needed:
            wide = "" if width * _NARROW > needed else " widest"
            middle = percent(left + width / 2)
            inner.append(element("text", group, class_=f"run r{colour}{wide}", x=middle, y=y + 31, text_anchor="middle"))
        parts.append(mark(said, *inner))
        start += count
    return parts
