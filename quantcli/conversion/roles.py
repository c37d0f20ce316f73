"""What tensors are by their names, and what file types are called: what of `recipes.toml` is asked without its rules.

Apart from `recipes` so that showing a file does not wait for every rule of every recipe to be read and checked.
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
    """What a tensor is to the rules; the fields are explained in `recipes.toml`."""

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
    """The roles of a document laid out as `recipes.toml`, by name, in its order."""
    return {name: _role(name, **entry) for name, entry in document["roles"].items()}


@cache
def known_roles() -> Mapping[str, Role]:
    """The roles of `recipes.toml`, by name."""
    return read_roles(_document())


def role_of(name: str, roles: Mapping[str, Role]) -> Role | None:
    """The role of the tensor `name`, None for one that no rule speaks of."""
    return next((role for role in roles.values() if role.pattern.search(name)), None)


@cache
def file_type_names() -> Mapping[int, str]:
    """The recipes' names by their number in `general.file_type`."""
    recipes = _document()["recipes"]
    return {entry["file_type"]: name for name, entry in recipes.items() if "file_type" in entry}


@cache
def _document() -> Mapping[str, Any]:
    return tomllib.loads(recipe_text())


def _role(name: str, pattern: str, label: str, yields_to_override: str | None = None, **rest: Any) -> Role:
    yields = re.compile(yields_to_override) if yields_to_override else None
    return Role(name, re.compile(pattern), label, yields_to_override=yields, **rest)
