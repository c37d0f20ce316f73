"""Codes rounded under the scales that stand in blocks, against every code that a type has, tried one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import PART, CodeWriter, PackedReader
from quantcli.kernels.jit import kernel
from quantcli.kernels.rounding.fixed_scales import round_codes
from quantcli.kernels.rows import dequantize, quantize
from quantcli.kernels.shorthand import Bytes
from quantcli.kernels.simd import load, reinterpret, store

PACKED = [name for name, kind in TYPES.items() if kind.is_quantized and kind.family]
WRITTEN = [name for name in PACKED if codec(TYPES[name]).writer is not None]
SCALES = {"d": np.float16, "m": np.float16, "dmin": np.float16}
LENGTH = 512


def writer_of(name: str) -> CodeWriter:
    writer = codec(TYPES[name]).writer
    assert writer is not None
    return writer


@cache
def code_kernels(name: str) -> tuple[Any, Any]:
    """(read, write): kernels between blocks (count, block bytes) and their codes (count, block length), as uint8."""
    kind, functions = TYPES[name], codec(TYPES[name])
    assert isinstance(functions.reader, PackedReader)
    codes_of, write_block = functions.reader.codes, writer_of(name).store
    length, block_bytes, parts = kind.block_length, kind.block_bytes, kind.block_length // PART

    @kernel
    def read(data: Bytes, codes: Bytes) -> None:
        packed, flat = data.reshape(-1), codes.reshape(-1)
        for block in range(len(data)):
            for part in range(parts):
                code = reinterpret(codes_of(packed, block * block_bytes, part), np.uint8)
                store(flat, block * length + part * PART, code)

    @kernel
    def write(codes: Bytes, data: Bytes) -> None:
        room, packed = np.empty(length, np.uint8), data.reshape(-1)
        for block in range(len(data)):
            for first in range(0, length, PART):
                store(room, first, load(codes.reshape(-1), block * length + first, PART))
            write_block(packed, block * block_bytes, room)

    return read, write


def codes_in(data: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """The codes of rows of blocks (rows, bytes), uint8 (rows, n)."""
    kind = TYPES[name]
    codes = np.empty((data.size // kind.block_bytes, kind.block_length), np.uint8)
    code_kernels(name)[0](data.reshape(-1, kind.block_bytes), codes)
    return codes.reshape(len(data), -1)


def with_codes(data: NDArray[np.uint8], codes: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Rows of blocks with other codes (rows, n) under the same scales."""
    kind, out = TYPES[name], data.copy()
    code_kernels(name)[1](np.ascontiguousarray(codes), out.reshape(-1, kind.block_bytes))
    return out


def some_scales(name: str, rows: int = 6) -> NDArray[np.uint8]:
    """Rows of random blocks whose numbers in half precision are moderate, of both signs, and zero in one block of ten."""
    kind, random = TYPES[name], np.random.default_rng(TYPES[name].id)
    count = rows * LENGTH // kind.block_length
    blocks = random.integers(0, 256, (count, kind.block_bytes), np.uint8).view(kind.layout)[:, 0]
    for field in set(SCALES) & set(kind.layout.names or ()):
        if kind.layout[field] == np.dtype("<f2"):
            values = random.standard_normal(count).astype(np.float16)
            blocks[field] = np.where(random.random(count) < 0.1, 0, values)
    if name == "MXFP4":
        blocks["e"] = random.integers(0, 253, count)  # beyond, the largest levels are infinite
    return blocks.view(np.uint8).reshape(rows, -1)


def some_blocks(name: str, rows: int = 6) -> NDArray[np.uint8]:
    """Random scales, and random codes among those that exist."""
    choices = np.array(writer_of(name).codes, np.int16).astype(np.uint8)
    return with_codes(some_scales(name, rows), np.random.default_rng(1).choice(choices, (rows, LENGTH)), name)


def every_weight(data: NDArray[np.uint8], name: str) -> NDArray[np.float64]:
    """What each weight would be with each code: float64 (codes, rows, n)."""
    codes = np.array(writer_of(name).codes, np.int16).astype(np.uint8)
    shape = (len(data), data.shape[1] // TYPES[name].block_bytes * TYPES[name].block_length)
    return np.stack([dequantize(with_codes(data, np.full(shape, code, np.uint8), name), name) for code in codes]).astype(
        np.float64
    )


def rounded(x: NDArray[np.float32], data: NDArray[np.uint8], name: str, *columns: int) -> NDArray[np.uint8]:
    out = data.copy()
    round_codes(x, out, name, *columns)
    return out


def values_near(data: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Values within the weights' range, some beyond, and some halfway between two weights."""
    weights = np.sort(every_weight(data, name), 0)
    random = np.random.default_rng(2)
    with np.errstate(over="ignore"):
        spread = (weights[-1] - weights[0]) * random.uniform(-0.2, 1.2, weights.shape[1:]) + weights[0]
        upper = random.integers(1, len(weights), weights.shape[1:])[None]
        middle = (np.take_along_axis(weights, upper, 0) / 2 + np.take_along_axis(weights, upper - 1, 0) / 2)[0]
        x = np.where(random.random(spread.shape) < 0.3, middle, spread).astype(np.float32)
    return np.where(np.isfinite(x), x, np.float32(1))


def test_scalar_types_have_a_writer_and_lattice_types_have_none() -> None:
    assert {name for name in PACKED if name not in WRITTEN} == {
        name for name, kind in TYPES.items() if kind.family == "i_lattice"
    }


@pytest.mark.parametrize("name", WRITTEN)
def test_codes_that_are_read_and_written_give_the_same_bytes(name: str) -> None:
    data = some_blocks(name)
    codes = codes_in(data, name)
    other = with_codes(data, np.roll(codes, 1, 1), name)
    assert (other != data).any()
    np.testing.assert_array_equal(codes_in(other, name), np.roll(codes, 1, 1))
    np.testing.assert_array_equal(with_codes(other, codes, name), data)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_weights_of_blocks_round_to_their_own_codes(name: str) -> None:
    data = some_blocks(name)
    weights = dequantize(data, name)
    np.testing.assert_array_equal(dequantize(rounded(weights, data, name), name), weights)
    every = np.sort(every_weight(data, name), 0)
    # Where all weights of a column differ, or none does, the codes are told by them.
    told = (np.diff(every, axis=0) > 0).all(0) | (every[0] == every[-1])
    assert told.mean() > 0.9
    np.testing.assert_array_equal(codes_in(rounded(weights, data, name), name)[told], codes_in(data, name)[told])
    # From whatever codes.
    varied = told & (every[0] != every[-1])
    scrambled = with_codes(data, np.roll(codes_in(data, name), 5, 1), name)
    np.testing.assert_array_equal(codes_in(rounded(weights, scrambled, name), name)[varied], codes_in(data, name)[varied])


@pytest.mark.parametrize("name", WRITTEN)
def test_every_code_is_the_nearest_of_all(name: str) -> None:
    data = some_blocks(name)
    x = values_near(data, name)
    error = np.abs(dequantize(rounded(x, data, name), name).astype(np.float64) - x)
    np.testing.assert_array_equal(error, np.abs(every_weight(data, name) - x).min(0))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("huge", [1e38, -1e38, np.inf, -np.inf])
def test_values_far_away_take_the_last_weight_on_their_side(name: str, huge: float) -> None:
    data = some_blocks(name)
    weights = dequantize(rounded(np.full((len(data), LENGTH), huge, np.float32), data, name), name)
    every = every_weight(data, name)
    within = np.abs(every).max(0) < 1e37
    np.testing.assert_array_equal(weights[within], (every.max(0) if huge > 0 else every.min(0))[within])


@pytest.mark.parametrize("name", WRITTEN)
def test_codes_of_the_quantizer_get_no_worse(name: str) -> None:
    x = np.random.default_rng(3).standard_normal((5, LENGTH)).astype(np.float32)
    data = quantize(x, name)
    better = rounded(x, data, name)
    before, after = ((dequantize(blocks, name).astype(np.float64) - x) ** 2 for blocks in (data, better))
    assert (after <= before).all()
    np.testing.assert_array_equal(after, ((every_weight(data, name) - x) ** 2).min(0))


@pytest.mark.parametrize("name", WRITTEN)
def test_only_the_columns_asked_for_are_rounded(name: str) -> None:
    data = some_blocks(name)
    x = np.random.default_rng(4).standard_normal((len(data), LENGTH)).astype(np.float32)
    before, after = codes_in(data, name), codes_in(rounded(x, data, name), name)
    for start, stop in ((0, 0), (0, 1), (7, 8), (31, 33), (100, 300), (256, 512), (511, 512), (0, 512)):
        part = rounded(x, data, name, start, stop)
        columns = np.arange(LENGTH)
        expected = np.where((columns >= start) & (columns < stop), after, before)
        np.testing.assert_array_equal(codes_in(part, name), expected)
        np.testing.assert_array_equal(part, with_codes(data, expected, name))
    by_column = data.copy()
    for column in range(LENGTH):
        round_codes(x, by_column, name, column, column + 1)
    np.testing.assert_array_equal(by_column, rounded(x, data, name))


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_are_rounded_each_for_itself(name: str) -> None:
    data = some_blocks(name)
    x = values_near(data, name)
    whole = rounded(x, data, name)
    for row in range(len(data)):
        np.testing.assert_array_equal(rounded(x[row : row + 1], data[row : row + 1], name)[0], whole[row])


@pytest.mark.parametrize("name", WRITTEN)
def test_scales_are_kept_and_codes_that_nothing_tells_apart_too(name: str) -> None:
    data = some_blocks(name)
    x = values_near(data, name)
    scales = [field for field in TYPES[name].layout.names or () if field in ("d", "m", "dmin", "e", "scales_l", "scales_h")]
    if name != "NVFP4":
        scales += [field for field in ("scales",) if field in (TYPES[name].layout.names or ())]
    out = rounded(x, data, name)
    for field in scales:
        np.testing.assert_array_equal(out.view(TYPES[name].layout)[field], data.view(TYPES[name].layout)[field])
    nothing = np.full_like(x, np.nan)
    np.testing.assert_array_equal(rounded(nothing, data, name), data)
    infinite = data.copy().view(TYPES[name].layout)
    if infinite.dtype["d" if "d" in infinite.dtype.names else "e"] == np.dtype("<f2"):
        infinite["d"] = np.inf
        kept = rounded(x, infinite.view(np.uint8), name)
        finite = np.isfinite(dequantize(infinite.view(np.uint8), name))  # zero times infinity is not, either
        np.testing.assert_array_equal(codes_in(kept, name)[~finite], codes_in(data, name)[~finite])


def test_ties_of_uneven_levels_go_where_the_quantizer_takes_them() -> None:
    # A block with its largest level at the scale 1, and values halfway between neighbours.
    for name, largest, ties in (
        ("IQ4_NL", -127, [(-10 + 1) / 2, (1 + 13) / 2, (-127 - 104) / 2]),
        ("MXFP4", 6, [0.25, -0.25, 2.5, -5, 3.5]),
    ):
        x = np.zeros((1, 32), np.float32)
        x[0, 0], x[0, 1 : 1 + len(ties)] = largest, ties
        data = quantize(x, name)
        if name == "IQ4_NL":
            data.view(TYPES[name].layout)["d"] = 1
        codes = rounded(x, data, name)
        taken = dequantize(codes, name)[0, 1 : 1 + len(ties)]
        expected = [1, 13, -104] if name == "IQ4_NL" else [0, 0, 2, -4, 3]
        np.testing.assert_array_equal(taken, np.array(expected, np.float32))


GENERIC = """
import sys, numpy
from quantcli.kernels.rounding.fixed_scales import round_codes
from quantcli.kernels.simd import machine_features
assert not machine_features()
with numpy.load(sys.argv[1]) as arrays:
    for name in sys.argv[2:]:
        data = arrays[name + ".data"].copy()
        round_codes(arrays[name + ".x"], data, name, 5, 480)
        if (data != arrays[name + ".rounded"]).any():
            print(name)
"""


def test_the_portable_kernels_round_alike(tmp_path: Path) -> None:
    arrays = {}
    for name in WRITTEN:
        data = some_blocks(name)
        x = values_near(data, name)
        arrays |= {f"{name}.data": data, f"{name}.x": x, f"{name}.rounded": rounded(x, data, name, 5, 480)}
    np.savez(tmp_path / "arrays.npz", **arrays)
    environment = {**os.environ, "QUANTCLI_SIMD": "generic", "NUMBA_CPU_NAME": "generic"}
    result = subprocess.run(
        [sys.executable, "-c", GENERIC, str(tmp_path / "arrays.npz"), *WRITTEN],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_what_does_not_fit_is_refused() -> None:
    x, data = np.zeros((2, 64), np.float32), np.zeros((2, 36), np.uint8)
    for bad_x, bad_data, message in (
        (x[0], data, "float32 rows"),
        (x.astype(np.float64), data, "float32 rows"),
        (x, data[:, :18], "uint8 blocks"),
        (x, data.view(np.int8), "uint8 blocks"),
        (x, np.asfortranarray(data), "uint8 blocks"),
        (x[:, :33], data, "divisible"),
    ):
        with pytest.raises(ValueError, match=message):
            round_codes(bad_x, bad_data, "Q4_0")
    for start, stop in ((-1, 3), (5, 3), (0, 65)):
        with pytest.raises(ValueError, match="columns within 0 to 64"):
            round_codes(x, data, "Q4_0", start, stop)
    data.setflags(write=False)
    with pytest.raises(ValueError, match="writable"):
        round_codes(x, data, "Q4_0")


@pytest.mark.parametrize("name", ["IQ2_XS", "IQ1_M", "F16", "I32"])
def test_types_without_scalar_codes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        round_codes(np.zeros((1, 256), np.float32), np.zeros((1, 256), np.uint8), name)
