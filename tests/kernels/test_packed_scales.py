"""Scales read out of blocks and written back, and rounding driven phase by phase with scales of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_fixed_scales import LENGTH, WRITTEN, codes_in, some_scales

from quantcli.core.block_types import TYPES, block_type
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import PackedReader
from quantcli.kernels.jit import kernel
from quantcli.kernels.rounding.fixed_scales import round_codes
from quantcli.kernels.rounding.packed_scales import PackedScales, pack_scales, scale_fields, unpack_scales
from quantcli.kernels.rows import dequantize, quantize

GOLDENS = Path(__file__).parent.parent / "golden" / "blocks.npz"


def values_of(scales: PackedScales, name: str) -> NDArray[np.float32]:
    """The float32 that each quantized scale stands for."""
    value = scale_fields(TYPES[name]).value

    @kernel
    def table(out: NDArray[np.float32], first: int) -> None:
        for place in range(out.size):
            out[place] = value(first + place)

    valid = scale_fields(TYPES[name]).scales
    out = np.empty(len(valid), np.float32)
    table(out, valid[0])
    return out[scales.scales - valid[0]]


def random_scales(name: str, rows: int) -> PackedScales:
    """Valid scales of every kind the type has, moderate in size."""
    random, kind, fields = np.random.default_rng(5), TYPES[name], scale_fields(TYPES[name])
    blocks = rows, LENGTH // kind.block_length
    groups = *blocks, kind.block_length // fields.group
    d = random.uniform(0.01, 0.02, blocks).astype(np.float16).astype(np.float32) * random.choice([-1, 1], blocks)
    dmin = random.uniform(0.01, 0.02, blocks).astype(np.float16).astype(np.float32)
    has_d = name not in ("MXFP4", "NVFP4")
    return PackedScales(
        d.astype(np.float32) if has_d else np.ones(blocks, np.float32),
        dmin if fields.minimums else np.zeros(blocks, np.float32),
        random.choice(np.array(fields.scales, np.int32), groups),
        random.choice(np.array(fields.minimums or [0], np.int32), groups),
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_scales_and_codes_are_the_dequantized_weights(name: str) -> None:
    data = some_scales(name)
    if name in ("MXFP4", "NVFP4"):
        pack_scales(random_scales(name, len(data)), data, name)
    scales, codes, kind = unpack_scales(data, name), codes_in(data, name), TYPES[name]
    reader, group = codec(kind).reader, scale_fields(kind).group
    assert isinstance(reader, PackedReader)
    signed = codes.view(np.int8) if reader.signed else codes
    groups = (signed.astype(np.float32) - np.float32(reader.zero)).reshape(*scales.scales.shape, group)
    # Each operation is rounded once, as in dequantization.
    weights = groups * (scales.d[..., None] * values_of(scales, name))[..., None]
    if reader.minimums is not None:
        weights = weights - (scales.dmin[..., None] * scales.minimums.astype(np.float32))[..., None]
    out = np.empty((len(data), LENGTH), np.float32)
    dequantize(data, kind, out)
    np.testing.assert_array_equal(weights.reshape(out.shape).view(np.uint32), out.view(np.uint32))


@pytest.mark.parametrize("name", WRITTEN)
def test_the_references_blocks_come_back_byte_for_byte(name: str) -> None:
    with np.load(GOLDENS) as goldens:
        data = np.ascontiguousarray(goldens[f"{name}.plain"])
    other = data.copy()
    scales = unpack_scales(data, name)
    valid = scale_fields(TYPES[name])
    changed = replace(
        scales,
        d=np.full_like(scales.d, 0.25),
        scales=np.full_like(scales.scales, valid.scales[-1]),
        minimums=np.full_like(scales.minimums, valid.minimums[-1] if valid.minimums else 0),
    )
    pack_scales(changed, other, name)
    assert not np.array_equal(other, data)
    pack_scales(scales, other, name)
    np.testing.assert_array_equal(other, data)


@pytest.mark.parametrize("name", WRITTEN)
def test_other_scales_leave_the_codes(name: str) -> None:
    data = some_scales(name)
    codes, scales = codes_in(data, name), random_scales(name, len(data))
    pack_scales(scales, data, name)
    np.testing.assert_array_equal(codes_in(data, name), codes)
    found = unpack_scales(data, name)
    for field in ("d", "dmin", "scales", "minimums"):
        if field != "minimums" or scale_fields(TYPES[name]).minimums:
            np.testing.assert_array_equal(getattr(found, field), getattr(scales, field), err_msg=field)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q4_0", "Q4_1", "NVFP4"])
def test_a_search_over_scales_finds_what_the_quantizer_finds_or_better(name: str) -> None:
    """The three phases in turn: the quantizer's scales, other scales packed, codes rounded under them."""
    kind, random = TYPES[name], np.random.default_rng(3)
    x = random.standard_normal((4, LENGTH)).astype(np.float32)
    data = np.empty((4, kind.row_bytes(LENGTH)), np.uint8)
    quantize(x, kind, None, data)
    chosen, valid = unpack_scales(data, name), scale_fields(kind).scales

    def error(scales: PackedScales) -> float:
        trial, out = data.copy(), np.empty_like(x)
        pack_scales(scales, trial, name)
        round_codes(x, trial, name)
        dequantize(trial, kind, out)
        return float(np.square(out - x).sum())

    best = error(chosen)
    for step in (-1, 1):
        for group in range(min(chosen.scales.shape[-1], 3)):
            moved = chosen.scales.copy()
            moved[..., group] = np.clip(moved[..., group] + step, valid[0], valid[-1])
            assert error(replace(chosen, scales=moved)) > best * (0.98 if len(valid) > 1 else 0.999)
            assert (error(replace(chosen, scales=moved)) != best) == (moved != chosen.scales).any()
    assert error(replace(chosen, d=chosen.d * np.float32(1.5))) > best * (1 if name != "NVFP4" else 0.999)


def test_bad_input() -> None:
    data = np.zeros((2, 2 * block_type("Q4_K").block_bytes), np.uint8)
    scales = unpack_scales(data, "Q4_K")
    with pytest.raises(ValueError, match="IQ2_XXS has no scale fields"):
        unpack_scales(np.zeros((1, block_type("IQ2_XXS").block_bytes), np.uint8), "IQ2_XXS")
    with pytest.raises(ValueError, match=r"expected contiguous uint8 rows of Q4_K blocks, got uint8 \(2, 7\)"):
        unpack_scales(np.zeros((2, 7), np.uint8), "Q4_K")
    with pytest.raises(ValueError, match="expected quantized scales within 0 to 63 for Q4_K"):
        pack_scales(replace(scales, scales=np.full_like(scales.scales, 64)), data, "Q4_K")
    with pytest.raises(ValueError, match=r"expected d \(2, 2\), got \(2, 1\)"):
        pack_scales(replace(scales, d=scales.d[:, :1]), data, "Q4_K")
    data.flags.writeable = False
    with pytest.raises(ValueError, match="expected blocks that can be written"):
        pack_scales(scales, data, "Q4_K")
