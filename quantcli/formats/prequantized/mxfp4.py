"""MXFP4: FP4 (E2M1) codes with an E8M0 exponent for each 32, repacked without loss to GGUF's type MXFP4.

Method `mxfp4`, of GPT-OSS, for stacked experts `X`:

    X_blocks   (experts, outputs, groups, 16)
    X_scales   (experts, outputs, groups)
    X.weight   (experts, outputs, inputs), the tensor that replaces them

Source: `repack_mxfp4` and `repack_mxfp4_blocks` of llama.cpp's converter, `convert_moe_packed_tensors` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import read_raw, with_rows
from quantcli.formats.prequantized.scaled import Decoded
from quantcli.tensors.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

MXFP4: Final = TYPES["MXFP4"]
BYTES: Final = ("U8", "I8", "F8_E8M0")
_PAIRS: Final = MXFP4.block_length // 2


def take(companions: Companions) -> None:
    """Repack every pair of blocks and scales."""
    for stem in companions.stems("_blocks"):
        with companions.module(stem):
            codes = companions.take(f"{stem}_blocks", BYTES)
            scales = companions.take(f"{stem}_scales", BYTES)
            if len(codes.shape) < 3 or codes.shape != (*scales.shape, _PAIRS):
                raise ValueError(f"blocks {list(codes.shape)} and scales {list(scales.shape)} do not fit together")
            shape = (*scales.shape[:-1], scales.shape[-1] * MXFP4.block_length)
            companions.put(f"{stem}_blocks", repacked(f"{stem}.weight", shape, codes, scales))


def repacked(name: str, shape: tuple[int, ...], codes: Tensor, scales: Tensor) -> Decoded:
    """A weight of `shape` in GGUF's MXFP4.

    codes    row-major, two in a byte, the first in the lower half
    scales   row-major, an E8M0 exponent for each 32 codes

    Raises:
        ValueError: if their sizes do not fit the shape.
    """
    size = int(np.prod(shape))
    if not size or shape[-1] % MXFP4.block_length or (codes.size * 2, scales.size * MXFP4.block_length) != (size, size):
        raise ValueError(f"{codes.size} bytes and {scales.size} scales do not fit a weight of shape {list(shape)}")
    codes, scales = with_rows(codes, shape[-1] // 2), with_rows(scales, shape[-1] // MXFP4.block_length)
    return _Repacked(name, shape, MXFP4, "MXFP4", codes, scales)


@dataclass(frozen=True)
class _Repacked(Decoded):
    """Separate codes and scales, interleaved to blocks."""

    codes: Tensor
    scales: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. A block has codes j and j + 16 in one byte; in `codes` a byte has neighbours."""
        pairs = (
            read_raw(self.codes, start, stop)
            .view(np.uint8)
            .reshape(stop - start, out.shape[1] // MXFP4.block_bytes, _PAIRS)
        )
        blocks = out.view(MXFP4.layout)
        blocks["e"] = read_raw(self.scales, start, stop).view(np.uint8)
        low, high = pairs[..., : _PAIRS // 2], pairs[..., _PAIRS // 2 :]
        codes = blocks["qs"]
        codes[..., 0::2] = (low & 15) | (high << 4)
        codes[..., 1::2] = (low >> 4) | (high & 0xF0)


METHODS: Final = MappingProxyType({"mxfp4": take})
