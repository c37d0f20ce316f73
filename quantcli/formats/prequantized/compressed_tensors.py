"""compressed-tensors, the format of LLM Compressor: integers of 1 to 8 bits in packed words, int8, FP8, FP6 or FP4.

    X.weight_packed       packed words, with X.weight_shape (pack-quantized); or codes of four or six bits in a stream of
                          bytes (NVFP4, MXFP4, MXFP6)
    X.weight              int8 or float8
    X.weight_scale        for each row, group of columns or block, or one for all
    X.weight_zero_point   likewise
    X.weight_g_idx        with act-order, the group of each column

The format of a module is recognised by its tensors. Source: the compressors of compressed-tensors, `dequant_packed` of
llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp4 import divided, nvfp4
from quantcli.formats.prequantized.fp8 import UNUSED, WEIGHTS, scaled_bytes
from quantcli.formats.prequantized.mxfp4 import MXFP4, repacked
from quantcli.formats.prequantized.numbers import (
    E2M3,
    FLOAT_TABLES,
    FLOATS,
    INTEGERS,
    SCALES,
    Packed,
    PackedRows,
    exponents,
    integers,
    read_small,
    with_rows,
)
from quantcli.formats.prequantized.scaled import ColumnGroups, Grid, Scaled, scale_grid
from quantcli.tensors.tensor import MAX_COUNT, Tensor

_FORMATS: Final = (
    "dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp4-pack-quantized", "mxfp6-pack-quantized",
    "mxfp8-quantized", "naive-quantized", "nvfp4-pack-quantized", "pack-quantized",
)  # fmt: skip
_BITS: Final = range(1, 9)
_TITLE: Final = "compressed-tensors"
_OFFLINE: Final = ("weight_input", "weight_output")
"""Locations of rotations that are merged into the weights. Other rotations are computed during inference."""


@dataclass(frozen=True)
class _Weights:
    """The configurations of all groups of modules. The tensors of a module decide which one applies."""

    bits: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    all_have_zeros: bool

    def grid(self, scales: Tensor, shape: tuple[int, ...]) -> Grid:
        """The grid of scales over a weight of `shape`.

        Raises:
            ValueError: if they do not fit it.
        """
        fits = [b for b in self.blocks if scales.shape[-2:] == (-(-shape[-2] // b[0]), -(-shape[-1] // b[1]))]
        width = scales.shape[-1] if scales.shape else 0
        groups = {min(group, shape[-1]): None for group in self.groups if -(-shape[-1] // group) == width}
        if len(fits) > 1 or (len(groups) > 1 and not fits):
            raise ValueError(f"scales of shape {list(scales.shape)} may be for several sizes: {fits or list(groups)}")
        return scale_grid(scales, shape, next(iter(fits), None), next(iter(groups), None))


def take(companions: Companions) -> None:
    """Dequantize every module with packed weights, and every int8 or FP8 tensor with scales."""
    _refuse_other_formats(companions)
    _refuse_rotations(companions)
    companions.expect(".weight_shape")
    weights = _described(companions)
    for stem in companions.stems(".weight_packed"):
        with companions.module(stem):
            kind = companions.tensors[f"{stem}.weight_packed"].type.name
            made = _packed(companions, stem, weights) if kind == "I32" else _small_floats(companions, stem)
            companions.put(f"{stem}.weight_packed", made)
    for name, tensor in companions.tensors.items():
        if f"{name}_scale" in companions.tensors and tensor.type.name in ("I8", *WEIGHTS):
            with companions.module(name):
                companions.put(name, _bytes(companions, name, weights))
    if companions.config.get("format") == "dense":
        companions.drop(".weight_scale", ".weight_zero_point")
    companions.drop(*UNUSED, ".input_global_scale", ".input_zero_point", ".output_zero_point")


def _groups(companions: Companions, section: str = "config_groups") -> list[Mapping[str, Any]]:
    """The groups of modules that the configuration describes."""
    groups = companions.setting(section, dict, {})
    wrong = next((name for name, group in groups.items() if not isinstance(group, Mapping)), None)
    if wrong is not None:
        raise companions.misconfigured(f"{section}.{wrong}", groups[wrong], "an object")
    return list(groups.values())


def _formats(companions: Companions) -> list[Any]:
    """All formats that the configuration names."""
    named = [companions.setting("format", str), *(group.get("format") for group in _groups(companions))]
    return [name for name in named if name is not None]


def _refuse_other_formats(companions: Companions) -> None:
    sparsity = companions.setting("sparsity_config", dict, {}).get("format") or "dense"
    foreign = [name for name in _formats(companions) if name not in _FORMATS]
    foreign += [] if sparsity == "dense" else [sparsity]
    if foreign:
        raise UnsupportedError(
            f"config.json: {_TITLE} in the format {shown(foreign[0])} is not supported, only {', '.join(_FORMATS)}",
            hint="Use the original checkpoint.",
        )


def _refuse_rotations(companions: Companions) -> None:
    """Raise UnsupportedError if activations are rotated during inference: the weights alone are another model."""
    schemes = companions.setting("transform_config", dict, {}).get("config_groups")
    schemes = {} if schemes is None else schemes
    if not isinstance(schemes, Mapping):
        raise companions.misconfigured("transform_config.config_groups", schemes, "an object")
    for name, scheme in schemes.items():
        places = scheme.get("apply") if isinstance(scheme, Mapping) else None
        places = places if isinstance(places, list) else [places]
        found = [place.get("location") if isinstance(place, Mapping) else None for place in places]
        foreign = [location for location in found if location not in _OFFLINE]
        if foreign:
            raise UnsupportedError(
                f"config.json: {_TITLE} with the transform {shown(name)} of {shown(foreign[0])} is not supported, only "
                f"transforms of {' and '.join(_OFFLINE)}, which are merged into the weights",
                hint="Use the original checkpoint.",
            )


def _described(companions: Companions) -> _Weights:
    """The valid settings of weights in the configuration."""
    found = [group["weights"] for group in _groups(companions) if isinstance(group.get("weights"), Mapping)]
    blocks = dict.fromkeys(block for settings in found if (block := _block(settings)))
    groups = dict.fromkeys(
        size for settings in found if type(size := settings.get("group_size")) is int and 0 < size <= MAX_COUNT
    )
    bits = tuple(bits for bits in _BITS if any(settings.get("num_bits") == bits for settings in found))
    all_have_zeros = bool(found) and all(settings.get("symmetric") is False for settings in found)
    return _Weights(bits, tuple(blocks), tuple(groups), all_have_zeros)


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    sizes = settings.get("block_structure")
    if isinstance(sizes, str):  # "128x128", in old versions
        sizes = [int(size) if size.isdecimal() and len(size) < 19 else 0 for size in sizes.split("x")]
    fits = isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes)
    return (sizes[0], sizes[1]) if isinstance(sizes, list) and fits else None


def _packed(companions: Companions, stem: str, weights: _Weights) -> Tensor:
    words = companions.take(f"{stem}.weight_packed", ("I32",))
    shape = _shape(companions.take(f"{stem}.weight_shape", ("I32", "I64"), 1))
    scales = companions.take(f"{stem}.weight_scale", FLOATS)
    order = companions.find(f"{stem}.weight_g_idx")
    length = shape[-1]
    fitting = [bits for bits in weights.bits or _BITS if -(-length * bits // 32) == words.row_length]
    if words.shape[:-1] != shape[:-1] or len(fitting) != 1:
        wanted = f" at {' or '.join(map(str, weights.bits))} bits" if weights.bits else ""
        raise ValueError(f"weight_packed {list(words.shape)} does not fit a weight of shape {list(shape)}{wanted}")
    bits = fitting[0]
    half = 1 << (bits - 1)
    grid = weights.grid(scales, shape)
    zeros = _zeros(companions, stem, bits, grid, shape, weights)
    if order is not None:
        if order.type.name not in ("I32", "I64") or order.shape != (length,):
            raise ValueError(f"weight_g_idx is {order.type.name} {list(order.shape)}, expected I32 [{length}]")
        columns = ColumnGroups(with_rows(order, length))
        grid = replace(grid, columns=columns)
        zeros = zeros and replace(zeros, columns=columns)
    codes = Packed(words, bits, length, integers(bits, half))
    return Scaled(f"{stem}.weight", shape, TYPES["F32"], f"{_TITLE} int{bits}", codes, grid, zeros)


def _zeros(
    companions: Companions, stem: str, bits: int, grid: Grid, shape: tuple[int, ...], weights: _Weights
) -> Grid | None:
    """The zero points of a packed weight: packed words for rows or groups, int8 for a whole tensor."""
    zeros = companions.find(f"{stem}.weight_zero_point")
    if zeros is None:
        _refuse_to_do_without_zeros(stem, weights)
        return None
    if zeros.type.name == "I8":
        return weights.grid(zeros, shape)
    groups = -(-shape[-1] // grid.width)
    expected = (-(-shape[-2] * bits // 32), groups)
    if len(shape) != 2 or zeros.type.name != "I32" or zeros.shape != expected or grid.height != 1:
        raise ValueError(f"weight_zero_point is {zeros.type.name} {list(zeros.shape)}, expected I32 {list(expected)}")
    return replace(grid, numbers=PackedRows(zeros, bits, integers(bits, 1 << (bits - 1))))


def _refuse_to_do_without_zeros(stem: str, weights: _Weights) -> None:
    """Raise ValueError if all groups of modules have zero points by the configuration."""
    if weights.all_have_zeros:
        raise ValueError(f"the zero points of {stem} are missing, where the quantization_config says symmetric: false")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape whose sizes are the elements of a tensor.

    Raises:
        ValueError: if they are not two or three sizes.
    """
    if not 2 <= tensor.size <= 3:
        raise ValueError(f"{tensor.name} has {tensor.size} values, expected 2")
    shape = tuple(map(int, read_small(tensor)))
    if not all(0 < size <= MAX_COUNT for size in shape):
        raise ValueError(f"{tensor.name} is {list(shape)}, which is not a shape")
    return shape


def _bytes(companions: Companions, name: str, weights: _Weights) -> Tensor:
    weight = companions.take(name, ("I8", *WEIGHTS))
    if len(weight.shape) < 2:
        raise ValueError(f"the shape {list(weight.shape)} is not that of a matrix")
    # U8 scales are exponents (E8M0) in the MX formats, and invalid in others.
    bytes_are_exponents = any(str(kind).startswith("mxfp") for kind in _formats(companions))
    scales = exponents(companions.take(f"{name}_scale", SCALES if bytes_are_exponents else FLOATS))
    zeros, zero_grid = companions.find(f"{name}_zero_point"), None
    if zeros is None:
        _refuse_to_do_without_zeros(name, weights)
    else:
        zeros = companions.take(f"{name}_zero_point", (*FLOATS, *INTEGERS))
        zero_grid = weights.grid(zeros, weight.shape)
    kind = "int8" if weight.type.name == "I8" else "FP8"
    return scaled_bytes(weight, weights.grid(scales, weight.shape), f"{_TITLE} {kind}", zero_grid)


def _small_floats(companions: Companions, stem: str) -> Tensor:
    """A weight in FP4 or FP6, with the codes in a stream of bytes."""
    codes = companions.take(f"{stem}.weight_packed", ("U8",))
    whole = companions.find(f"{stem}.weight_global_scale")
    if f"{stem}.weight_zero_point" in companions.tensors:
        raise ValueError("its floats have zero points, which is not supported")
    if len(codes.shape) < 2:
        raise ValueError(f"the shape {list(codes.shape)} is not that of a matrix")
    if whole is not None:
        scales = companions.take(f"{stem}.weight_scale", tuple(FLOAT_TABLES))
        return nvfp4(f"{stem}.weight", codes, scales, whole, _TITLE, divided)
    scales = exponents(companions.take(f"{stem}.weight_scale", ("U8", "F8_E8M0")))
    shape = (*codes.shape[:-1], scales.row_length * MXFP4.block_length)
    if scales.shape[:-1] != codes.shape[:-1] or not codes.size or not scales.size:
        raise ValueError(f"scales of shape {list(scales.shape)} do not fit codes of shape {list(codes.shape)}")
    if codes.row_length * 8 != shape[-1] * 6:
        return repacked(f"{stem}.weight", shape, codes, scales)
    unpacked = Packed(codes, 6, shape[-1], E2M3)
    return Scaled(f"{stem}.weight", shape, TYPES["F32"], f"{_TITLE} MXFP6", unpacked, scale_grid(scales, shape))


METHODS: Final = MappingProxyType({"compressed-tensors": take})
