"""Tensor transforms from checkpoint to GGUF: pure functions on lazy tensors.

`TRANSFORMS` take one tensor, `GATHERS` take several. Architecture files refer to both by name. Results are the lazy tensors
of `tensors.derived`. Each has its inverse beside it, where it has one: from the GGUF tensor back to the checkpoint's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError
from quantcli.tensors.bfloat16 import bfloat16_to_float32
from quantcli.tensors.column_blocks import BLOCK_BYTES
from quantcli.tensors.derived import Assembled, Computed, Joined, JoinedVectors, RearrangedRows, Renamed, Reshaped
from quantcli.tensors.tensor import Tensor
from quantcli.tensors.transposed import Transposed

F32: Final = TYPES["F32"]
F16: Final = TYPES["F16"]
BF16: Final = TYPES["BF16"]

# --- Numbers --------------------------------------------------------------------------------------------------------------


def _to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def as_float32(tensor: Tensor) -> Tensor:
    """Convert to F32: exact for BF16 and F16, rounded for F64."""
    if tensor.type is F32:
        return tensor
    _plain(tensor)
    return Computed(tensor.name, tensor.shape, F32, tensor, bfloat16_to_float32 if tensor.type is BF16 else _to_float32)


def _arithmetic(tensor: Tensor) -> Tensor:
    """The tensor in the type for arithmetic: as in the reference converter F16 for F16, and F32 for all others."""
    return tensor if tensor.type is F16 else as_float32(tensor)


def _plain(tensor: Tensor) -> None:
    if tensor.type.is_quantized:
        raise ModelError(f"tensor {tensor.name!r} is stored as {tensor.type.name}, which cannot be computed with")


# --- The vocabulary -------------------------------------------------------------------------------------------------------


def add(tensor: Tensor, addend: float) -> Tensor:
    """`tensor + addend`, for norms whose weight is stored minus one."""
    source = _arithmetic(tensor)
    return Computed(source.name, source.shape, source.type, source, partial(_plus, addend))


def _plus(addend: float, values: NDArray[Any]) -> NDArray[Any]:
    return values + values.dtype.type(addend)  # type: ignore[no-any-return]


def negative_exp(tensor: Tensor) -> Tensor:
    """`-exp(tensor)`, for an SSM's decay that is stored as its logarithm (A_log).

    The result is correctly rounded, to half precision for F16. The reference converter's depends on its machine's math
    library. In types other than F16, about one in a hundred of its results differs by one unit in the last place. For
    logarithms of small integers, the usual initial values, none does.
    """
    source = _arithmetic(tensor)
    return Computed(source.name, source.shape, source.type, source, _negative_exp)


def _negative_exp(values: NDArray[Any]) -> NDArray[Any]:
    return -np.exp(values.astype(np.float64)).astype(np.float32).astype(values.dtype)


def rearrange_rows(tensor: Tensor, extents: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Reshape the leading axes (of a vector, its only axis) to `extents`, and permute them by `axes`. One extent may be -1.

    Raises:
        ModelError: if the product of the extents is not the number of rows.
    """
    length = tensor.rows if len(tensor.shape) > 1 else tensor.size
    if not all(isinstance(extent, int) and (extent > 0 or extent == -1) for extent in extents):
        raise ModelError(f"tensor {tensor.name!r}: {list(extents)} are not valid extents")
    fixed = math.prod(extent for extent in extents if extent != -1)
    full = [extent if extent != -1 else length // fixed for extent in extents]
    if math.prod(full) != length:
        raise ModelError(f"tensor {tensor.name!r}: {length} rows cannot be reshaped to {' x '.join(map(str, extents))}")
    strides = [math.prod(full[place + 1 :]) for place in range(len(full))]
    return RearrangedRows(
        tensor.name,
        tensor.shape,
        tensor.type,
        tensor,
        tuple(full[place] for place in axes),
        tuple(strides[place] for place in axes),
        0,
    )


def part(tensor: Tensor, axis: int, index: int, parts: int) -> Tensor:
    """The `index`-th of `parts` equal parts along an axis other than the last, or along the only axis of a vector.

    Raises:
        ModelError: if the axis is not divisible by `parts`.
    """
    extent = tensor.shape[axis] if -len(tensor.shape) <= axis < len(tensor.shape) else 0
    if not extent or extent % parts:
        what = f"cannot be split into {parts} equal parts along axis {axis}"
        raise ModelError(f"tensor {tensor.name!r} {list(tensor.shape)} {what}")
    size = extent // parts
    return cut(tensor, axis, index * size, (index + 1) * size)


def cut(tensor: Tensor, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
    """The slice `start:stop:step` along an axis other than the last, or along the only axis of a vector.

    Raises:
        ModelError: if the slice is out of range.
    """
    rows = tensor.shape[:-1] if len(tensor.shape) > 1 else tensor.shape
    place = axis % len(tensor.shape)
    if place >= len(rows) or not 0 <= start < stop <= rows[place] or step < 1:
        raise ModelError(f"tensor {tensor.name!r} {list(tensor.shape)} has no range {start}:{stop} along axis {axis}")
    below = math.prod(rows[place + 1 :])
    count = len(range(start, stop, step))
    shape = tuple(count if other == place else extent for other, extent in enumerate(tensor.shape))
    extents = (math.prod(rows[:place]), count, below)
    strides = (rows[place] * below, step * below, 1)
    return RearrangedRows(tensor.name, shape, tensor.type, tensor, extents, strides, start * below)


def reshape(tensor: Tensor, extents: Sequence[int]) -> Tensor:
    """Reshape to `extents`.

    Raises:
        ModelError: if their product is not the number of elements.
    """
    if min(extents) < 1 or math.prod(extents) != tensor.size:
        wanted = " x ".join(map(str, extents))
        raise ModelError(f"tensor {tensor.name!r} {list(tensor.shape)} cannot be reshaped to {wanted}")
    kind = Renamed if tuple(extents[-1:]) == tensor.shape[-1:] else Reshaped
    return kind(tensor.name, tuple(extents), tensor.type, tensor)


def ungroup_rows(tensor: Tensor, groups: int, sizes: Sequence[int]) -> Tensor:
    """De-interleave `groups` groups of rows with parts of the given `sizes`: all first parts, then all second parts ...

    For fused QKV projections that are interleaved by key-value head: the queries of a group, its key, its value. Of a
    vector, its elements are the rows.

    Raises:
        ModelError: if groups times sizes is not the number of rows.
    """
    length = tensor.rows if len(tensor.shape) > 1 else tensor.size
    if groups < 1 or min(sizes) < 1 or groups * sum(sizes) != length:
        raise ModelError(f"tensor {tensor.name!r}: {length} rows are not {groups} groups of {' + '.join(map(str, sizes))}")
    parts = tuple(
        RearrangedRows(
            tensor.name,
            (groups * size, *tensor.shape[1:]),
            tensor.type,
            tensor,
            (groups, size),
            (sum(sizes), 1),
            sum(sizes[:place]),
        )
        for place, size in enumerate(sizes)
    )
    return concatenate(parts)


def rope_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Permute rows of Q or K from Hugging Face's RoPE layout to that of GGUF's `norm` RoPE.

    Hugging Face rotates row `i` of a head with row `i + head_dim / 2`. GGUF's `norm` RoPE rotates row `2 i` with `2 i + 1`.
    Works on `(heads * head_dim, ...)` weights and `(heads * head_dim,)` biases.
    """
    return rearrange_rows(tensor, [heads, 2, -1], [0, 2, 1])


def rope_halves(tensor: Tensor, head_size: int, rotated: int) -> Tensor:
    """Permute the first `rotated` rows of each head of Q or K, from pairs of neighbours to those of two halves.

    For models that rotate row `2 i` with `2 i + 1` where GGUF's RoPE rotates row `i` with `i + rotated / 2`. Works on
    weights and biases, as `rope_pairs`. Where `rotated` is 0, the tensor stays as it is.

    Raises:
        ModelError: if the rows are not heads of `head_size`, or the rotated rows are no pairs of a head.
    """
    if rotated == 0:
        return tensor
    length = tensor.rows if len(tensor.shape) > 1 else tensor.size
    if head_size < 1 or length % head_size or not 0 < rotated <= head_size or rotated % 2:
        raise ModelError(f"tensor {tensor.name!r}: {length} rows are not heads of {head_size} with {rotated} to rotate")
    parts = []
    for start in range(0, length, head_size):
        parts.append(_picked(tensor, (2, rotated // 2), (1, 2), start))
        if rotated < head_size:
            parts.append(_picked(tensor, (head_size - rotated,), (1,), start + rotated))
    return concatenate(parts)


def _picked(tensor: Tensor, extents: tuple[int, ...], strides: tuple[int, ...], start: int) -> Tensor:
    """Rows of a tensor: from `start` on, by extents and strides."""
    shape = (math.prod(extents), *tensor.shape[1:])
    return RearrangedRows(tensor.name, shape, tensor.type, tensor, extents, strides, start)


def transpose(tensor: Tensor) -> Tensor:
    """Transpose the last two axes, for layers that store `(in, out)`."""
    _plain(tensor)
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    return Transposed(tensor.name, shape, tensor.type, tensor)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape along a new first axis; in F32 where their types differ."""
    parts = _agreeing(tensors)
    return Joined(parts[0].name, (len(parts), *parts[0].shape), parts[0].type, parts)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors along their first axis; in F32 where their types differ."""
    parts = _agreeing(tensors, leading_axes=1)
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    kind = Joined if len(shape) > 1 else JoinedVectors
    return kind(parts[0].name, shape, parts[0].type, parts)


def _agreeing(tensors: Sequence[Tensor], leading_axes: int = 0) -> tuple[Tensor, ...]:
    """The tensors in one type. Raises ModelError unless their shapes agree after `leading_axes`."""
    first = tensors[0]
    for tensor in tensors[1:]:
        if tensor.shape[leading_axes:] != first.shape[leading_axes:]:
            raise ModelError(
                f"tensors {first.name!r} {list(first.shape)} and {tensor.name!r} {list(tensor.shape)} "
                "cannot be concatenated"
            )
    return tuple(tensors) if len({tensor.type for tensor in tensors}) == 1 else tuple(map(as_float32, tensors))


def have_same_numbers(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes. They are read up to the first difference."""
    if (tensor.type, tensor.shape) != (other.type, other.shape):
        return False
    step = max(1, BLOCK_BYTES // max(1, tensor.row_bytes))
    ours, theirs = (np.empty((step, tensor.row_bytes), np.uint8) for _ in range(2))
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        tensor.read(start, stop, ours[: stop - start])
        other.read(start, stop, theirs[: stop - start])
        if not np.array_equal(ours[: stop - start], theirs[: stop - start]):
            return False
    return True


# --- Inverses -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A tensor that is the range `places` along `axis` of a larger tensor of `shape`."""

    tensor: Tensor
    shape: tuple[int, ...]
    axis: int
    places: range


def assemble(pieces: Sequence[Piece]) -> Tensor:
    """The tensor that the pieces make up.

    Raises:
        ModelError: if they overlap, do not agree in shape and axis, or leave a part of the tensor out.
    """
    first = pieces[0]
    found = sorted(place for piece in pieces for place in piece.places)
    agree = all((piece.shape, piece.axis) == (first.shape, first.axis) for piece in pieces)
    if not agree or found != list(range(first.shape[first.axis])):
        what = f"of {first.shape[first.axis]} rows along axis {first.axis} it has {len(set(found))}"
        told = "the rest of the checkpoint's tensor is not in the GGUF file"
        raise ModelError(f"tensor {first.tensor.name!r}: {told}: {what}")
    parts = _agreeing([piece.tensor for piece in pieces], leading_axes=first.axis + 1)
    places = tuple(piece.places for piece in pieces)
    if len(first.shape) > 1:
        return Assembled(first.tensor.name, first.shape, parts[0].type, parts, first.axis, places)
    columns = tuple(reshape(part, [part.size, 1]) for part in parts)
    column = Assembled(first.tensor.name, (first.shape[0], 1), parts[0].type, columns, 0, places)
    return reshape(column, first.shape)


def _without(tensor: Tensor, shape: tuple[int, ...], addend: float) -> Tensor:
    """Exact for numbers down to about a millionth of the addend; smaller ones have lost digits in the sum."""
    return add(tensor, -addend)


def _uncut(tensor: Tensor, shape: tuple[int, ...], axis: int, start: int, stop: int, step: int = 1) -> Piece:
    return Piece(tensor, shape, axis % len(shape), range(start, stop, step))


def _unpart(tensor: Tensor, shape: tuple[int, ...], axis: int, index: int, parts: int) -> Piece:
    size = shape[axis] // parts
    return _uncut(tensor, shape, axis, index * size, (index + 1) * size)


def _rearrange_back(tensor: Tensor, shape: tuple[int, ...], extents: Sequence[int], axes: Sequence[int]) -> Tensor:
    length = math.prod(shape[:-1]) if len(shape) > 1 else shape[0]
    fixed = math.prod(extent for extent in extents if extent != -1)
    full = [extent if extent != -1 else length // fixed for extent in extents]
    return rearrange_rows(tensor, [full[place] for place in axes], [list(axes).index(place) for place in range(len(axes))])


def _rope_neighbours(tensor: Tensor, shape: tuple[int, ...], head_size: int, rotated: int) -> Tensor:
    parts = [tensor] if rotated == 0 else []
    for start in range(0, (tensor.rows if len(tensor.shape) > 1 else tensor.size) if rotated else 0, head_size):
        parts.append(_picked(tensor, (rotated // 2, 2), (1, rotated // 2), start))
        if rotated < head_size:
            parts.append(_picked(tensor, (head_size - rotated,), (1,), start + rotated))
    return concatenate(parts)


def _group_rows(tensor: Tensor, shape: tuple[int, ...], groups: int, sizes: Sequence[int]) -> Tensor:
    whole = (groups, sum(sizes), *(shape[1:] or (1,)))
    pieces = []
    for place, size in enumerate(sizes):
        before = sum(sizes[:place])
        rows = cut(tensor, 0, groups * before, groups * (before + size))
        pieces.append(Piece(reshape(rows, [groups, size, *whole[2:]]), whole, 1, range(before, before + size)))
    return reshape(assemble(pieces), shape)


def _unstack(tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors that are stacked, of these shapes."""
    if len(tensor.shape) == 1:  # vectors of one element
        tensor = reshape(tensor, [tensor.size, 1])
    return [reshape(cut(tensor, 0, index, index + 1), shape or [1]) for index, shape in enumerate(shapes)]


def _unconcatenate(tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors that are concatenated, of these shapes."""
    ends = [sum(shape[0] for shape in shapes[: place + 1]) for place in range(len(shapes))]
    return [cut(tensor, 0, end - shape[0], end) for end, shape in zip(ends, shapes, strict=True)]


@dataclass(frozen=True)
class Transform:
    """A transform and its inverse.

    apply   (tensor, *arguments) -> tensor
    undo    (the result, the shape of the tensor, *arguments) -> the tensor; or a piece of it, where others have the rest.
            None where there is no inverse
    why     why there is none
    """

    apply: Callable[..., Tensor]
    undo: Callable[..., Tensor | Piece] | None
    why: str = ""


TRANSFORMS: Final[Mapping[str, Transform]] = MappingProxyType(
    {
        "add": Transform(add, _without),
        "as_float32": Transform(as_float32, lambda tensor, shape: tensor),
        "cut": Transform(cut, _uncut),
        "negative_exp": Transform(negative_exp, None, "several numbers have the same exponential in single precision"),
        "part": Transform(part, _unpart),
        "rearrange_rows": Transform(rearrange_rows, _rearrange_back),
        "reshape": Transform(reshape, lambda tensor, shape, extents: reshape(tensor, shape)),
        "rope_halves": Transform(rope_halves, _rope_neighbours),
        "rope_pairs": Transform(rope_pairs, lambda tensor, shape, heads: rearrange_rows(tensor, [heads, -1, 2], [0, 2, 1])),
        "transpose": Transform(transpose, lambda tensor, shape: transpose(tensor)),
        "ungroup_rows": Transform(ungroup_rows, _group_rows),
    }
)
"""Transforms of one tensor, with arguments."""


@dataclass(frozen=True)
class Gather:
    """A function that combines several tensors to one, and its inverse, which takes the result and their shapes."""

    apply: Callable[[Sequence[Tensor]], Tensor]
    undo: Callable[[Tensor, Sequence[tuple[int, ...]]], list[Tensor]]


GATHERS: Final[Mapping[str, Gather]] = MappingProxyType(
    {
        "concatenate": Gather(concatenate, _unconcatenate),
        "stack": Gather(stack, _unstack),
    }
)
"""Functions that combine several tensors to one."""


def llama3_rope_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Llama 3's RoPE scaling: the divisor of each frequency, `(head_dim / 2,)` float32.

    It is `factor` for long wavelengths, 1 for short ones, and interpolated between. Source: `generate_extra_tensors` of the
    reference converter's llama. Single precision, and reciprocals where the reference divides by a torch tensor, reproduce
    its bits. The power is correctly rounded; torch's depends on the machine, and in few places is off by one unit.
    """
    single = np.float32
    base, factor = rope.get("rope_theta", 10000.0), rope.get("factor", 8.0)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    context = rope.get("original_max_position_embeddings", 8192)
    with np.errstate(all="ignore"):  # results of a division by zero are not used
        exponents = np.arange(0, head_dim, 2, dtype=single) / single(head_dim)
        frequencies = single(1) / np.power(np.float64(single(base)), exponents.astype(np.float64)).astype(single)
        wavelengths = single(1) / frequencies * single(2 * math.pi)
        smooth = (single(1) / wavelengths * single(context) - single(low)) / single(high - low)
        between = single(1) / ((single(1) - smooth) / single(factor) + smooth)
        slowed = np.where(wavelengths > single(context / low), single(factor), between)
        return np.where(wavelengths < single(context / high), single(1), slowed).astype(single)


def rope_factors(factors: Sequence[Any], count: int) -> NDArray[np.float32]:
    """RoPE factors listed in config.json (LongRoPE), `(count,)` float32.

    Raises:
        ValueError: if there are not `count` of them.
    """
    values = np.array(factors, np.float32)
    if values.shape != (count,):
        raise ValueError(f"{len(factors)} rope factors, expected {count}")
    return values


_USUAL_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Those of all published models."""


def _llama3_parameters(factors: NDArray[np.float32], rope: Mapping[str, Any] | None, head_dim: int) -> dict[int, Any]:
    """The RoPE table of these factors, as argument 0. Nothing where they are not those of the usual parameters."""
    known = rope or {}
    for context in _LLAMA3_CONTEXTS:
        table = {"factor": float(factors.max()), **_USUAL_LLAMA3, "original_max_position_embeddings": context}
        if head_dim and np.array_equal(llama3_rope_factors({**known, **table}, head_dim), factors):
            return {0: table}
    return {}


_LLAMA3_CONTEXTS: Final = tuple(1 << power for power in range(13, 3, -1))
"""Context lengths that a model may have been trained with before it was stretched: 8192, as all published models, first."""


@dataclass(frozen=True)
class Generator:
    """A function that computes a tensor from hyperparameters, and its inverse.

    apply   (*arguments) -> values
    undo    (values, *arguments) -> values of arguments by their places, as far as they are determined. The given arguments
            are what is known of them.
    """

    apply: Callable[..., NDArray[np.float32]]
    undo: Callable[..., dict[int, Any]]


GENERATORS: Final[Mapping[str, Generator]] = MappingProxyType(
    {
        "llama3_rope_factors": Generator(llama3_rope_factors, _llama3_parameters),
        "rope_factors": Generator(
            rope_factors, lambda values, factors, count: {0: [float(str(value)) for value in values]}
        ),
    }
)
"""Functions that compute tensors from hyperparameters."""
