"""Rounding with error feedback, against a plain implementation under the same scales, and against other scales."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.products.outer_sums import add_products, add_upper_products
from quantcli.kernels.rounding.feedback import has_feedback, quantize_with_feedback
from quantcli.kernels.rounding.fixed_scales import round_codes
from quantcli.kernels.rounding.moment_factor import MomentFactor, factorize
from quantcli.kernels.rounding.packed_scales import PackedScales, pack_scales, scale_fields, unpack_scales
from quantcli.kernels.rounding.stretch import BEST, GOOD, Effort
from quantcli.kernels.rows import dequantize, quantize

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

FEEDBACK = [name for name, kind in TYPES.items() if kind.is_quantized and has_feedback(kind)]
SCALAR = [name for name in FEEDBACK if codec(TYPES[name]).writer is not None]
LATTICES = ("IQ1_M", "IQ3_XXS")
WITH_SUPER_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
FRACTION = 1e-5
"""How much nearer than the nearest a code may seem. The targets of the kernel and of the plain implementation differ by
rounding errors."""


def random_moment(n: int, seed: int = 0) -> Floats:
    """A second moment of correlated inputs with columns of different size, as those of a transformer."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((n, n)) * random.random(n)[:, None] ** 2
    inputs = random.standard_normal((2 * n, n)) @ mixing / np.sqrt(n)
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def random_rows(rows: int, n: int, seed: int = 1) -> Floats:
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, n)) * 0.02
    return np.where(random.random((rows, n)) < 0.01, x * 6, x).astype(np.float32)


def rounded(x: Floats, kind: BlockType, factor: MomentFactor, effort: Effort = BEST) -> NDArray[np.uint8]:
    data = np.zeros((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    quantize_with_feedback(x, kind, factor, effort, data)
    return data


def plain_targets(x: Floats, weights: Floats, factor: MomentFactor) -> Doubles:
    """The target of each weight, given all weights before it in its row."""
    upper = np.triu(factor.upper, 1).astype(np.float64)
    return x + (x.astype(np.float64) - weights) @ upper


def loss_of(x: Floats, data: NDArray[np.uint8], kind: BlockType, moment: Floats) -> float:
    error = x.astype(np.float64) - dequantize(data, kind)
    return float(np.einsum("ri,ij,rj->", error, moment.astype(np.float64), error))


@pytest.mark.parametrize("n", [32, 96, 640])
def test_the_factors_give_the_moment(n: int) -> None:
    moment = random_moment(n)
    upper, diagonal, _ = factorize(np.triu(moment), 0.01)
    unit = np.triu(upper, 1).astype(np.float64) + np.eye(n)
    damped = moment + 0.01 * np.diag(moment).mean() * np.eye(n)
    assert np.allclose(unit @ np.diag(diagonal.astype(np.float64)) @ unit.T, damped, rtol=0, atol=2e-6 * damped.max())


def test_singular_moments_are_factorized() -> None:
    dead = random_moment(64)
    dead[:, 7] = dead[7, :] = 0
    one_token = np.outer(random_rows(1, 64)[0], random_rows(1, 64)[0]).astype(np.float32)
    for moment in (dead, one_token, np.zeros((64, 64), np.float32)):
        upper, diagonal, _ = factorize(moment, 0.01)
        assert np.isfinite(np.triu(upper, 1)).all()
        assert (diagonal > 0).all()
    assert (diagonal == 1).all()


def test_sums_of_products() -> None:
    random = np.random.default_rng(2)
    for rows, n, wide in ((1, 32, 32), (700, 160, 96), (256, 416, 288)):
        left = random.standard_normal((rows + 3, n)).astype(np.float32)
        right = random.standard_normal((rows, wide)).astype(np.float32)
        out = np.ones((n - 32, wide), np.float32)
        if n > 32:
            add_products(left, 3, 32, right, out)
            assert np.allclose(out, 1 + left[3:, 32:].T @ right, atol=1e-3)
        moment = np.zeros((n, n), np.float32)
        add_upper_products(left, left, moment)
        assert np.allclose(np.triu(moment), np.triu(left.T @ left), atol=1e-3)


@pytest.mark.parametrize("name", SCALAR)
def test_every_code_is_nearest_to_its_target(name: str) -> None:
    """Rounding the targets under the scales that were chosen changes no code, before coordinate descent. The targets are
    those of the result itself."""
    kind, n = TYPES[name], 768
    x, factor = random_rows(40, n), factorize(random_moment(n), 0.01)
    data = rounded(x, kind, factor, Effort(BEST.scales, sweeps=0))
    weights = dequantize(data, kind)
    targets = plain_targets(x, weights, factor)
    nearest = data.copy()
    round_codes(targets.astype(np.float32), nearest, kind)
    gained = np.abs(targets - weights) - np.abs(targets - dequantize(nearest, kind))
    assert (gained <= FRACTION * np.abs(x).max()).all()
    assert (np.abs(weights).max(axis=1) > 0).all()


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("effort", [GOOD, BEST])
def test_less_loss_than_the_reference_rounding(name: str, effort: Effort) -> None:
    """With three stretches: the errors of two reach later columns by a product."""
    kind, n = TYPES[name], 768
    x, moment = random_rows(64, n), random_moment(n)
    importance = np.ascontiguousarray(np.diag(moment))
    reference = quantize(x, kind, importance)
    found = rounded(x, kind, factorize(moment, 0.01), effort)
    assert loss_of(x, found, kind, moment) < 0.8 * loss_of(x, reference, kind, moment)


@pytest.mark.parametrize("name", WITH_SUPER_BLOCKS)
def test_other_scales_are_seldom_better(name: str) -> None:
    """With a diagonal moment no error is fed back, so each group's loss stands alone. Scales near those of a fit
    are tried: seldom does a scale or minimum next to the chosen one give less, under the same super-block scales."""
    kind, n = TYPES[name], 256
    x = random_rows(64, n)
    importance = (np.random.default_rng(5).random(n) + 0.1).astype(np.float32)
    data = rounded(x, kind, factorize(np.diag(importance), 0.0))
    fields, found, best = scale_fields(kind), unpack_scales(data, kind), group_losses(x, data, kind, importance)
    for step, low_step in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        other = data.copy()
        scales = np.clip(found.scales + step, fields.scales[0], fields.scales[-1])
        minimums = np.clip(found.minimums + low_step, 0, fields.minimums[-1]) if fields.minimums else found.minimums
        pack_scales(PackedScales(found.d, found.dmin, scales, minimums), other, kind)
        assert (group_losses(x, other, kind, importance) < best * (1 - 1e-5)).mean() < 0.05


def group_losses(x: Floats, data: NDArray[np.uint8], kind: BlockType, importance: Floats) -> Doubles:
    """The loss of each group, (rows, groups), with its codes rounded to nearest."""
    nearest = data.copy()
    round_codes(x, nearest, kind)
    error = np.square(x.astype(np.float64) - dequantize(nearest, kind)) * importance
    return error.reshape(len(x), unpack_scales(data, kind).scales.shape[-1], -1).sum(axis=2)


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "IQ4_NL", "Q5_1", "IQ1_S", "IQ2_XS", "IQ3_XXS"])
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    kind, n = TYPES[name], 512
    x, factor = random_rows(70, n), factorize(random_moment(n), 0.01)
    whole = rounded(x, kind, factor)
    for start, stop in ((0, 1), (3, 40), (40, 70)):
        assert np.array_equal(rounded(x[start:stop], kind, factor), whole[start:stop])


@pytest.mark.parametrize("name", SCALAR)
def test_coordinate_descent_ends_where_no_single_code_gains(name: str) -> None:
    """After many sweeps each weight is nearest to its best value with all other weights as they are."""
    kind, n = TYPES[name], 512
    x, factor = random_rows(24, n), factorize(random_moment(n), 0.01)
    few, many = (rounded(x, kind, factor, Effort(1, sweeps)) for sweeps in (0, 30))
    weights, moment = dequantize(many, kind).astype(np.float64), factor.moment.astype(np.float64)
    wanted = weights + (x - weights) @ moment / np.diag(moment)
    nearest = many.copy()
    round_codes(wanted.astype(np.float32), nearest, kind)
    gained = np.abs(wanted - weights) - np.abs(wanted - dequantize(nearest, kind))
    assert (gained > 1e-4 * np.abs(x).max()).mean() < 1e-3
    assert loss_of(x, many, kind, factor.moment) < loss_of(x, few, kind, factor.moment)
    assert np.array_equal(unpack_scales(many, kind).scales, unpack_scales(few, kind).scales)


def test_zeros_stay_zeros() -> None:
    x = np.zeros((3, 256), np.float32)
    for name in FEEDBACK:
        if name not in ("Q1_0",):  # which has no zero, but a scale of zero
            assert not dequantize(rounded(x, TYPES[name], factorize(random_moment(256), 0.01)), name).any()


DIGESTS = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_feedback import digests
print(digests())
"""


def digests() -> str:
    """A digest of the bytes of some types, and of the factors of a moment."""
    x = random_rows(20, 512)
    inputs = random_rows(300, 512, seed=9)
    moment = np.zeros((512, 512), np.float32)
    add_upper_products(inputs, inputs, moment)
    factor = factorize(moment, 0.01)
    parts = [np.triu(factor.upper, 1).tobytes(), factor.diagonal.tobytes()]
    parts += [rounded(x, TYPES[name], factor).tobytes() for name in ("Q4_K", "IQ4_NL")]
    small = factorize(moment[:256, :256].copy(), 0.01)
    parts += [rounded(x[:4, :256], TYPES[name], small).tobytes() for name in LATTICES]
    return " ".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)


def test_the_bytes_do_not_depend_on_the_instruction_set() -> None:
    environment = {**os.environ, "QUANTCLI_SIMD": "generic", "NUMBA_CPU_NAME": "generic"}
    command = [sys.executable, "-c", DIGESTS, str(Path(__file__).parent)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digests()
