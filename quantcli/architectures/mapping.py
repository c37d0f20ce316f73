"""Maps checkpoint tensors to GGUF tensors: matches names, checks shapes, and orders the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, Final, TypeVar

from quantcli.architectures.expressions import Call
from quantcli.architectures.name_ranges import LISTED, listed_names
from quantcli.architectures.schema import Declaration, IgnoreRow, TensorRow, placeholders
from quantcli.architectures.transforms import BF16, F16, F32, GATHERS, GENERATORS, TRANSFORMS, as_float32, have_same_numbers
from quantcli.core.block_types import OPAQUE_TYPES
from quantcli.core.errors import ModelError, UnsupportedError, clipped, shown
from quantcli.core.listing import listed
from quantcli.tensors.derived import Generated, Renamed
from quantcli.tensors.tensor import Tensor, TensorInfo

MOST_ZEROS: Final = 1 << 20
"""Most elements of a tensor that is read to check whether it is all zero."""

MOST_TENSORS: Final = 100_000
"""Most tensors that config.json may describe where there is no checkpoint to limit the number (adapters)."""

MOST_MISSING: Final = 16
"""Enumeration of a row's missing tensors stops at this many times the number of tensors in the checkpoint."""

Scope = Mapping[str, Any]
Info = TypeVar("Info", bound=TensorInfo)


@dataclass
class _Problems:
    """All mismatches between checkpoint and architecture, collected for one error message."""

    missing: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    misshapen: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    """(actual shape, expected shape) -> names."""

    def raise_if_any(self, whose: str, gguf: str, hint: str) -> None:
        """Raise an error with all mismatches on one line.

        Raises:
            ModelError: if there are any.
        """
        kinds = {"missing": self.missing, "unknown": self.unknown}
        told = [f"{len(names)} {kind}: {listed_names(names)}" for kind, names in kinds.items() if names]
        if self.misshapen:
            count = sum(map(len, self.misshapen.values()))
            shapes = [
                f"{listed_names(names)} {have} where config.json says {want}"
                for (have, want), names in self.misshapen.items()
            ]
            told.append(f"{count} with another shape: {listed(shapes, most=LISTED)}")
        if told:
            message = f"the {whose}'s tensors do not match the architecture {gguf} and config.json: "
            raise ModelError(message + "; ".join(told), hint=hint)


@dataclass(frozen=True)
class Match:
    """A row for one layer (and expert), with its checkpoint tensors."""

    row: TensorRow
    name: str
    sources: tuple[str, ...]
    scope: Scope
    place: tuple[int, int]
    """The sort key in the output: the position of the last source in the checkpoint, then that of the row."""


def map_tensors(declaration: Declaration, checkpoint: Mapping[str, Tensor], scope: Scope) -> list[Tensor]:
    """See `Architecture.tensors`."""
    tensors, headless = _normalized_names(declaration, checkpoint)
    scope = {**scope, "headless": headless}
    problems = _Problems()
    counts = index_counts(declaration, len(tensors), scope)
    matches = list(_matches(declaration, tensors, counts, scope, problems))
    used = {source for match in matches for source in match.sources}
    problems.unknown |= {
        tensor.name: None
        for name, tensor in tensors.items()
        if name not in used and not any(_is_ignored(name, tensor, row, scope) for row in declaration.ignore)
    }
    problems.raise_if_any("checkpoint", declaration.gguf, _hint(scope.get("quantization_config")))
    _refuse_opaque([tensors[name] for name in tensors if name in used])
    made = generated(declaration, scope)
    originals = {match.name: match.sources[0] for match in matches}
    kept = [match for match in _in_order(matches) if not _is_copy(match, originals, tensors)]
    made += [make_tensor(match, [tensors[source] for source in match.sources]) for match in kept]
    return [_stored(tensor, declaration.store_as_float32) for tensor in made]


def match_adapter(declaration: Declaration, adapter: Mapping[str, Info], scope: Scope) -> list[tuple[Match, list[Info]]]:
    """The rows whose sources an adapter has, with these, in the reference converter's order.

    Raises:
        ModelError: naming all tensors of the adapter that are unknown or have the wrong shape, and all that are missing
            although the adapter has other sources of the same row.
    """
    given, headless = _normalized_names(declaration, adapter)
    scope = {**scope, "headless": headless}
    problems = _Problems()
    counts = index_counts(declaration, MOST_TENSORS, scope)
    matches = list(_matches(declaration, given, counts, scope, problems, available=MOST_TENSORS))
    used = {source for match in matches for source in match.sources}
    problems.unknown |= {entry.name: None for name, entry in given.items() if name not in used}
    problems.raise_if_any("adapter", declaration.gguf, "Is this the model that the adapter was trained on?")
    return [(match, [given[source] for source in match.sources]) for match in _in_order(matches)]


def _is_ignored(name: str, tensor: Tensor, row: IgnoreRow, scope: Scope) -> bool:
    glob = row.pattern.format(**{value: scope.get(value) for value in placeholders(row.pattern)})
    if not (fnmatchcase(name, glob) or fnmatchcase(tensor.name, glob)):
        return False
    return not row.if_zero or (tensor.size <= MOST_ZEROS and not as_float32(tensor).load().any())


def _hint(quantization: Any) -> str:
    """The hint for mismatches."""
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method", "an unnamed method")
        name = clipped(str(method))
        return f"config.json says the checkpoint is quantized with {name}; the original checkpoint is the better source."
    return "Is this config.json the checkpoint's own? If so, its tensors can be described in a file: --arch-file FILE."


def _refuse_opaque(used: Sequence[Tensor]) -> None:
    """Raises UnsupportedError where a needed tensor has a type that cannot be read."""
    opaque = [tensor for tensor in used if tensor.type.name in OPAQUE_TYPES]
    if opaque:
        kinds = ", ".join(sorted({tensor.type.name for tensor in opaque}))
        raise UnsupportedError(
            f"{len(opaque)} tensors are stored as {kinds}, which cannot be converted: "
            + listed_names(tensor.name for tensor in opaque),
            hint="Use a checkpoint in bfloat16, float16 or float32.",
        )


def _normalized_names(declaration: Declaration, checkpoint: Mapping[str, Info]) -> tuple[dict[str, Info], bool]:
    """The checkpoint's tensors under the names that rows use, and whether it is a base model without its head."""
    names = [_normalized(declaration, given) for given in checkpoint]
    base = declaration.base_prefix
    headless = bool(base) and not any(name.startswith(base) for name in names)
    tensors: dict[str, Info] = {}
    for short, tensor in zip(names, checkpoint.values(), strict=True):
        name = base + short if headless else short
        if name in tensors:
            raise ModelError(f"the checkpoint holds {name} twice, as {tensors[name].name} and as {tensor.name}")
        tensors[name] = tensor
    return tensors, headless


def _normalized(declaration: Declaration, given: str) -> str:
    name = reduce(str.removeprefix, declaration.drop_prefixes, given)
    name = reduce(lambda text, piece: text.replace(piece, ""), declaration.drop_from_names, name)
    name = reduce(lambda text, pieces: text.replace(*pieces), declaration.replace_in_names.items(), name)
    old = next((ending for ending in declaration.rename_endings if name.endswith(ending)), None)
    return name if old is None else name.removesuffix(old) + declaration.rename_endings[old]


def index_counts(declaration: Declaration, available: int, scope: Scope) -> dict[str, int]:
    """The number of values of each placeholder.

    More layers than the checkpoint has tensors are refused. There may be more experts, as one tensor can hold all of them.
    """
    counts = {}
    counted_out = frozenset[str]().union(*(placeholders(row.name) for row in declaration.tensors))
    for index, expression in declaration.indices.items():
        count = expression.evaluate(scope)
        if count is None:
            source = declaration.values.get(expression.source, expression).source
            raise ModelError(f"config.json: no value for the number of {index}s (looked for {source})")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ModelError(f"config.json: {expression.source} is {shown(count)}, expected a count")
        if count > available and index in counted_out:
            raise ModelError(f"config.json: {expression.source} is {count}, but the checkpoint has {available} tensors")
        counts[index] = count
    return counts


def _matches(
    declaration: Declaration,
    tensors: Mapping[str, TensorInfo],
    counts: Mapping[str, int],
    scope: Scope,
    problems: _Problems,
    *,
    available: int | None = None,
) -> Iterator[Match]:
    """A match for every row and layer whose sources exist.

    With `available`, config.json may describe at most so many tensors, and none is required.
    """
    positions = {name: position for position, name in enumerate(tensors)}
    for order, declared in enumerate(declaration.tensors):
        most = len(tensors) if available is None else available
        ways = _possible_ways(declared, counts, most)
        wanted = _wanted(declared, counts)
        most_missing = len(problems.missing) + MOST_MISSING * (1 + most)
        for numbers in numbers_of(placeholders(declared.name), counts):
            here = {**scope, **numbers}
            if not declared.when.evaluate(here):
                continue
            needed = available is None and declared.required.evaluate(here)
            endless = len(problems.missing) > most_missing or (available is not None and wanted > most)
            if endless or (needed and not ways):
                raise ModelError(
                    f"config.json describes {wanted} tensors such as {declared.sources[0]}, "
                    f"but the checkpoint has {most} tensors"
                )
            if not ways:
                continue
            told = {**numbers, **derived_numbers(declaration, here)}
            row = next((way for way in ways if _is_held(source_names(way, told, counts), tensors)), ways[0])
            sources = source_names(row, told, counts)
            absent = [source for source in sources if source not in tensors] if sources else list(row.sources)
            if absent:
                if (available is None and row.required.evaluate(here)) or 0 < len(absent) < len(sources):
                    problems.missing |= dict.fromkeys(absent)
                continue
            for source in sources:
                if wrong := _misshapen(row, tensors[source], here):
                    problems.misshapen.setdefault(wrong, {})[tensors[source].name] = None
            last = max(positions[source] for source in sources)
            yield Match(row, row.name.format(**numbers), sources, here, (last, order))


def _is_held(sources: Sequence[str], tensors: Mapping[str, TensorInfo]) -> bool:
    return bool(sources) and all(source in tensors for source in sources)


def _possible_ways(row: TensorRow, counts: Mapping[str, int], available: int) -> list[TensorRow]:
    """The row and its alternatives, without those that need more source tensors than there are."""

    def gathered(way: TensorRow) -> int:
        indices = frozenset[str]().union(*map(placeholders, way.sources)) - placeholders(way.name)
        return math.prod(counts[index] for index in indices & counts.keys())

    return [way for way in (row, *row.alternatives) if gathered(way) <= available]


def _wanted(row: TensorRow, counts: Mapping[str, int]) -> int:
    """The number of tensors that config.json implies for the row's first source, in all layers."""
    return math.prod(counts[index] for index in (placeholders(row.name) | placeholders(row.sources[0])) & counts.keys())


def derived_numbers(declaration: Declaration, scope: Scope) -> dict[str, Any]:
    """The values of the placeholders that are derived from others, where `scope` has those."""
    return {name: formula.evaluate(scope) for name, formula in declaration.derived_indices.items()}


def numbers_of(indices: frozenset[str], counts: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Every combination of the values of these placeholders; none where the count of one is unknown."""
    names = [index for index in counts if index in indices]
    if len(names) < len(indices):
        return
    for values in itertools.product(*(range(counts[name]) for name in names)):
        yield dict(zip(names, values, strict=True))


def source_names(row: TensorRow, numbers: Mapping[str, int], counts: Mapping[str, int]) -> tuple[str, ...]:
    """The names of a row's sources, for these values of the placeholders in the GGUF name."""
    return tuple(
        source.format(**numbers, **gathered)
        for source in row.sources
        for gathered in numbers_of(placeholders(source) - numbers.keys(), counts)
    )


def _misshapen(row: TensorRow, tensor: TensorInfo, scope: Scope) -> tuple[str, str] | None:
    """The actual and the expected shape, where they differ."""
    if row.shape is None:
        return None
    expected = [extent.evaluate(scope) for extent in row.shape]
    fits = len(tensor.shape) == len(expected) and all(
        want in (None, have) for want, have in zip(expected, tensor.shape, strict=True)
    )
    return None if fits else (str(list(tensor.shape)), clipped(str(expected)))


def _in_order(matches: Sequence[Match]) -> list[Match]:
    """In the reference converter's order: each at the position of its last source, or of the last source of its group."""
    last_of_group: dict[tuple[Any, ...], int] = {}
    for match in matches:
        key = _group(match)
        last_of_group[key] = max(last_of_group.get(key, 0), match.place[0])
    return sorted(matches, key=lambda match: (last_of_group[_group(match)], match.place[1]))


def _is_copy(match: Match, originals: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensor is left out because it has the same data as `unless_equal` (tied). Reads both if necessary."""
    original = originals.get(match.row.unless_equal or "")
    return original is not None and have_same_numbers(tensors[match.sources[0]], tensors[original])


def _group(match: Match) -> tuple[Any, ...]:
    return (match.row.group or match.name, match.scope.get("layer") if match.row.group else None)


def make_tensor(match: Match, sources: Sequence[Tensor]) -> Tensor:
    """The GGUF tensor of a row, made from its sources."""
    tensor = GATHERS[match.row.gather].apply(sources) if match.row.gather is not None else sources[0]
    for call in match.row.transforms:
        with blaming(match.name, call):
            tensor = TRANSFORMS[call.name].apply(tensor, *call.evaluate(match.scope))
    return Renamed(match.name, tensor.shape, tensor.type, tensor)


@contextmanager
def blaming(name: str, call: Call) -> Iterator[None]:
    """Turn an error of a transform or generator into a ModelError that names the tensor."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"config.json: its values are invalid for {call.name} of {name}: {clipped(str(error))}") from error


def generated(declaration: Declaration, scope: Scope) -> list[Tensor]:
    """The tensors that are computed from hyperparameters alone."""
    made: list[Tensor] = []
    for row in declaration.generated:
        if row.when.evaluate(scope):
            with blaming(row.name, row.generator):
                values = GENERATORS[row.generator.name].apply(*row.generator.evaluate(scope))
            made.append(Generated(row.name, values.shape, F32, values))
    return made


def _stored(tensor: Tensor, always_float32: Sequence[str]) -> Tensor:
    """The tensor in the type in which it is stored in GGUF before quantization."""
    wants_float32 = (
        len(tensor.shape) <= 1
        or not tensor.name.endswith(".weight")
        or not (tensor.type in (F32, F16, BF16) or tensor.type.is_quantized)
        or any(fnmatchcase(tensor.name, glob) for glob in always_float32)
    )
    return replace(as_float32(tensor), name=tensor.name) if wants_float32 else tensor
