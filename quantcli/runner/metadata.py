"""Reads hyperparameters from GGUF metadata, with type and range checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from quantcli.architectures.expressions import Expression
from quantcli.core.errors import ModelError, shown
from quantcli.runner.model_file import ModelFile, metadata_value

REQUIRED: Final = object()
MOST: Final = 1 << 31
"""Every count in the metadata must be less. Products of a few of them then fit into a 64-bit array size."""


class Asked(dict[str, Any]):
    """The variables of expressions. `names` records which were looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, and records the name."""
        self.names.add(name)
        return super().get(name, default)


_LARGEST: Final = (2 - 2**-23) * 2.0**127
"""The largest float32."""


@dataclass(frozen=True)
class MetadataReader:
    """Reads the metadata keys under an architecture's prefix, `{arch}.`.

    `scope` has the variables of graph flag expressions: these values by key, with dots as underscores and arrays as lists.
    It records which were read, by expressions or by the methods here.
    Every method raises ModelError for a value of the wrong type, or one that is missing without a `default`.
    """

    file: ModelFile
    architecture: str
    scope: Asked = field(default_factory=Asked)

    def __post_init__(self) -> None:
        prefix = f"{self.architecture}."
        for key in self.file.metadata:
            if key.startswith(prefix):
                self.scope[_name(key.removeprefix(prefix))] = _plain(metadata_value(self.file, key))

    def has(self, key: str) -> bool:
        """Whether the file has a key."""
        return f"{self.architecture}.{key}" in self.file.metadata

    def raw(self, key: str, default: Any = None) -> Any:
        """A key's value, unchecked. It is not recorded as read."""
        return metadata_value(self.file, f"{self.architecture}.{key}", default)

    def was_read(self, key: str) -> bool:
        """Whether a key's value was recorded as read."""
        return _name(key) in self.scope.names

    def count(self, key: str, default: Any = REQUIRED) -> int:
        """An integer, at least 1; at least 0 where there is a default."""
        return self._count(key, self._value(key, default), 1 if default is REQUIRED else 0)

    def counts(self, key: str, layers: int, default: Any = REQUIRED) -> list[int]:
        """An integer per layer, at least 0, from an array or from one value for all layers."""
        value = _plain(self._value(key, default))
        if not isinstance(value, list):
            return [self._count(key, value, 0)] * layers
        if len(value) != layers:
            self.refuse(key, value, f"one number, or one for each of {layers} layers")
        return [self._count(key, number, 0) for number in value]

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A finite number in the range of float32."""
        value = self._value(key, default)
        if isinstance(value, bool) or not _is_float32(value):
            self.refuse(key, value, "a finite number")
        return float(value)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.refuse(key, value, "a text")
        return str(value)

    def evaluate(self, formula: Expression) -> Any:
        """The value of a graph expression for these metadata."""
        return formula.evaluate(self.scope, f"{self.file.path}: the metadata")

    def formula(self, flag: str, formula: Expression, default: float = 0.0) -> float:
        """The finite number an expression evaluates to; `default` where that is None."""
        value = self.evaluate(formula)
        value = default if value is None else value
        if not _is_float32(value):
            expected = f"a finite number ({formula.source})"
            raise ModelError(f"{self.file.path}: {flag} is {shown_value(value)}, expected {expected}")
        return float(value)

    def count_formula(self, flag: str, formula: Expression) -> int:
        """The non-negative integer an expression evaluates to; 0 where that is None."""
        value = self.formula(flag, formula)
        if value != int(value) or not 0 <= value < MOST:
            raise ModelError(f"{self.file.path}: {flag} is {shown_value(value)}, expected a count ({formula.source})")
        return int(value)

    def layer_formula(self, flag: str, formula: Expression, layers: int) -> list[bool]:
        """Which layers an expression selects.

        It evaluates to one boolean for all layers, one per layer, or an integer N. N selects all but the last of every N
        consecutive layers, and 0 selects all. Layers for multi-token prediction, after the others, may lack theirs.
        """
        value = self.evaluate(formula)
        if isinstance(value, bool | None):
            return [bool(value)] * layers
        if isinstance(value, int) and 0 <= value < MOST:
            return [value == 0 or layer % value < value - 1 for layer in range(layers)]
        least = layers - self.count("nextn_predict_layers", 0)
        fits = isinstance(value, list) and least <= len(value) <= layers
        if fits and all(isinstance(item, bool | int) for item in value):
            return [bool(item) for item in value] + [False] * (layers - len(value))
        expected = f"a number, or a boolean for each of {layers} layers"
        raise ModelError(f"{self.file.path}: {flag} is {shown_value(value)}, expected {expected} ({formula.source})")

    def refuse(self, key: str, value: Any, expected: str) -> None:
        """Raise a ModelError with a key's value and what was expected."""
        raise ModelError(f"{self.file.path}: {self.architecture}.{key} is {shown_value(value)}, expected {expected}")

    def _value(self, key: str, default: Any) -> Any:
        self.scope.names.add(_name(key))
        value = self.raw(key, default)
        if value is REQUIRED:
            raise ModelError(f"{self.file.path}: the metadata lack {self.architecture}.{key}")
        return value

    def _count(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
            self.refuse(key, value, "a count")
        return int(value)


def _is_float32(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _LARGEST


def _name(key: str) -> str:
    """The name of a key in expressions."""
    return key.replace(".", "_")


def _plain(value: Any) -> Any:
    """A plain Python value: arrays become lists."""
    if isinstance(value, str | int | float):
        return value
    return value.tolist() if hasattr(value, "tolist") else list(value)


def shown_value(value: Any) -> str:
    """A metadata value for an error message; only the length of an array."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        return f"an array of {len(value)}"
    return shown(value)
