"""Weights that lie on a type's grid come back bit for bit, whatever levels a block has; others are told apart."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.blocks.microscale import LEVELS
from quantcli.kernels.rounding.exact_grids import GRIDS, lies_on_grid, may_lie_on_grid, repack
from quantcli.kernels.rows import dequantize, quantize, repack_inexact

RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-127, 127)}
F32, BF16, F16 = TYPES["F32"], TYPES["BF16"], TYPES["F16"]
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
    assert lies_on_grid(x, kind, F32)
    ordinary = quantize(x, kind, importance)
    out = np.empty_like(ordinary)
    quantize(x, kind, importance, out)
    repack_inexact(x, kind, F32, out)
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
    assert not any(lies_on_grid(block[None], kind, F32) for block in x)
    with pytest.raises(ValueError, match=f"do not lie on a grid of {name}"):
        repack(x[:2], kind, F32, np.array([True, False]), np.empty((2, kind.block_bytes), np.uint8))


@pytest.mark.parametrize("name", RANGES)
def test_a_scale_that_is_no_half_or_a_level_too_far(name: str) -> None:
    low, high = RANGES[name]
    levels = np.resize(np.arange(low, high + 1), 32).astype(np.float32)
    levels[:2] = low, high
    assert lies_on_grid(levels[None], TYPES[name], F32)
    assert not lies_on_grid((levels * np.float32(1 + 2.0**-11))[None], TYPES[name], F32)
    assert not lies_on_grid((levels * np.float32(1e6))[None], TYPES[name], F32)
    levels[:3] = low, high + 1, 1
    assert not lies_on_grid(levels[None], TYPES[name], F32)


@pytest.mark.parametrize("name", [kind.name for kind in GRIDS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_lies_on_no_grid(name: str, bad: float) -> None:
    x = np.ones((1, 32), np.float32)
    assert lies_on_grid(x, TYPES[name], F32)
    x[0, 5] = bad
    assert not lies_on_grid(x, TYPES[name], F32)


@pytest.mark.parametrize("name", [kind.name for kind in GRIDS])
def test_ordinary_weights_do_not_lie_on_a_grid(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    rounded = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert not any(lies_on_grid(block[None], TYPES[name], F32) for block in rounded)
    assert name == "MXFP4" or not may_lie_on_grid(rounded, TYPES[name])


# --- grids that the checkpoint's type has rounded -------------------------------------------------------------------------


def to_type(x: np.ndarray, source: BlockType) -> np.ndarray:
    """Numbers rounded to a type, of two as near to the even one: by its definition, in float64."""
    digits, lowest = {"F32": (24, -149), "BF16": (8, -133), "F16": (11, -24)}[source.name]
    _, exponent = np.frexp(x.astype(np.float64))
    step = np.maximum(exponent - digits, lowest)
    return np.ldexp(np.rint(np.ldexp(x.astype(np.float64), -step)), step).astype(np.float32)


def trained(name: str, scales: str, most: int = 63) -> np.ndarray:
    """Blocks of 32 as quantization-aware training has them: levels of normal weights under the scale that gives the extreme
    one the lowest level there is; every fourth block with a scale for larger ones."""
    low, high = max(RANGES[name][0], -most), min(RANGES[name][1], most)
    x = np.random.default_rng(7).standard_normal((1500, 32)) * np.logspace(-5, 2, 1500)[:, None]
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    extreme[::4] *= 1.7
    scale = to_type((extreme / low).astype(np.float32), TYPES[scales])
    scale[np.abs(scale) < 2.0**-20] = 2.0**-20
    levels = np.clip(np.rint(x / scale), low, high)
    levels[:, -2:] = 0.0, -0.0
    return (levels * scale).astype(np.float32)


@pytest.mark.parametrize("source", [BF16, F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", RANGES)
def test_a_rounded_grid_gives_the_source_back(name: str, source: BlockType) -> None:
    kind, x = TYPES[name], to_type(trained(name, "F16"), source)
    assert may_lie_on_grid(x, kind)
    assert lies_on_grid(x, kind, source)
    assert not lies_on_grid(x, kind, F32)
    ordinary = quantize(x, kind)
    out = np.empty_like(ordinary)
    quantize(x, kind, None, out)
    repack_inexact(x, kind, source, out)
    found = dequantize(out, kind)
    np.testing.assert_array_equal(to_type(found, source), x)
    assert (to_type(dequantize(ordinary, kind), source) != x).any()
    # Where a scale gives the weights themselves, it is taken.
    exact = np.array([lies_on_grid(block[None], kind, F32) for block in x])
    assert 0 < exact.sum() < len(x)
    np.testing.assert_array_equal((found == x).all(1), exact)


@pytest.mark.parametrize("source", [BF16, F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", RANGES)
def test_a_rounded_grid_is_found_where_there_is_one(name: str, source: BlockType) -> None:
    """Scales that are no half, and weights that are a little beside: some half-precision number may do, or none. Each is
    tried."""
    low, high = max(RANGES[name][0], -63), min(RANGES[name][1], 63)
    x = trained(name, "F32")[200:1400:29]
    x[::3, 5] *= 1.004
    x = to_type(x, source)
    found = np.array([lies_on_grid(block[None], TYPES[name], source) for block in x])
    every = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    for block, holds in zip(x, found, strict=True):
        largest = np.abs(block).max()
        near = every[(every * max(-low, high) > largest * 0.99) & (every < largest * 1.01)]
        with np.errstate(over="ignore"):
            levels = np.rint(block / near[:, None])
            right = (to_type(levels * near[:, None], source) == block).all(1)
        right &= ((levels.max(1) <= high) & (levels.min(1) >= low)) | ((-levels.min(1) <= high) & (-levels.max(1) >= low))
        assert right.any() == holds
    assert 0 < found.sum() < len(found)


@pytest.mark.parametrize("source", [BF16, F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", RANGES)
def test_ordinary_weights_are_on_no_rounded_grid(name: str, source: BlockType) -> None:
    """Not one block of many, though a tensor has thousands: normal weights, those with some far out, and those that all
    have the same exponent, which are the likeliest."""
    random = np.random.default_rng(1)
    for x in (random.standard_normal((20000, 32)), random.uniform(0.5, 1, (20000, 32)), random.laplace(size=(20000, 32))):
        scales = GRIDS[TYPES[name]].scales(to_type(x.astype(np.float32), source), source)
        assert np.isnan(scales).all()


def test_levels_that_bf16_cannot_tell_apart_are_no_grid() -> None:
    x = np.resize(np.arange(1, 64, dtype=np.float32), (4, 32)) * np.float32(np.float16(0.0123))
    assert lies_on_grid(to_type(x, BF16), TYPES["Q8_0"], BF16)
    x[:, 5] = 65 * np.float32(np.float16(0.0123))
    assert not lies_on_grid(to_type(x, BF16), TYPES["Q8_0"], BF16)
    assert lies_on_grid(to_type(x, F16), TYPES["Q8_0"], F16)


@pytest.mark.parametrize("name", RANGES)
def test_the_scale_does_not_depend_on_the_other_blocks(name: str) -> None:
    x = to_type(trained(name, "F16"), BF16)
    grid = GRIDS[TYPES[name]]
    alone = np.concatenate([grid.scales(block[None], BF16) for block in x[:200]])
    np.testing.assert_array_equal(grid.scales(x, BF16)[:200], alone)
