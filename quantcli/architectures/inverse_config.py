"""From GGUF metadata back to config.json, by the rows that the loader reads in the other direction.

What the metadata and the shapes of tensors say is solved for keys of config.json (`equations`). The result is then read
like any config.json: hyperparameters that it does not reproduce are told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from quantcli.architectures.equations import Keys, Solver
from quantcli.architectures.expressions import Expression
from quantcli.architectures.gguf_fields import plain_value
from quantcli.architectures.hf_config import OrNull, complete_config
from quantcli.architectures.inverse_mapping import chosen_way, name_pattern, with_axes
from quantcli.architectures.loader import Architecture
from quantcli.architectures.mapping import generated
from quantcli.architectures.schema import Declaration, MetadataRow, TensorRow, placeholders
from quantcli.architectures.tables import DEFAULTS_DIRECTORY, class_defaults
from quantcli.architectures.transforms import GENERATORS
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.spec import Field, Metadata
from quantcli.formats.gguf.vocabulary import SPECIAL_TOKENS
from quantcli.tensors.tensor import Tensor

_ROUNDS: Final = 4
"""How often the rows are gone through: what one gives may be needed by one before it."""

_ROLES: Final = ("bos", "eos", "pad")
"""The roles of special tokens whose ids are in config.json."""

_OUTSIDE: Final = ("rope_theta", "partial_rotary_factor")
"""RoPE parameters that config.json has outside of the RoPE table, besides those that the configuration class has there."""


def original_config(
    architecture: Architecture, metadata: Metadata, tensors: Mapping[str, Tensor], kind: str | None = None
) -> Keys:
    """The config.json of the checkpoint that a GGUF file was made from, as far as the file determines it.

    `kind` is its `model_type`, one of `model_types`; by default the first.
    """
    return _Inversion(architecture.declaration, metadata, tensors, kind or model_types(architecture)[0]).config()


def model_types(architecture: Architecture) -> list[str]:
    """The values of `model_type` that a checkpoint of this architecture may have."""
    named = architecture.declaration.export.get("model_type")
    return [*architecture.declaration.defaults] or [architecture.gguf if named is None else str(named.evaluate({}))]


def unusual_keys(architecture: Architecture, config: Keys) -> int:
    """How many keys of a config.json the configuration class of its `model_type` does not have, or are null."""
    known = architecture.declaration.defaults.get(str(config["model_type"]), {})
    return sum(1 for key, value in config.items() if key not in known or value is None)


@dataclass(frozen=True)
class Differences:
    """How the hyperparameters that a config.json gives differ from those of a file.

    told     keys with another value, or that only one of them has; generated tensors with other numbers
    derived  keys that the file has not, whose values the configuration class computes from others: older files lack them
    """

    told: list[str]
    derived: list[str]


def differences(
    architecture: Architecture, config: Keys, metadata: Metadata, tensors: Mapping[str, Tensor]
) -> Differences:
    """What a config.json does not give as the file has it.

    Raises:
        ModelError, UnsupportedError: if it cannot be read.
    """
    given, prefix = architecture.metadata(config), f"{architecture.gguf}."
    rows = {row.key.format(arch=architecture.gguf): row for row in architecture.declaration.metadata}
    keys = sorted(key for key in rows if key.startswith(prefix))  # others are of the file or of the tokenizer
    other = [key for key in keys if not _equal(metadata.get(key), given.get(key))]
    defaults = architecture.declaration.defaults.get(str(config["model_type"]), {})
    computed = {name for name, default in defaults.items() if isinstance(default, Expression)}
    derived = [key for key in other if key not in metadata and rows[key].value.names <= computed]
    made = {tensor.name: tensor for tensor in generated(architecture.declaration, architecture.hyperparameters(config))}
    names = sorted({row.name for row in architecture.declaration.generated})
    told = [key.removeprefix(prefix) for key in other if key not in derived]
    told += [name for name in names if not _same_numbers(tensors.get(name), made.get(name))]
    return Differences(told, [key.removeprefix(prefix) for key in derived])


def _same_numbers(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one.load() == other.load()).all())


def _equal(ours: Field | None, given: Field | None) -> bool:
    if ours is None or given is None:
        return ours is given
    return bool(plain_value(ours) == plain_value(given))


@cache
def _common_keys() -> Counter[str]:
    """How many configuration classes of transformers have each key."""
    return Counter(key for path in DEFAULTS_DIRECTORY.glob("*.toml") for key in class_defaults(path.stem))


class _Inversion:
    """The keys that have been found, and the rows they are found by."""

    def __init__(
        self, declaration: Declaration, metadata: Metadata, tensors: Mapping[str, Tensor], kind: str
    ) -> None:
        self._declaration = declaration
        self._metadata = metadata
        self._tensors = tensors
        self._kind = kind
        self._defaults = declaration.defaults.get(kind, {})
        # A key that is written twice has its last value.
        self._rows = {row.key: row for row in declaration.metadata}.values()
        self._found: Keys = {}
        self._scope: Mapping[str, Any] = {}
        self._simple = True

    def config(self) -> Keys:
        """See `original_config`."""
        self._set({"architectures": [self._class()], "model_type": self._kind})
        roles = {f"{role}_token_id": self._metadata.get(key) for role, key in SPECIAL_TOKENS.items() if role in _ROLES}
        self._set({key: field.value for key, field in roles.items() if field is not None})
        for defaults in (False, True):
            for number in range(_ROUNDS):
                self._simple = not defaults and number == 0
                before = str(self._found)
                for read in (self._read_tensors, self._read_generated, self._read_metadata):
                    self._scope = self._variables(defaults)
                    read()
                if self._declaration.when.evaluate(self._scope) is not True:
                    self._make(self._declaration.when, True)
                if defaults:
                    self._remove_surplus()
                if str(self._found) == before and not self._simple:
                    break
        self._scope = self._variables(True)
        for key, expression in self._declaration.export.items():
            if (value := expression.evaluate(self._scope)) is not None:
                self._found.setdefault(key, value)
        rows = self._scope.get("vocab_size")
        for key in (f"{role}_token_id" for role in _ROLES):
            default = _constant(self._defaults.get(key))
            if key not in self._found and isinstance(default, int) and isinstance(rows, int) and default >= rows:
                self._found[key] = None  # the class's default is of another vocabulary
        return _as_integers(self._as_written(), self._defaults)

    def _class(self) -> str:
        """The class of the model type, by its name, or else the first."""
        kind = self._kind.replace("_", "").replace("-", "").lower()
        classes = self._declaration.classes
        named = (name for name in classes if name.replace("_", "").lower().startswith(f"{kind}for"))
        return next(named, classes[0] if classes else "")

    def _as_written(self) -> Keys:
        """The keys as config.json has them, with RoPE parameters where they belong."""
        config = {key: value for key, value in self._found.items() if key != "rope"}
        rope = dict(self._found.get("rope", {}))
        for key in [key for key in rope if key in _OUTSIDE or key in self._defaults]:
            config.setdefault(key, rope.pop(key))
        local = rope.pop("sliding_attention", None)
        if local is not None:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        if rope:
            if "mscale_all_dim" in rope:  # the graph of GGUF readers knows models alone where both are the same
                rope.setdefault("mscale", rope["mscale_all_dim"])
            rope.setdefault("rope_type", "longrope" if "long_factor" in rope else "default")
            config["rope_scaling"] = rope
        return config

    def _variables(self, defaults: bool) -> Mapping[str, Any]:
        """What is known. The class's defaults count only when no row gives more."""
        config = self._as_written()
        if not defaults:
            config["model_type"] = None
        scope = complete_config(config, self._declaration.defaults)
        for name, expression in self._declaration.values.items():
            with suppress(QuantcliError):  # a value that needs what is not known yet
                scope[name] = expression.evaluate(scope)
        return scope

    def _solver(self) -> Solver:
        return Solver(self._declaration.values, self._scope, self._found, self._rank, self._simple)

    def _rank(self, keys: Keys) -> tuple[bool, int]:
        """Of alternatives, the one with keys of the configuration class, or else of most classes."""
        names = [name for name in keys if name != "rope"]
        nested = any("full_attention" in table for table in keys.values() if isinstance(table, dict))
        return nested or any(name not in self._defaults for name in names), -min(map(self._common, names), default=0)

    def _common(self, name: str) -> int:
        return _common_keys()[name]

    def _make(self, expression: Any, value: Any) -> None:
        """Set keys so that an expression has this value, as far as they are not set."""
        keys = self._solver().solve(expression, value)
        if keys:
            self._set(keys)

    def _set(self, keys: Keys) -> None:
        for key, value in keys.items():
            if isinstance(value, dict) and isinstance(self._found.get(key, {}), dict):
                _merge(self._found.setdefault(key, {}), value)
            else:
                self._found.setdefault(key, value)

    def _read_metadata(self) -> None:
        for row in self._rows:
            field = self._metadata.get(row.key.format(arch=self._declaration.gguf))
            if field is None or row.key == "general.file_type":
                continue
            value = _unmapped(row, plain_value(field))
            if value is not None:
                if self._simple or row.value.evaluate(self._scope) != value:
                    self._make(row.value, value)
                if not row.when.evaluate(self._scope):
                    self._make(row.when, True)

    def _remove_surplus(self) -> None:
        """Set keys to null whose defaults would give hyperparameters that the file has not."""
        for row in self._rows:
            key = row.key.format(arch=self._declaration.gguf)
            if key in self._metadata or not row.when.evaluate(self._scope) or row.value.evaluate(self._scope) is None:
                continue
            keys = self._solver().solve(row.value, None)
            if keys and all(name not in self._found and self._may_be_null(name) for name in keys):
                self._set(keys)
            else:
                self._make(row.when, False)

    def _may_be_null(self, name: str) -> bool:
        return isinstance(self._defaults.get(name), OrNull)

    def _read_tensors(self) -> None:
        """What the presence and the shapes of tensors say."""
        for row in self._declaration.tensors:
            held = self._held(row)
            indices = placeholders(row.name)
            here = {**self._scope, **(held[1] if held else dict.fromkeys(indices, 0))}
            if held:
                self._read_shape(row, self._tensors[held[0]], here)
                if not row.when.evaluate(here):
                    self._make_of_model(row.when, True, indices)
            elif not self._is_expected(row, here):
                continue
            if bool(row.required.evaluate(here)) != bool(held):
                self._make_of_model(row.required, bool(held), indices)
                if not held:
                    self._make_of_model(row.when, False, indices)

    def _is_expected(self, row: TensorRow, scope: Mapping[str, Any]) -> bool:
        """Whether a model has the row's tensor in some layer, if the tensor is required."""
        layers = scope.get("layers") if "layer" in row.when.names else 1
        numbers = range(layers if isinstance(layers, int) else 0)
        return any(row.when.evaluate({**scope, "layer": number}) for number in numbers)

    def _make_of_model(self, condition: Expression, value: Any, indices: frozenset[str]) -> None:
        """The same for a condition, unless it depends on the layer: one layer says nothing about the others."""
        if not condition.names & indices:
            self._make(condition, value)

    def _held(self, row: TensorRow) -> tuple[str, dict[str, int]] | None:
        """The first tensor of a row, and the numbers in its name."""
        pattern = name_pattern(row.name)
        found = (pattern.fullmatch(name) for name in self._tensors)
        match = next(filter(None, found), None)
        return None if match is None else (match[0], {key: int(text) for key, text in match.groupdict().items()})

    def _read_shape(self, row: TensorRow, tensor: Tensor, scope: Mapping[str, Any]) -> None:
        """Solve the extents that a row says for its source, where its transforms keep the shape."""
        way = chosen_way(row, scope)
        if way.shape is None:
            return
        shape = tensor.shape[1:] if way.gather == "stack" else with_axes(tensor.shape, len(way.shape))
        if any(call.name not in ("add", "rope_pairs", "rearrange_rows", "ungroup_rows") for call in way.transforms):
            return
        for extent, have in zip(way.shape, shape, strict=False):
            if extent.evaluate(scope) != have:
                self._make_of_model(extent, have, placeholders(row.name))

    def _read_generated(self) -> None:
        for row in self._declaration.generated:
            tensor = self._tensors.get(row.name)
            if tensor is None:
                continue
            inverse = GENERATORS[row.generator.name].undo
            arguments = [argument.evaluate(self._scope) for argument in row.generator.arguments]
            for place, value in inverse(tensor.load(), *arguments).items():
                self._make(row.generator.arguments[place], value)
            if not row.when.names <= {"rope"} and not row.when.evaluate(self._scope):
                self._make(row.when, True)


def _merge(table: Keys, more: Keys) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(table.get(key, {}), dict):
            _merge(table.setdefault(key, {}), value)
        else:
            table.setdefault(key, value)


def _unmapped(row: MetadataRow, value: Any) -> Any:
    """The value in config.json of a value in GGUF; the last of several, which is the newest name."""
    if row.map is None:
        return value
    return next((given for given, mapped in reversed([*row.map.items()]) if mapped == value), None)


def _constant(default: Any) -> Any:
    return default.value if isinstance(default, OrNull) else default


def _as_integers(config: Keys, defaults: Mapping[str, Any]) -> Keys:
    """Whole numbers as integers where the configuration class has integers: GGUF has floats for some of them."""
    found = dict(config)
    for key, value in config.items():
        default = _constant(defaults.get(key))
        if isinstance(value, dict) and isinstance(default, Mapping):
            found[key] = _as_integers(value, default)
        elif isinstance(value, float) and value.is_integer() and type(default) is int:
            found[key] = int(value)
    return found
