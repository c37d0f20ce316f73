"""bitsandbytes: NF4 and FP4 with a scale for each block of 64 weights or another block size, int8 with one for each row.

Four bits:

    X.weight                                 two codes in a byte, the first in the upper half, of the flattened weight
    X.weight.absmax                          the scales; with double quantization bytes with scales of their own
    X.weight.quant_map                       the value of each code
    X.weight.quant_state.bitsandbytes__nf4   the rest as JSON

Int8: `X.weight`, and `X.SCB`, the largest magnitude of each row.

Source: `QuantState.from_dict`, `dequantize_4bit`, `int8_vectorwise_dequant` of bitsandbytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import (
    Floats,
    Numbers,
    Plain,
    read_floats,
    read_raw,
    read_small,
    to_floats,
    with_rows,
)
from quantcli.formats.prequantized.scaled import Decoded, Scaled, scale_grid
from quantcli.tensors.tensor import MAX_DIMENSIONS, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STATE: Final = ".quant_state.bitsandbytes__"
_TITLES: Final = {"nf4": "bitsandbytes NF4", "fp4": "bitsandbytes FP4"}
_MAX_STATE: Final = 1 << 16
_INVERSE_127: Final = np.float32(7.874015718698502e-3)
"""bitsandbytes' constant for 1 / 127."""


def take(companions: Companions) -> None:
    """Dequantize every weight with a `quant_state` or `SCB`."""
    companions.expect(*(_STATE + kind for kind in _TITLES), ".quant_map", ".nested_quant_map", ".weight_format")
    for kind, title in _TITLES.items():
        for name in companions.stems(_STATE + kind):
            with companions.module(name):
                companions.put(name, _four_bit(companions, name, f"{name}{_STATE}{kind}", title))
    for stem in companions.stems(".SCB"):
        with companions.module(stem):
            companions.put(f"{stem}.weight", _eight_bit(companions, stem))
    companions.drop(".weight_format")


def _eight_bit(companions: Companions, stem: str) -> Tensor:
    weight = companions.take(f"{stem}.weight", ("I8",), 2)
    largest = companions.take(f"{stem}.SCB", ("F32",), 1)
    layout = companions.find(f"{stem}.weight_format")
    if layout is not None and (layout.size != 1 or read_small(layout)[0] != 0):
        raise UnsupportedError(f"{stem}: int8 weights in a GPU-specific layout are not supported, only row-major")
    if largest.size != weight.shape[0]:
        raise ValueError(f"SCB has {largest.size} values, expected {weight.shape[0]}")
    codes, scales = Plain(weight), scale_grid(largest, weight.shape)
    return _Rows(weight.name, weight.shape, TYPES["F32"], "bitsandbytes int8", codes, scales)


class _Rows(Scaled):
    """Codes from -127 to 127 with the largest magnitude of the row as scale: `code * largest / 127`."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        super().read(start, stop, out)
        values = out.view(np.float32)
        values *= _INVERSE_127


def _four_bit(companions: Companions, name: str, state_name: str, title: str) -> Tensor:
    state = _state(companions.take(state_name, ("U8",), 1))
    shape = tuple(state["shape"])
    block = min(state["blocksize"], math.prod(shape))
    codes = companions.take(name, ("U8", "I8", "BF16", "F16", "F32"))  # the storage type is an option of bitsandbytes
    if codes.nbytes != -(-math.prod(shape) // 2):
        raise ValueError(
            f"{codes.nbytes} bytes of codes, expected {-(-math.prod(shape) // 2)} for a shape of {list(shape)}"
        )
    blocks = -(-math.prod(shape) // block)
    table = _table(companions.take(f"{name}.quant_map", ("F32",)), 16)
    absmax = companions.take(f"{name}.absmax", ("F32", "U8"))
    if absmax.size != blocks:
        raise ValueError(f"{absmax.size} scales, expected {blocks}")
    scales: Numbers = Plain(with_rows(absmax, 1))
    if absmax.type.name == "U8":
        nested = companions.take(f"{name}.nested_absmax", ("F32",))
        size, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if type(size) is not int or size < 1 or nested.size != -(-blocks // size) or not isinstance(offset, float):
            raise ValueError("its nested scales are inconsistent")
        scale_table = _table(companions.take(f"{name}.nested_quant_map", ("F32",)), 256)
        with np.errstate(all="ignore"):
            scales = _Nested(with_rows(absmax, 1), scale_table, with_rows(nested, 1), min(size, blocks), np.float32(offset))
    return _FourBit(name, shape, TYPES["F32"], title, codes, table, scales, block)


def _state(tensor: Tensor) -> dict[str, Any]:
    """The `quant_state` of a weight, which is JSON.

    Raises:
        ValueError: if it is not JSON, or has no shape and block size.
    """
    if tensor.size > _MAX_STATE:
        raise ValueError(f"{tensor.size} bytes of JSON, at most {_MAX_STATE} expected")
    try:
        state = json.loads(read_small(tensor).tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{tensor.name} is not JSON: {error}") from None
    shape = state.get("shape") if isinstance(state, dict) else None
    sizes = (
        isinstance(shape, list)
        and 0 < len(shape) <= MAX_DIMENSIONS
        and all(type(size) is int and size > 0 for size in shape)
    )
    if not sizes or type(state.get("blocksize")) is not int or state["blocksize"] < 1:
        raise ValueError(f"{tensor.name} has no shape and blocksize")
    return state  # type: ignore[no-any-return]


def _table(tensor: Tensor, size: int) -> Floats:
    if tensor.size != size:
        raise ValueError(f"{tensor.name} has {tensor.size} values, expected {size}")
    return to_floats(read_small(tensor), tensor.type)


@dataclass(frozen=True)
class _Nested(Numbers):
    """Scales with double quantization: the value of each byte, times the scale of its block, plus an offset."""

    codes: Tensor
    table: Floats
    scales: Tensor
    block: int
    offset: np.float32

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        values = np.take(self.table, read_raw(self.codes, start, stop).view(np.uint8))
        first = start // self.block
        scales = read_floats(self.scales, first, -(-stop // self.block))
        values *= scales[np.arange(start, stop) // self.block - first]
        values += self.offset
        return values


@dataclass(frozen=True)
class _FourBit(Decoded):
    """Codes of a flattened weight, two in a byte, with a scale for each `block` codes. Blocks may span rows."""

    codes: Tensor
    table: Floats
    scales: Numbers
    block: int

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        first, last = start * self.row_length, stop * self.row_length
        if first == last:
            return
        item = self.codes.type.block_bytes
        low, high = first // 2 // item, -(-last // 2 // item)
        pairs = read_raw(with_rows(self.codes, 1), low, min(high, self.codes.size)).reshape(-1).view(np.uint8)
        codes = np.empty((len(pairs), 2), np.uint8)
        codes[:, 0], codes[:, 1] = pairs >> 4, pairs & 15
        skipped = first - low * item * 2
        values = np.take(self.table, codes.reshape(-1)[skipped : skipped + last - first])
        above = first // self.block
        scales = self.scales.rows(above, -(-last // self.block)).reshape(-1)
        edges = np.clip(np.arange(above, above + len(scales) + 1) * self.block, first, last)
        with np.errstate(all="ignore"):
            values *= np.repeat(scales, np.diff(edges))
        out.view(np.float32).reshape(-1)[...] = values


METHODS: Final = MappingProxyType({"bitsandbytes": take})
