"""compressed-tensors, what LLM Compressor writes: integers of 1 to 8 bits packed into words, or a number a byte, or FP4.

`X.weight_packed` with `X.weight_shape` (pack-quantized), or `X.weight` in int8 or float8, or two FP4 codes a byte (NVFP4,
MXFP4) in `X.weight_packed`; scales in `X.weight_scale`, for a row, groups of columns, rectangles or all; zero points in
`X.weight_zero_point`; with act-order the group of each column in `X.weight_g_idx`. What a module has tells its format.
Source: the compressors of compressed-tensors, `dequant_packed` of the reference converter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from quantcli.formats.errors import UnsupportedError
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp8 import UNUSED, WEIGHTS, scaled_bytes
from quantcli.formats.prequantized.mxfp4 import BYTES, repacked
from quantcli.formats.prequantized.numbers import (
    E2M1,
    FLOATS,
    Floats,
    Packed,
    PackedRows,
    Plain,
    integers,
    read_floats,
    read_small,
    with_rows,
)
from quantcli.formats.prequantized.scaled import ColumnGroups, Grid, Scaled, scale_grid
from quantcli.formats.tensor import MAX_COUNT, Tensor
from quantcli.kernels.types import TYPES

_FORMATS: Final = (
    "dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp4-pack-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "pack-quantized",
)  # fmt: skip
_BITS: Final = range(1, 9)
_TITLE: Final = "compressed-tensors"
_NV_GROUP: Final = 16


def take(companions: Companions) -> None:
    """Every module with packed weights, and every tensor of bytes with scales."""
    _refuse_other_formats(companions)
    companions.expect(".weight_shape")
    groups = list(_weight_settings(companions))
    bits = [bits for bits in _BITS if any(group.get("num_bits") == bits for group in groups)]
    block = next((_block(group) for group in groups if _block(group)), None)
    for stem in companions.stems(".weight_packed"):
        with companions.module(stem):
            kind = companions.tensors[f"{stem}.weight_packed"].type.name
            companions.put(
                f"{stem}.weight_packed", _packed(companions, stem, bits) if kind == "I32" else _fp4(companions, stem)
            )
    for name, tensor in companions.tensors.items():
        if f"{name}_scale" in companions.tensors and tensor.type.name in ("I8", *WEIGHTS):
            with companions.module(name):
                companions.put(name, _bytes(companions, name, block))
    if companions.config.get("format") == "dense":
        companions.drop(".weight_scale", ".weight_zero_point")
    companions.drop(*UNUSED, ".input_global_scale", ".input_zero_point", ".output_zero_point")


def _refuse_other_formats(companions: Companions) -> None:
    sparsity = companions.setting("sparsity_config", dict, {}).get("format") or "dense"
    groups = companions.setting("config_groups", dict, {}).values()
    formats = [companions.setting("format", str), *(group.get("format") for group in groups if isinstance(group, Mapping))]
    foreign = [name for name in formats if name is not None and name not in _FORMATS]
    foreign += [] if sparsity == "dense" else [sparsity]
    if foreign:
        raise UnsupportedError(
            f"config.json: {_TITLE} in the format {foreign[0]!r} is not supported, only {', '.join(_FORMATS)}",
            hint="Use the original checkpoint.",
        )


def _weight_settings(companions: Companions) -> Iterator[Mapping[str, Any]]:
    """What the configuration says of the weights of each group of modules."""
    for group in companions.setting("config_groups", dict, {}).values():
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping):
            yield group["weights"]


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    sizes = settings.get("block_structure")
    fits = isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes)
    return (sizes[0], sizes[1]) if isinstance(sizes, list) and fits else None


def _packed(companions: Companions, stem: str, possible_bits: list[int]) -> Tensor:
    words = companions.take(f"{stem}.weight_packed", ("I32",))
    shape = _shape(companions.take(f"{stem}.weight_shape", ("I32", "I64"), 1))
    scales = companions.take(f"{stem}.weight_scale", FLOATS)
    order = companions.find(f"{stem}.weight_g_idx")
    length = shape[-1]
    fitting = [bits for bits in possible_bits or _BITS if -(-length * bits // 32) == words.row_length]
    if words.shape[:-1] != shape[:-1] or not fitting:
        wanted = f" at {' or '.join(map(str, possible_bits))} bits" if possible_bits else ""
        raise ValueError(f"weight_packed {list(words.shape)} does not fit a weight of shape {list(shape)}{wanted}")
    bits = fitting[0]
    half = 1 << (bits - 1)
    grid = scale_grid(scales, shape)
    zeros = _zeros(companions, stem, bits, grid, shape)
    if order is not None:
        if order.type.name not in ("I32", "I64") or order.shape != (length,):
            raise ValueError(f"weight_g_idx is {order.type.name} {list(order.shape)}, expected I32 [{length}]")
        columns = ColumnGroups(with_rows(order, length))
        grid = replace(grid, columns=columns)
        zeros = zeros and replace(zeros, columns=columns)
    levels = Packed(words, bits, length, integers(bits, half))
    return Scaled(f"{stem}.weight", shape, TYPES["F32"], f"{_TITLE} int{bits}", levels, grid, zeros)


def _zeros(companions: Companions, stem: str, bits: int, grid: Grid, shape: tuple[int, ...]) -> Grid | None:
    """The zero points of a packed weight: packed too where rows or groups have some, int8 where one is for all."""
    zeros = companions.find(f"{stem}.weight_zero_point")
    if zeros is None:
        _refuse_to_do_without_zeros(companions, stem)
        return None
    if zeros.type.name == "I8":
        return scale_grid(zeros, shape)
    groups = -(-shape[-1] // grid.width)
    expected = (-(-shape[-2] * bits // 32), groups)
    if len(shape) != 2 or zeros.type.name != "I32" or zeros.shape != expected or grid.height != 1:
        raise ValueError(f"weight_zero_point is {zeros.type.name} {list(zeros.shape)}, expected I32 {list(expected)}")
    return replace(grid, numbers=PackedRows(zeros, bits, integers(bits, 1 << (bits - 1))))


def _refuse_to_do_without_zeros(companions: Companions, stem: str) -> None:
    """Raise ValueError where all groups of modules have zero points."""
    groups = list(_weight_settings(companions))
    if groups and all(group.get("symmetric") is False for group in groups):
        raise ValueError(f"the zero points of {stem} are missing, where the quantization_config says symmetric: false")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape that a tensor of numbers tells.

    Raises:
        ValueError: if it is none.
    """
    if not 2 <= tensor.size <= 3:
        raise ValueError(f"{tensor.name} has {tensor.size} values, expected 2")
    shape = tuple(map(int, read_small(tensor)))
    if not all(0 < size <= MAX_COUNT for size in shape):
        raise ValueError(f"{tensor.name} is {list(shape)}, which is no shape")
    return shape


def _bytes(companions: Companions, name: str, block: tuple[int, int] | None) -> Tensor:
    weight = companions.take(name, ("I8", *WEIGHTS))
    if len(weight.shape) < 2:
        raise ValueError(f"the shape {list(weight.shape)} is not that of a matrix")
    scales = scale_grid(companions.take(f"{name}_scale", FLOATS), weight.shape, block)
    zeros = companions.find(f"{name}_zero_point")
    kind, zero_grid = "int8" if weight.type.name == "I8" else "FP8", None
    if zeros is None:
        _refuse_to_do_without_zeros(companions, name)
    else:
        zero_grid = scale_grid(zeros, weight.shape, block)
    return scaled_bytes(weight, scales, f"{_TITLE} {kind}", zero_grid)


def _fp4(companions: Companions, stem: str) -> Tensor:
    codes = companions.take(f"{stem}.weight_packed", ("U8",), 2)
    whole = companions.find(f"{stem}.weight_global_scale")
    shape = (codes.shape[0], codes.shape[1] * 2)
    if whole is None:
        return repacked(f"{stem}.weight", shape, codes, companions.take(f"{stem}.weight_scale", BYTES, 2))
    scales = companions.take(f"{stem}.weight_scale", ("F8_E4M3",), 2)
    return nvfp4(f"{stem}.weight", codes, scales, whole, _TITLE, inverse=True)


def nvfp4(name: str, codes: Tensor, scales: Tensor, whole: Tensor, title: str, *, inverse: bool) -> Tensor:
    """A weight of FP4 codes, two a byte, under an E4M3 float for each 16 of a row and one float32 for all of them, by which
    those are multiplied, or with `inverse` divided.

    Raises:
        ValueError: if the scales do not fit.
    """
    shape = (codes.shape[0], codes.shape[1] * 2)
    if scales.shape != (shape[0], shape[1] // _NV_GROUP) or shape[1] % _NV_GROUP or whole.size != 1 or not codes.size:
        raise ValueError(f"scales of shape {list(scales.shape)} do not fit a weight of shape {list(shape)}")
    one = with_rows(whole, 1)

    def under_all(values: Floats) -> Floats:
        factor = read_floats(one, 0, 1)
        return values / factor if inverse else values * factor

    levels = Packed(codes, 4, shape[1], E2M1)
    grid = Grid(Plain(scales, under_all), math.prod(shape[:-1]), 1, _NV_GROUP)
    return Scaled(name, shape, TYPES["F32"], f"{title} NVFP4", levels, grid)
