"""Properties of every block type on rows that hypothesis finds: bounds of a round trip, and independence of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import codec
from quantcli.kernels.finite import first_not_finite
from quantcli.kernels.rows import dequantize, quantize

EXAMPLES = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PACKED = [name for name, kind in TYPES.items() if kind.is_quantized and kind.family]
# In MXFP4 a block below 2**-125 can get the scale 255, which is not a number: llama.cpp writes and then refuses it, too.
NUMBERS = st.floats(-1000, 1000, width=32).filter(lambda number: number == 0 or abs(number) >= 2**-125)
ROWS = arrays.arrays(np.float32, (2, 512), elements=NUMBERS, fill=st.sampled_from([np.float32(0), np.float32(1)]))


def importance_for(name: str) -> NDArray[np.float32] | None:
    return None if codec(TYPES[name]).quantize is not None else np.ones(512, np.float32)


@pytest.mark.parametrize("name", PACKED)
@EXAMPLES
@given(x=ROWS)
def test_a_round_trip_is_finite_and_in_the_range_of_the_row(name: str, x: NDArray[np.float32]) -> None:
    blocks = quantize(x, name, importance_for(name))
    assert first_not_finite(blocks, TYPES[name]) == -1
    back = dequantize(blocks, name)
    assert np.isfinite(back).all()
    # A lattice has no point of equal levels: a search puts some beyond the largest weight, the reference's too. The most
    # that 25,600 odd rows of each type gave is 2.27 times it, in IQ1_M.
    assert np.abs(back).max() <= 3 * np.abs(x).max() + 1e-6


@pytest.mark.parametrize("name", PACKED)
@EXAMPLES
@given(x=ROWS)
def test_rows_are_quantized_each_for_itself(name: str, x: NDArray[np.float32]) -> None:
    whole = quantize(x, name, importance_for(name))
    for row in range(len(x)):
        np.testing.assert_array_equal(quantize(x[row : row + 1], name, importance_for(name))[0], whole[row])


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
@EXAMPLES
@given(x=ROWS)
def test_the_error_is_within_one_step(name: str, x: NDArray[np.float32]) -> None:
    steps = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 127}[name]
    blocks = x.reshape(-1, 32)
    step = np.abs(blocks).max(1, keepdims=True) / steps
    error = np.abs(dequantize(quantize(x, name), name).reshape(-1, 32) - blocks)
    # The scale is a half: a step may be off by a part in a thousand, on each of the levels, or by the smallest half.
    assert (error <= step * (1 + steps / 1024) + steps * 6e-8).all()
