"""Elements of HTML and SVG as data. Every text and attribute is escaped when they are written."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from quantcli.core.display import printable

Value = str | float | None


@dataclass(frozen=True)
class Element:
    """An element with its attributes and what it holds. jinja2 writes it by `__html__`, without escaping it again."""

    name: str
    attributes: tuple[tuple[str, Value], ...]
    children: tuple[Element | str, ...]

    def __html__(self) -> str:
        """The markup."""
        attributes = "".join(
            f' {name}="{escape(shown(value))}"' for name, value in self.attributes if value is not None
        )
        inner = "".join(
            child.__html__() if isinstance(child, Element) else escape(shown(child)) for child in self.children
        )
        return f"<{self.name}{attributes}>{inner}</{self.name}>"


def element(name: str, *children: Element | str, **attributes: Value) -> Element:
    """An element. `_` in the name of an attribute stands for `-`, and one at its end for nothing: `class_`, `aria_label`.
    An attribute of None is left out."""
    written = tuple((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Element(name, written, children)


def shown(value: str | float | None) -> str:
    """A value as text: numbers with at most two decimals, strings without control characters."""
    if isinstance(value, str):
        return printable(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def percent(fraction: float) -> str:
    """A horizontal position."""
    return f"{100 * fraction:.2f}%"


def mark(said: str, *children: Element, **attributes: Value) -> Element:
    """A group that shows `said` when it is pointed at or has the focus. `report.js` lets the arrow keys go from mark to
    mark."""
    return element("g", *children, class_="mark", role="img", aria_label=said, **attributes)


def chart(name: str, said: str, height: float, *children: Element, **attributes: Value) -> Element:
    """An SVG of the width of its place, with a title and a description."""
    title, description = element("title", name), element("desc", said)
    return element(
        "svg", title, description, *children, role="group", aria_label=name, width="100%", height=height, **attributes
    )
