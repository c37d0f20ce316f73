"""How IQ2 and IQ3 pack a super-block: quantized scales, codebook indices and signs into the type's bytes.

Source: the last loops of `quantize_row_iq2_*_impl` and `quantize_row_iq3_*_impl` in `ggml-quants.c`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from quantcli.kernels.blocks.packed_fields import offsets
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import I32, Bytes, Scratch
from quantcli.kernels.simd import LANES, convert, load, mask_bits, reinterpret, store, store_scalar

(QS_2XXS,) = offsets("IQ2_XXS", "qs")
QS_2XS, SCALES_2XS = offsets("IQ2_XS", "qs", "scales")
QS_2S, QH_2S, SCALES_2S = offsets("IQ2_S", "qs", "qh", "scales")
(QS_3XXS,) = offsets("IQ3_XXS", "qs")
QS_3S, QH_3S, SIGNS_3S, SCALES_3S = offsets("IQ3_S", "qs", "qh", "signs", "scales")

# Each of these packs one super-block to `out[at:]`, all but its d: the quantized scales of its sub-blocks, the codebook
# indices of its points, and the signs of its octets.


@inline
def _pack_iq2_xxs(levels: Scratch, block: int, indices: Scratch, signs: Scratch, out: Bytes, at: int) -> None:
    for part in range(8):
        word = np.uint32(levels[part * LANES + block]) << 28
        entry = at + QS_2XXS + 8 * part
        for octet in range(4):
            word |= np.uint32(signs[4 * part + octet]) << (7 * octet)
            out[entry + octet] = indices[4 * part + octet]
        store_scalar(out, entry + 4, np.uint32(word))


@inline
def _pack_iq2_xs(levels: Scratch, block: int, indices: Scratch, signs: Scratch, out: Bytes, at: int) -> None:
    words = convert(load(indices, 0, 32) | load(signs, 0, 32) << I32(9), np.uint16)
    store(out, at + QS_2XS, reinterpret(words, np.uint8))
    _pack_nibbles(levels, block, 16, out, at + SCALES_2XS)


@inline
def _pack_iq2_s(levels: Scratch, block: int, indices: Scratch, signs: Scratch, out: Bytes, at: int) -> None:
    store(out, at + QS_2S, convert(load(indices, 0, 32), np.uint8))
    store(out, at + QS_2S + 32, convert(load(signs, 0, 32), np.uint8))
    for part in range(8):
        high = 0
        for octet in range(4):
            high |= (indices[4 * part + octet] >> 8) << (2 * octet)
        out[at + QH_2S + part] = high
    _pack_nibbles(levels, block, 16, out, at + SCALES_2S)


@inline
def _pack_iq3_xxs(levels: Scratch, block: int, indices: Scratch, signs: Scratch, out: Bytes, at: int) -> None:
    store(out, at + QS_3XXS, convert(load(indices, 0, 64), np.uint8))
    for part in range(8):
        word = np.uint32(levels[part * LANES + block]) << 28
        for octet in range(4):
            word |= np.uint32(signs[4 * part + octet]) << (7 * octet)
        store_scalar(out, at + QS_3XXS + 64 + 4 * part, np.uint32(word))


@inline
def _pack_iq3_s(levels: Scratch, block: int, indices: Scratch, signs: Scratch, out: Bytes, at: int) -> None:
    points = load(indices, 0, 64)
    store(out, at + QS_3S, convert(points, np.uint8))
    store_scalar(out, at + QH_3S, mask_bits(points > I32(255)))
    store(out, at + SIGNS_3S, convert(load(signs, 0, 32), np.uint8))
    _pack_nibbles(levels, block, 8, out, at + SCALES_3S)


@inline
def _pack_nibbles(levels: Scratch, block: int, count: int, out: Bytes, at: int) -> None:
    for pair in range(count // 2):
        out[at + pair] = levels[2 * pair * LANES + block] | levels[(2 * pair + 1) * LANES + block] << 4


PACK: Final = {
    "IQ2_XXS": _pack_iq2_xxs,
    "IQ2_XS": _pack_iq2_xs,
    "IQ2_S": _pack_iq2_s,
    "IQ3_XXS": _pack_iq3_xxs,
    "IQ3_S": _pack_iq3_s,
}
"""The `inline` function (levels, block, indices, signs, out, at) of each type that packs a super-block, all but its d."""
