"""From GGUF tensors back to those of a checkpoint, by the rows that `mapping` reads in the other direction."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.expressions import Call
from quantcli.architectures.mapping import Scope, blaming, derived_numbers, index_counts, numbers_of, source_names
from quantcli.architectures.name_ranges import listed_names
from quantcli.architectures.schema import Declaration, TensorRow, placeholders
from quantcli.architectures.transforms import F32, GATHERS, TRANSFORMS, Piece, assemble, reshape
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.tensors.derived import Renamed
from quantcli.tensors.tensor import Tensor

MOST_TENSORS: Final = 1_000_000
"""Most tensors of a checkpoint that is written."""


@dataclass(frozen=True)
class _Described(Tensor):
    """A tensor of which only the shape is known, to follow the shapes through transforms."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Never called."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Step:
    """A transform with its arguments, and the shape of the tensor that it is applied to."""

    call: Call
    arguments: tuple[object, ...]
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.call.name}{self.arguments}{self.shape}"


@dataclass(frozen=True)
class _Undone:
    """A GGUF tensor, or what is left of it after some of its transforms are undone.

    sources   the names of the checkpoint's tensors that it is made of, and `shapes` their shapes
    steps     the transforms that are still to be undone, in the order in which they are applied
    """

    name: str
    row: TensorRow
    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[_Step, ...]
    tensor: Tensor


def original_tensors(declaration: Declaration, tensors: Mapping[str, Tensor], scope: Scope) -> list[Tensor]:
    """The tensors of the checkpoint that a GGUF file with these tensors was made from, in the order of the rows.

    Tensors that a GGUF file does not need (`[ignore]`) are not among them.

    Args:
        declaration: the architecture.
        tensors: those of the GGUF file by name, in types that can be computed with.
        scope: the hyperparameters of the checkpoint.

    Raises:
        ModelError: naming the tensors that are missing, unknown, or of another shape.
        UnsupportedError: if a transform has no inverse, with the reason.
    """
    refuse_without_inverse(declaration, tensors)
    matched = list(_matched(declaration, tensors, scope))
    known = {entry.name for entry in matched} | {row.name for row in declaration.generated}
    if unknown := [name for name in tensors if name not in known]:
        what = f"{len(unknown)} tensors that the architecture {declaration.name} has not"
        raise ModelError(f"{what}: {listed_names(unknown)}")
    found: dict[str, Tensor] = {}
    for entry in _undone(matched):
        for name, tensor in _separated(entry):
            found.setdefault(name, tensor)
    return list(found.values())


def refuse_without_inverse(declaration: Declaration, names: Collection[str]) -> None:
    """Refuse tensors whose transforms have no inverse.

    Raises:
        UnsupportedError: for the first of them, with the reason.
    """
    for row in declaration.tensors:
        for call in row.transforms:
            transform, pattern = TRANSFORMS[call.name], name_pattern(row.name)
            if transform.undo is None and (held := next(filter(pattern.fullmatch, names), None)):
                what = f"the transform {call.name} of {held} has no inverse: {transform.why}"
                raise UnsupportedError(f"{declaration.title} cannot be exported: {what}")


@cache
def name_pattern(name: str) -> re.Pattern[str]:
    """The names that a pattern with placeholders stands for. Each number is a group."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(name)))


def chosen_way(row: TensorRow, scope: Scope) -> TensorRow:
    """The layout in which a row's tensor is exported: the first alternative that is `exported`, or the row itself."""
    return next((way for way in row.alternatives if way.exported.evaluate(scope)), row)


def _matched(declaration: Declaration, tensors: Mapping[str, Tensor], scope: Scope) -> Iterator[_Undone]:
    counts = index_counts(declaration, MOST_TENSORS, scope)
    missing: dict[str, None] = {}
    for declared in declaration.tensors:
        for numbers in numbers_of(placeholders(declared.name), counts):
            here = {**scope, **numbers}
            name = declared.name.format(**numbers)
            if not declared.when.evaluate(here):
                continue
            if name not in tensors:
                if declared.required.evaluate(here) and declared.unless_equal is None:
                    missing[name] = None
                continue
            way = chosen_way(declared, here)
            sources = source_names(way, {**numbers, **derived_numbers(declaration, here)}, counts)
            yield _described(name, way, sources, tensors[name], here)
    if missing:
        raise ModelError(f"{len(missing)} missing: {listed_names(missing)}")


def _described(name: str, row: TensorRow, sources: tuple[str, ...], tensor: Tensor, scope: Scope) -> _Undone:
    """A tensor with its sources and steps. The shapes are followed forward from those of the sources."""
    shape = _source_shape(row, tensor, scope)
    described: Tensor = _Described(name, shape, F32)
    if row.gather is not None:
        described = GATHERS[row.gather].apply([described] * len(sources))
    steps = []
    for call in row.transforms:
        with blaming(name, call):
            arguments = call.evaluate(scope)
            steps.append(_Step(call, arguments, described.shape))
            described = TRANSFORMS[call.name].apply(described, *arguments)
    if described.shape != tensor.shape and described.shape == with_axes(tensor.shape, len(described.shape)):
        tensor = reshape(tensor, described.shape)
    if described.shape != tensor.shape:
        what = f"{list(tensor.shape)} where the metadata say {list(described.shape)}"
        raise ModelError(f"tensor {name!r} has another shape: {what}")
    return _Undone(name, row, sources, (shape,) * len(sources), tuple(steps), tensor)


def with_axes(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A shape with so many axes: GGUF leaves out leading ones of length 1."""
    return (1,) * (axes - len(shape)) + shape


def _source_shape(row: TensorRow, tensor: Tensor, scope: Scope) -> tuple[int, ...]:
    """The shape of each source. What the row leaves open is taken from the tensor, where no transform changes it."""
    extents = None if row.shape is None else [extent.evaluate(scope) for extent in row.shape]
    if extents is not None and all(isinstance(extent, int) for extent in extents):
        return tuple(extents)
    whole = tensor.shape[1:] if row.gather == "stack" else tensor.shape
    if row.transforms and extents is not None and len(extents) != len(whole):
        raise UnsupportedError(f"the shape that {tensor.name} has in the checkpoint is not known")
    return tuple(whole) if extents is None else tuple(
        extent if isinstance(extent, int) else have for extent, have in zip(extents, whole, strict=True)
    )


def _undone(entries: Sequence[_Undone]) -> Iterator[_Undone]:
    """The tensors with all steps undone. Pieces of one tensor of the checkpoint become one."""
    waiting: list[_Undone] = list(entries)
    while waiting:
        pieces: dict[tuple[tuple[str, ...], str], list[tuple[_Undone, Piece]]] = {}
        for entry in waiting:
            done, piece = _undo(entry)
            if piece is None:
                yield done
            else:
                key = done.sources, "".join(step.key for step in done.steps)
                pieces.setdefault(key, []).append((done, piece))
        waiting = [replace(group[0][0], tensor=assemble([piece for _, piece in group])) for group in pieces.values()]


def _undo(entry: _Undone) -> tuple[_Undone, Piece | None]:
    """Undo steps up to one that gives a piece."""
    tensor = entry.tensor
    for place in reversed(range(len(entry.steps))):
        step = entry.steps[place]
        transform = TRANSFORMS[step.call.name]
        assert transform.undo is not None  # as `refuse_without_inverse` has seen
        with blaming(entry.name, step.call):
            undone = transform.undo(tensor, step.shape, *step.arguments)
        if isinstance(undone, Piece):
            if len(undone.places) < undone.shape[undone.axis]:
                return replace(entry, steps=entry.steps[:place]), undone
            undone = undone.tensor
        tensor = undone
    return replace(entry, steps=(), tensor=tensor), None


def _separated(entry: _Undone) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors of a gathered tensor, by name."""
    gather = entry.row.gather
    parts = [entry.tensor] if gather is None else GATHERS[gather].undo(entry.tensor, entry.shapes)
    for name, tensor in itertools.zip_longest(entry.sources, parts):
        yield name, Renamed(name, tensor.shape, tensor.type, tensor)
