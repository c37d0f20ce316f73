"""The roles of tensors by name, and the names of file types: the parts of `recipes.toml` that need no rules.

Separate from `recipes`, so that inspecting a file does not wait until all rules of all recipes are parsed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Role:
    """The role of a tensor, which rules select by. `recipes.toml` explains the fields."""

    name: str
    pattern: re.Pattern[str]
    label: str
    counted_by: Literal["tensors", "layers"] = "layers"
    stands_in_for: str | None = None
    yields_to_override: re.Pattern[str] | None = None


def recipe_text() -> str:
    """The text of `recipes.toml`."""
    return Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")


def read_roles(document: Mapping[str, Any]) -> dict[str, Role]:
    """Name -> role of a document laid out as `recipes.toml`, in its order."""
    return {name: _role(name, **entry) for name, entry in document["roles"].items()}


@cache
def known_roles() -> Mapping[str, Role]:
    """Name -> role of `recipes.toml`."""
    return read_roles(_document())


def role_of(name: str, roles: Mapping[str, Role]) -> Role | None:
    """The role of the tensor `name`; None if it has none."""
    return next((role for role in roles.values() if role.pattern.search(name)), None)


@cache
def file_type_names() -> Mapping[int, str]:
    """Number in `general.file_type` -> the name of the recipe."""
    recipes = _document()["recipes"]
    return {entry["file_type"]: name for name, entry in recipes.items() if "file_type" in entry}


@cache
def _document() -> Mapping[str, Any]:
    return tomllib.loads(recipe_text())


def _role(name: str, pattern: str, label: str, yields_to_override: str | None = None, **rest: Any) -> Role:
    yields = re.compile(yields_to_override) if yields_to_override else None
    return Role(name, re.compile(pattern), label, yields_to_override=yields, **rest)
