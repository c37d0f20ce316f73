"""Blocks that hold NaN or infinity are found: in every type, wherever it keeps floating-point numbers."""

from __future__ import annotations

import numpy as np
import pytest
from ggml_library import find_validator
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.kernels.finite import first_not_finite
from quantcli.kernels.rows import dequantize, quantize

FLOATING = [name for name, kind in TYPES.items() if kind.family and name != "NVFP4"]
BLOCKS = 300


def random_blocks(name: str, seed: int) -> NDArray[np.uint8]:
    """Random bytes: of one half in 32 the exponent is all ones, of other formats fewer. Some more are made so."""
    random = np.random.default_rng(seed)
    kind = TYPES[name]
    blocks = random.integers(0, 256, (BLOCKS, kind.block_bytes), np.uint8)
    if not kind.is_quantized:
        infinity = np.array(np.inf, "<f8").tobytes()[-kind.block_bytes :]
        blocks[random.integers(0, BLOCKS, 9)] |= np.frombuffer(infinity, np.uint8)
    return blocks


@pytest.mark.parametrize("name", FLOATING)
def test_a_block_that_gives_back_no_number_is_found(name: str) -> None:
    kind, blocks = TYPES[name], random_blocks(name, 1)
    with np.errstate(all="ignore"):
        broken = ~np.isfinite(dequantize(blocks, kind)).all(1)
    # A large exponent of MXFP4 gives infinity as well.
    if name == "MXFP4":
        broken = np.array([first_not_finite(block, kind) == 0 for block in blocks]) & broken
    assert broken.any()
    for start in range(BLOCKS):
        expected = int(broken[start:].argmax()) if broken[start:].any() else -1
        assert first_not_finite(blocks[start:], kind) == expected


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind.family])
def test_the_reference_calls_the_same_blocks_invalid(name: str) -> None:
    validate = find_validator()
    if validate is None:
        pytest.skip("llama-cpp-python, which carries the reference's check, is not installed")
    kind = TYPES[name]
    for block in random_blocks(name, 2):
        assert (first_not_finite(block, kind) < 0) == validate(block, kind)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "TQ2_0"])
def test_a_weight_that_overflows_is_found_in_its_block(name: str) -> None:
    kind = TYPES[name]
    x = np.ones((3, 1024), np.float32)
    assert first_not_finite(quantize(x, kind), kind) == -1
    x[2, 515] = 3e38
    assert first_not_finite(quantize(x, kind), kind) == (2 * 1024 + 515) // kind.block_length


def test_nothing_is_finite() -> None:
    assert first_not_finite(np.empty((0, 34), np.uint8), TYPES["Q8_0"]) == -1
