"""Every packed type against data of the reference, and against the reference itself where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ggml_library import Quantizer, find_quantizer, quantize_apart
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import codec
from quantcli.kernels.rows import dequantize, quantize

PACKED = [name for name, kind in TYPES.items() if kind.is_quantized and kind.family]
VARIANTS = [(name, variant) for name in PACKED for variant in ("plain", "weighted")]


@pytest.fixture(scope="module")
def blocks(golden: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(golden / "blocks.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def reference() -> Quantizer:
    quantizer = find_quantizer()
    if quantizer is None:
        pytest.skip("llama-cpp-python, which carries the reference quantizers, is not installed")
    return quantizer


def first_difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], name: str) -> str:
    """Where two quantizations part: '' where they do not."""
    places = np.argwhere(ours != theirs)
    if not len(places):
        return ""
    row, byte = places[0]
    block, offset = divmod(int(byte), TYPES[name].block_bytes)
    return f"{name}: {len(places)} bytes differ, first in row {row}, block {block}, byte {offset}"


def test_the_golden_data_cover_every_packed_type(blocks: dict[str, NDArray[np.generic]]) -> None:
    assert {key.split(".")[0] for key in blocks} - {"x", "importance"} == set(PACKED)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_quantized_bytes_equal_the_reference(
    name: str, variant: str, blocks: dict[str, NDArray[np.generic]]
) -> None:
    importance = blocks["importance"] if variant == "weighted" else None
    if f"{name}.{variant}" not in blocks:
        with pytest.raises(ValueError, match="importance"):
            quantize(blocks["x"], name)
        return
    assert not first_difference(quantize(blocks["x"], name, importance), blocks[f"{name}.{variant}"], name)


@pytest.mark.parametrize("name", PACKED)
def test_the_result_does_not_depend_on_how_rows_are_cut(name: str, blocks: dict[str, NDArray[np.generic]]) -> None:
    x, importance = blocks["x"], blocks["importance"]
    for variant, weights in (("plain", None), ("weighted", importance)):
        if f"{name}.{variant}" in blocks:
            for height in (1, 7):
                parts = [quantize(x[first : first + height], name, weights) for first in range(0, len(x), height)]
                assert not first_difference(np.concatenate(parts), blocks[f"{name}.{variant}"], name)


# Dequantization: against the gguf package, and where that does not know a type, against the format in NumPy


def _one_bit(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    packed = data.view(TYPES["Q1_0"].layout)
    scale = packed["d"].astype(np.float32)[..., None]
    signs = np.unpackbits(packed["qs"], axis=-1, bitorder="little")
    return np.where(signs == 1, scale, -scale).reshape(len(data), -1)


def _two_bits(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    packed = data.view(TYPES["Q2_0"].layout)
    levels = (packed["qs"][..., None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
    levels = levels.reshape(*packed.shape, TYPES["Q2_0"].block_length).astype(np.float32) - 1
    return (levels * packed["d"].astype(np.float32)[..., None]).reshape(len(data), -1)


UNKNOWN_TO_GGUF = {"Q1_0": _one_bit, "Q2_0": _two_bits}


def _dequantized(data: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        if name in UNKNOWN_TO_GGUF:
            return UNKNOWN_TO_GGUF[name](data)
        gguf = pytest.importorskip("gguf", reason="the gguf package is the independent dequantizer")
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", PACKED)
def test_dequantized_values_equal_the_gguf_package(name: str, blocks: dict[str, NDArray[np.generic]]) -> None:
    data = blocks[f"{name}.weighted"]
    np.testing.assert_array_equal(dequantize(data, name), _dequantized(data, name))


@pytest.mark.parametrize("name", PACKED)
def test_any_bytes_dequantize_as_in_the_gguf_package(name: str) -> None:
    kind = TYPES[name]
    data = np.random.default_rng(kind.id).integers(0, 256, (64, 3 * kind.block_bytes), np.uint8)
    ours, theirs = dequantize(data, name), _dequantized(data, name)
    np.testing.assert_array_equal(ours, theirs)


# Against the reference, on rows made to be hard

LENGTH = 2048 + 256  # blocks of every length, and a number of them that no lane count divides


def _nasty_rows() -> NDArray[np.float32]:
    random = np.random.default_rng(20)
    normal = random.standard_normal((40, LENGTH)).astype(np.float32)
    rows = [
        *normal[:12],
        *(row * np.float32(scale) for row, scale in zip(normal[12:], 10.0 ** np.arange(-44, 16, 4), strict=False)),
        np.zeros(LENGTH),
        -np.zeros(LENGTH),
        np.where(normal[30] > 0, 0.0, -0.0),
        np.where(normal[31] > 1, normal[32], -0.0),
        *(np.full(LENGTH, value) for value in (1.0, -1.0, 0.3, -1e-39, 7e-46, 65504.0)),
        np.sign(normal[33]),
        np.rint(normal[34] * 4) / 8,
        np.rint(normal[35] * 2) + 0.5,
        np.abs(normal[36]),
        -np.abs(normal[37]),
        np.float32(-1) + np.float32(2.0**-23) * random.integers(0, 3, LENGTH),
        np.exp2(random.integers(-130, 20, LENGTH)),
        np.exp2(np.repeat(random.integers(-149, 40, LENGTH // 16), 16)) * normal[38],
        # The reference aborts where a cube of these, an error's weight and square, is not finite.
        np.nextafter(np.exp2(np.repeat(np.arange(-108.0, 36.0), 16)), 0, dtype=np.float32),
        np.linspace(-1, 1, LENGTH),
        np.tile([1.0, -1.0], LENGTH // 2),
        np.repeat(np.exp2(np.linspace(-14, 14, LENGTH // 16)), 16) * np.sign(normal[35]),
        np.where(np.arange(LENGTH) % 32 == 5, 1e4, 1e-4) * normal[39],
    ]
    return np.ascontiguousarray(rows, np.float32)


def _importances() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(21)
    spread = np.exp(2 * random.standard_normal(LENGTH))
    return {
        "spread": spread.astype(np.float32),
        "ones": np.ones(LENGTH, np.float32),
        "half of them zero": np.where(np.arange(LENGTH) // 16 % 2, spread, 0).astype(np.float32),
        "tiny": (spread * 1e-30).astype(np.float32),
    }


@pytest.mark.parametrize("name", PACKED)
def test_hard_rows_equal_the_reference_library(name: str, reference: Quantizer, tmp_path: Path) -> None:
    x, kind = _nasty_rows(), TYPES[name]
    cases: dict[str, NDArray[np.float32] | None] = dict(_importances())
    if codec(kind).quantize is not None:
        cases["none"] = None
    expected = quantize_apart(x, kind, cases, tmp_path)
    for case, data in expected.items():
        assert not first_difference(quantize(x, name, cases[case]), data, name), f"importance: {case}"
    if len(expected) < len(cases):
        pytest.skip(f"the reference itself aborts on these rows: {name} with importance {[*cases][len(expected)]!r}")


@pytest.mark.parametrize("name", PACKED)
def test_any_number_of_rows_and_blocks_equals_the_reference_library(name: str, reference: Quantizer) -> None:
    kind, random = TYPES[name], np.random.default_rng(22)
    for rows, blocks in ((1, 1), (3, 1), (1, 5), (2, 7), (19, 3), (5, 17), (17, 16)):
        x = random.standard_normal((rows, blocks * kind.block_length)).astype(np.float32)
        importance = random.random(x.shape[1]).astype(np.float32)
        for weights in (None, importance):
            if weights is not None or codec(kind).quantize is not None:
                assert not first_difference(quantize(x, name, weights), reference(x, kind, weights), name), (rows, blocks)


# Without the machine's own instructions

GENERIC = """
import sys, numpy
from quantcli.kernels.rows import dequantize, quantize
from quantcli.kernels.simd import LANES, machine_features
assert LANES == 8 and not machine_features()
with numpy.load(sys.argv[1]) as blocks:
    for key in blocks.files:
        name, _, variant = key.partition(".")
        if variant and name in sys.argv[2:]:
            data = quantize(blocks["x"], name, blocks["importance"] if variant == "weighted" else None)
            if (data != blocks[key]).any() or not numpy.isfinite(dequantize(data, name)).all():
                print(key)
"""


def test_the_portable_kernels_give_the_same_bytes(golden: Path) -> None:
    # Compiling everything again is what takes the time: a process per core. LLVM, too, is told to assume nothing.
    environment = {**os.environ, "QUANTCLI_SIMD": "generic", "NUMBA_CPU_NAME": "generic"}
    shares = [PACKED[first :: os.cpu_count() or 1] for first in range(min(os.cpu_count() or 1, len(PACKED)))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GENERIC, str(golden / "blocks.npz"), *share],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for share in shares
    ]  # fmt: skip
    for process in processes:
        output = process.communicate()[0]
        assert (process.returncode, output) == (0, ""), output


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_importance_that_is_no_weight_is_refused(bad: float) -> None:
    importance = np.ones(256, np.float32)
    importance[17] = bad
    with pytest.raises(ValueError, match="finite, zero or greater"):
        quantize(np.ones((1, 256), np.float32), "Q4_K", importance)
