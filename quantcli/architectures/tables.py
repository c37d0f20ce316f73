"""Reads architecture files as TOML, and merges them with those they extend.

There are many, and a command needs one. What identifies an architecture comes before the first table of its file, so that
only this heading is parsed of all the others.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import FormatError

PACKAGE_DIRECTORY: Final = Path(__file__).parent / "models"
"""The directory of the package's architecture files."""

DEFAULTS_DIRECTORY: Final = Path(__file__).parent / "defaults"
"""The directory of the defaults of transformers' configuration classes, one file per model type."""

ENCLOSING_TYPES: Final = Path(__file__).parent / "enclosing_types.toml"
"""The model types that transformers knows of models with a language model inside."""

_FIRST_TABLE: Final = re.compile(r"^\[", re.MULTILINE)
"""The beginning of the first table. No list before it may have a line that begins with `[`."""

_TELLING: Final = ("classes", "enclosing_classes", "model_types", "when", "classless", "defaults")
"""Keys that identify the architecture of a configuration. They are not inherited."""

Tables = dict[str, Any]


@dataclass(frozen=True)
class Heading:
    """The heading of an architecture file, which identifies it."""

    path: Path
    gguf: str
    title: str
    classes: tuple[str, ...]
    enclosing_classes: tuple[str, ...]
    model_types: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.stem


@cache
def headings() -> tuple[Heading, ...]:
    """The heading of every architecture of the package, in the order of the files.

    Raises:
        FormatError: if a file is not TOML or extends a missing file.
    """
    found = []
    for path in sorted(PACKAGE_DIRECTORY.glob("*.toml")):
        own = _merged(path, (), _heading_tables)
        if "gguf" in own:
            classes, enclosing, types = (tuple(own.get(key, ())) for key in ("classes", "enclosing_classes", "model_types"))
            found.append(Heading(path, own["gguf"], own.get("title", path.stem), (*classes, *enclosing), enclosing, types))
    return tuple(found)


def merged_tables(path: Path) -> Tables:
    """An architecture file, merged with the files of the package that it extends.

    Nested tables are shared with other calls and must not be modified.

    Raises:
        FormatError: if a file is missing, is not TOML, or extends one that is not there or itself.
    """
    return _merged(path, (), _tables)


def class_defaults(model_type: str) -> Tables:
    """The defaults of a model type's configuration class; empty for a type that transformers does not know.

    Nested tables must not be modified.
    """
    path = DEFAULTS_DIRECTORY / f"{model_type}.toml"
    return _package_tables(path) if path.parent == DEFAULTS_DIRECTORY and path.is_file() else {}


@cache
def enclosing_types() -> frozenset[str]:
    """The model types that transformers knows of models with a language model's configuration inside their own."""
    return frozenset(_package_tables(ENCLOSING_TYPES)["model_types"])


def _merged(path: Path, above: tuple[Path, ...], read: Callable[[Path], Tables]) -> Tables:
    tables = dict(read(path))
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    parent_path = PACKAGE_DIRECTORY / f"{parent}.toml"
    if not isinstance(parent, str) or parent_path.parent != PACKAGE_DIRECTORY or not parent_path.exists():
        names = sorted(path.stem for path in PACKAGE_DIRECTORY.glob("*.toml"))
        nearest = get_close_matches(str(parent), names, 3) or names[:3]
        hint = f"Perhaps {' or '.join(nearest)}?"
        raise FormatError(path, f"extends {parent!r}, which is not a built-in architecture", hint=hint)
    if parent_path in above:
        raise FormatError(path, f"extends {parent!r}, which extends it in turn")
    inherited = _merged(parent_path, (*above, path), read)
    for own in _TELLING:
        inherited.pop(own, None)
    return _merge(inherited, tables)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tables:
    """Recursively merge `above` into `below`, in the order of `below`, with new keys at the end.

    A table that is false in `above` is removed.
    """
    merged = dict(below)
    for key, value in above.items():
        inherited = merged.get(key)
        if isinstance(inherited, dict) and value is False:
            del merged[key]
        else:
            merged[key] = _merge(inherited, value) if isinstance(inherited, dict) and isinstance(value, dict) else value
    return merged


def _tables(path: Path) -> Tables:
    """A file's own tables. Files of the package are cached, since many extend the same ones."""
    return _package_tables(path) if path.parent == PACKAGE_DIRECTORY else _parsed(path, _text(path))


@cache
def _package_tables(path: Path) -> Tables:
    return _parsed(path, _text(path))


@cache
def _heading_tables(path: Path) -> Tables:
    """The part of a file before its first table."""
    return _parsed(path, _FIRST_TABLE.split(_text(path), maxsplit=1)[0])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FormatError(path, "no such architecture file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, f"not a readable TOML file: {error}") from error


def _parsed(path: Path, text: str) -> Tables:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(path, f"not a readable TOML file: {error}") from error
