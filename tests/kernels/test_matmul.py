"""Products with packed weights against dequantized weights and float64, with the activations rounded as the reference does.

The weights are the golden blocks of the reference, hard cases included; `dequantize` is tested against it elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.products.matmul import matmul
from quantcli.kernels.rows import dequantize, quantize
from quantcli.kernels.simd import machine_features

MULTIPLIED = [kind for kind in TYPES.values() if kind.activation is not None and kind.family is not None]
PACKED = [kind for kind in MULTIPLIED if kind.is_quantized]


def rounded(x: np.ndarray, kind: BlockType) -> np.ndarray:
    """Activations as blocks of the type's partner hold them: Q8_0 and Q8_1 have a half for 32, Q8_K a float for 256."""
    span = 256 if kind.activation == "Q8_K" else 32
    blocks = x.astype(np.float64).reshape(-1, span)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    codes = np.rint(blocks / np.where(scale == 0, 1, scale))
    kept = scale.astype(np.float16).astype(np.float64) if span == 32 else scale
    return (codes * kept).reshape(x.shape)


def rounded_to_bfloat(x: np.ndarray) -> np.ndarray:
    """float32 rounded to 16 bits, to nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def activations(x: np.ndarray, kind: BlockType) -> np.ndarray:
    """What the weights are multiplied by: x as the type's partner holds it. F16 weights are multiplied by floats."""
    if kind.is_quantized:
        return rounded(x, kind)
    return (rounded_to_bfloat(x) if kind.name == "BF16" else x).astype(np.float64)


def golden_rows(golden: Path, kind: BlockType) -> np.ndarray:
    with np.load(golden / "blocks.npz") as blocks:
        key = f"{kind.name}.weighted" if f"{kind.name}.weighted" in blocks else f"{kind.name}.plain"
        return np.ascontiguousarray(blocks[key]).view(np.uint8).reshape(len(blocks["x"]), -1)


def assert_close(got: np.ndarray, x: np.ndarray, weights: np.ndarray) -> None:
    """Within float32 rounding of what is added up: the terms, and the minimums of which the terms are a difference."""
    terms = np.abs(x) @ np.abs(weights).T + np.abs(x).sum(1, keepdims=True) * np.abs(weights).max(1)
    assert (np.abs(got - x @ weights.T) <= 2e-6 * terms + 1e-30).all()


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_packed_products_are_those_of_the_dequantized_weights(kind, golden):
    packed = golden_rows(golden, kind)
    weights = dequantize(packed, kind).astype(np.float64)
    x = np.random.default_rng(0).normal(size=(9, weights.shape[1])).astype(np.float32)
    x[1] *= 1e-3
    x[2, ::7] *= 50
    got = matmul(packed, kind, x)
    assert got.shape == (9, len(weights))
    assert_close(got, rounded(x, kind), weights)
    # A few columns have kernels of their own, which give the same numbers: up to four, those of one column.
    one = matmul(packed, kind, x[:1])
    for columns in (1, 2, 3, 4, 7):
        few = matmul(packed, kind, x[:columns])
        np.testing.assert_allclose(few, got[:columns], rtol=1e-4, atol=1e-4 * np.abs(got).max())
        if columns <= 4:
            np.testing.assert_array_equal(few[0], one[0])


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_the_vectors_of_a_super_block_have_the_same_group_in_the_same_lane(kind):
    reader = codec(kind).reader
    if reader.wide is not None:
        order = np.array(reader.wide.order)
        assert sorted(order) == list(range(64))
        groups = order.reshape(4, 16) * 4 // reader.group
        assert (groups == groups[0]).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "IQ4_NL", "MXFP4"])
@pytest.mark.parametrize("length", [32, 96, 288, 352, 640])
def test_small_blocks_in_rows_of_any_length(name, length):
    """Runs of blocks and their remainder, panels of activations and theirs."""
    random, kind = np.random.default_rng(length), TYPES[name]
    packed = quantize(random.normal(size=(37, length)).astype(np.float32), name)
    weights, x = dequantize(packed, name).astype(np.float64), random.normal(size=(9, length)).astype(np.float32)
    for columns in (1, 2, 3, 5, 9):
        assert_close(matmul(packed, kind, x[:columns]), rounded(x[:columns], kind), weights)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("panels", [1, 2, 3])
def test_rows_longer_than_a_panel(name, panels):
    """Eight columns are multiplied panel by panel, eight rows together, with the sums kept between."""
    random, kind = np.random.default_rng(panels), TYPES[name]
    length = 2048 * panels + (256 if kind.block_length == 256 else 352)
    packed = quantize(random.normal(size=(21, length)).astype(np.float32), name)
    weights, x = dequantize(packed, name).astype(np.float64), random.normal(size=(8, length)).astype(np.float32)
    for columns in (5, 8):
        assert_close(matmul(packed, kind, x[:columns]), rounded(x[:columns], kind), weights)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("length", [1, 5, 64, 172, 257])
def test_plain_products_of_any_length(name, length):
    random = np.random.default_rng(length)
    packed = quantize(random.normal(size=(37, length)).astype(np.float32), name)
    weights = dequantize(packed, name).astype(np.float64)
    for columns in (1, 3, 4, 7):
        x = random.normal(size=(columns, length)).astype(np.float32)
        assert_close(matmul(packed, TYPES[name], x), activations(x, TYPES[name]), weights)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("columns", [2, 5])
def test_a_column_that_is_not_finite_leaves_the_others_alone(name, columns):
    """Rows of an odd length: bfloat16 is multiplied in pairs, and the last pair lacks a number."""
    random = np.random.default_rng(1)
    packed = quantize(random.normal(size=(3, 37)).astype(np.float32), name)
    x = random.normal(size=(columns, 37)).astype(np.float32)
    expected = matmul(packed, TYPES[name], x)
    x[1] = np.inf
    got = matmul(packed, TYPES[name], x)
    assert not np.isfinite(got[1]).any()
    np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(expected, 1, 0))


def test_rows_beyond_a_tile_and_rows_of_zeros():
    random = np.random.default_rng(3)
    w = random.normal(size=(71, 64)).astype(np.float32)
    w[40] = 0
    packed = quantize(w, "Q8_0")
    x = np.zeros((5, 64), np.float32)
    x[3] = random.normal(size=64)
    got = matmul(packed, TYPES["Q8_0"], x)
    assert_close(got, rounded(x, TYPES["Q8_0"]), dequantize(packed, "Q8_0").astype(np.float64))
    assert (got[[0, 1, 2, 4]] == 0).all()


def test_shapes_and_types_that_do_not_fit_are_refused():
    packed = quantize(np.ones((2, 64), np.float32), "Q4_0")
    with pytest.raises(ValueError, match="not divisible"):
        matmul(packed, TYPES["Q4_0"], np.ones((1, 33), np.float32))
    with pytest.raises(ValueError, match=r"expected uint8 weights \(rows, 18\)"):
        matmul(packed, TYPES["Q4_0"], np.ones((1, 32), np.float32))
    with pytest.raises(ValueError, match="expected float32 activations"):
        matmul(packed, TYPES["Q4_0"], np.ones((1, 64)))
    with pytest.raises(ValueError, match="no matrix product with I8"):
        matmul(packed, TYPES["I8"], np.ones((1, 36), np.float32))


BASELINE = ("64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2")
AVX2 = (*BASELINE, "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "avx2", "fma", "f16c")
WITHOUT_BFLOAT = tuple(sorted(machine_features() - {"avx512bf16"}))
LACKING = "this machine has fewer instructions anyway"


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(BASELINE, marks=pytest.mark.skipif(not set(BASELINE) <= machine_features(), reason=LACKING)),
        pytest.param(AVX2, marks=pytest.mark.skipif(not set(AVX2) <= machine_features(), reason=LACKING)),
        pytest.param(WITHOUT_BFLOAT, marks=pytest.mark.skipif("avx512bf16" not in machine_features(), reason=LACKING)),
    ],
    ids=["baseline", "avx2", "no-bfloat"],
)
def test_machines_with_fewer_instructions_give_the_same_products(features, golden, tmp_path):
    """The other ways through the vector functions, in a process of its own since the choice is made at import."""
    names = ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_S"]
    random = np.random.default_rng(1)
    packed = {name: golden_rows(golden, TYPES[name]) for name in names}
    packed |= {name: quantize(random.normal(size=(30, 1024)).astype(np.float32), name) for name in ("F16", "BF16")}
    np.savez(tmp_path / "in.npz", **packed)
    script = f"""
import numpy as np
from llvmlite import binding
found = binding.get_host_cpu_features()
kept = type(found)({{name: name in {features!r} for name in found}})
binding.get_host_cpu_features = lambda: kept
from quantcli.kernels.products.matmul import matmul
from quantcli.kernels.simd import machine_features
from quantcli.core.block_types import TYPES
assert machine_features() == set({features!r})
x = np.random.default_rng(0).normal(size=(5, 1024)).astype(np.float32)
with np.load({os.fspath(tmp_path / "in.npz")!r}) as packed:
    np.savez({os.fspath(tmp_path / "out.npz")!r}, **{{name: matmul(packed[name], TYPES[name], x) for name in packed}})
"""
    environment = os.environ | {"QUANTCLI_CACHE_DIR": os.fspath(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    x = np.random.default_rng(0).normal(size=(5, 1024)).astype(np.float32)
    with np.load(tmp_path / "out.npz") as found:
        for name, rows in packed.items():
            kind = TYPES[name]
            weights = dequantize(rows, kind).astype(np.float64)
            assert_close(found[name], activations(x, kind), weights)
