"""Weights that lie on a type's grid come back bit for bit, whatever levels a block has; others are told apart."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.kernels.blocks.microscale import LEVELS
from quantcli.kernels.grids import GRIDS, lies_on_grid, repack
from quantcli.kernels.rows import dequantize, quantize, quantize_exactly
from quantcli.kernels.types import TYPES

RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-127, 127)}
HALVES = np.array([2.0**-24, 3 * 2.0**-24, 2.0**-14, 0.0123, 1.0, 1.5, 65504 / 127], np.float16).astype(np.float32)
FP4 = np.array(LEVELS, np.float32) / 2


def integer_blocks(name: str) -> np.ndarray:
    """Multiples of half-precision numbers of both signs: all of them, few of them, large ones only, one of them alone."""
    low, high = RANGES[name]
    random = np.random.default_rng(0)
    every = np.resize(np.arange(low, high + 1), 256).reshape(-1, 32)
    few = random.integers(-2, 3, (64, 32))
    large = random.choice([high - 1, high, -high], (64, 32))
    middle = random.integers(low // 2, high // 2, (64, 32)) | 1
    alone = np.eye(32, dtype=int)[:12] * np.resize([low, high, 3], 12)[:, None]
    levels = np.concatenate([every, few, large, middle, alone, np.zeros((1, 32), int)]).astype(np.float32)
    scales = np.concatenate([HALVES, -HALVES])
    return np.concatenate([levels * scale for scale in scales])


def mx_blocks() -> np.ndarray:
    """Four-bit floats, all of them and only small ones, under every power of two that float32 leaves them."""
    random = np.random.default_rng(0)
    scales = np.ldexp(np.float64(1), np.arange(-127, 125))[:, None]
    codes = random.integers(0, 16, (len(scales), 32))
    small = random.choice([0, 1, 9, 2], (len(scales), 32))
    return np.concatenate([FP4[codes] * scales, FP4[small] * scales]).astype(np.float32)


BLOCKS = {name: integer_blocks(name) for name in RANGES} | {"MXFP4": mx_blocks()}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_what_lies_on_the_grid_comes_back(name: str, weighted: bool) -> None:
    x, kind = BLOCKS[name], TYPES[name]
    importance = np.linspace(0.1, 2, 32, dtype=np.float32) if weighted else None
    assert lies_on_grid(x, kind)
    ordinary = quantize(x, kind, importance)
    out = np.empty_like(ordinary)
    quantize_exactly(x, kind, importance, out)
    np.testing.assert_array_equal(dequantize(out, kind), x)
    kept = (dequantize(ordinary, kind) == x).all(1)
    assert 0 < kept.sum() < len(x)  # some need no other scale, some do
    np.testing.assert_array_equal(out[kept], ordinary[kept])


@pytest.mark.parametrize("name", BLOCKS)
def test_one_weight_beside_the_grid_is_enough(name: str) -> None:
    kind = TYPES[name]
    x = BLOCKS[name][(np.abs(BLOCKS[name]) > 1e-30).sum(1) > 8]
    rows = np.arange(len(x))
    place = np.abs(x).argmax(1)
    x = x.copy()
    x[rows, place] = np.nextafter(x[rows, place], np.float32(0))
    assert not any(lies_on_grid(block[None], kind) for block in x)
    with pytest.raises(ValueError, match=f"do not lie on a grid of {name}"):
        repack(x[:2], kind, np.array([True, False]), np.empty((2, kind.block_bytes), np.uint8))


@pytest.mark.parametrize("name", RANGES)
def test_a_scale_that_is_no_half_or_a_level_too_far(name: str) -> None:
    low, high = RANGES[name]
    levels = np.resize(np.arange(low, high + 1), 32).astype(np.float32)
    levels[:2] = low, high
    assert lies_on_grid(levels[None], TYPES[name])
    assert not lies_on_grid((levels * np.float32(1 + 2.0**-11))[None], TYPES[name])
    assert not lies_on_grid((levels * np.float32(1e6))[None], TYPES[name])
    levels[:3] = low, high + 1, 1
    assert not lies_on_grid(levels[None], TYPES[name])


@pytest.mark.parametrize("name", [kind.name for kind in GRIDS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_lies_on_no_grid(name: str, bad: float) -> None:
    x = np.ones((1, 32), np.float32)
    assert lies_on_grid(x, TYPES[name])
    x[0, 5] = bad
    assert not lies_on_grid(x, TYPES[name])


@pytest.mark.parametrize("name", [kind.name for kind in GRIDS])
def test_ordinary_weights_do_not_lie_on_a_grid(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    rounded = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert not any(lies_on_grid(block[None], TYPES[name]) for block in rounded)
