"""Rounding with error feedback onto IQ1, IQ2 and IQ3: every point against the whole codebook, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_feedback import Doubles, loss_of, plain_targets, random_moment, random_rows, rounded

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.codebooks import codebook
from quantcli.kernels.jit import kernel
from quantcli.kernels.rounding.moment_factor import MomentFactor, factorize
from quantcli.kernels.rounding.stretch import BEST, Effort
from quantcli.kernels.rows import dequantize
from quantcli.kernels.simd import address, store

SHIFTED = ("IQ1_S", "IQ1_M")
EVEN = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
MAGNITUDES = (*EVEN, "IQ2_S", "IQ3_S")
ROUNDING = 1 + 1e-4
"""How much larger the loss of a point may be than the least, because the kernel computes in float32."""


def scales_of(data: NDArray[np.uint8], kind: BlockType) -> Doubles:
    """The scale of each octet, (rows, octets), by the type's reader. Codes of IQ1 are eighths."""
    reader: Any = codec(kind).reader
    scales, groups, stride = reader.scales, 256 // reader.group, kind.block_bytes

    @kernel
    def read(packed: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        source, target = address(packed, np.uint8), address(out, np.float32)
        for block in range(packed.size // stride):
            store(target, block * groups, scales(source, block * stride))

    found = np.empty(data.size // stride * groups, np.float32)
    read(data, found)
    each = np.repeat(found.astype(np.float64), reader.group // 8).reshape(len(data), -1)
    return each * (8 if kind.name in SHIFTED else 1)


def regular_moment(n: int) -> NDArray[np.float32]:
    """A random moment that can be factorized without damping."""
    moment = random_moment(n)
    return moment + np.eye(n, dtype=np.float32) * moment.diagonal().mean() * np.float32(0.01)


class Octet:
    """An octet of a row after rounding: what its loss depends on.

    chosen   its weights
    base     the targets of its columns, without what its own weights contribute
    """

    def __init__(self, at: int, chosen: Doubles, target: Doubles, factor: MomentFactor) -> None:
        self.upper = np.triu(factor.upper[at : at + 8, at : at + 8], 1).astype(np.float64)
        self.weight = factor.diagonal[at : at + 8].astype(np.float64)
        self.chosen, self.base = chosen[at : at + 8], target[at : at + 8] + chosen[at : at + 8] @ self.upper

    def losses(self, points: Doubles, first: int) -> Doubles:
        """The losses of the columns from `first` on under each of the points, given the weights before them."""
        stop = first + points.shape[1]
        weights = np.concatenate([np.tile(self.chosen[:first], (len(points), 1)), points], axis=1)
        off = self.base[:stop] - weights - weights @ self.upper[:stop, :stop]
        loss: Doubles = (np.square(off) * self.weight[:stop])[:, first:].sum(axis=1)
        return loss

    def free(self) -> Doubles:
        """The weights that would make the loss zero."""
        weights: Doubles = np.linalg.solve((self.upper + np.eye(8)).T, self.base)
        return weights


def octets(name: str) -> list[tuple[float, Octet]]:
    """The octets of some rows, with their scales."""
    kind, n = TYPES[name], 512
    x, factor = random_rows(24, n), factorize(random_moment(n), 0.01)
    data = rounded(x, kind, factor, Effort(3))
    weights = dequantize(data, kind).astype(np.float64)
    targets, scales = plain_targets(x, dequantize(data, kind), factor), scales_of(data, kind)
    return [
        (scales[row, at // 8], Octet(at, weights[row], targets[row], factor))
        for row in range(len(x))
        for at in range(0, n, 8)
    ]


@pytest.mark.parametrize("name", MAGNITUDES)
def test_every_point_of_magnitudes_is_the_best_of_its_codebook(name: str) -> None:
    values = codebook(name).values.astype(np.float64)
    size = values.shape[1]
    for scale, octet in octets(name):
        for first in range(0, 8, size):
            chosen = octet.chosen[first : first + size]
            losses = octet.losses(values * scale * np.where(chosen < 0, -1, 1), first)
            assert octet.losses(chosen[None], first)[0] <= losses.min() * ROUNDING


@pytest.mark.parametrize("name", SHIFTED)
def test_every_ternary_point_is_the_best_of_its_codebook(name: str) -> None:
    values = codebook(name).values.astype(np.float64)
    for scale, octet in octets(name):
        up, down = (octet.losses((values + shift) * scale, 0).min() for shift in (0.125, -0.125))
        if name == "IQ1_M":
            least = min(up, down)
        else:
            fraction = octet.chosen[0] / scale % 1 if scale else 0.125
            least = up if fraction < 0.5 else down
        assert octet.losses(octet.chosen[None], 0)[0] <= least * ROUNDING


@pytest.mark.parametrize("name", MAGNITUDES)
def test_signs_are_those_of_the_free_weights(name: str) -> None:
    """Where their number must be even and is odd, the least costly sign is changed."""
    changed = 0
    for _, octet in octets(name):
        free = octet.free()
        cost = np.abs(octet.base - free @ octet.upper) * np.sqrt(octet.weight)
        minus = free < 0
        differs = minus != (octet.chosen < 0)
        if name in EVEN and minus.sum() % 2:
            assert differs.sum() == 1
            assert cost[differs][0] <= cost.min() * 1.01 + 1e-6
            changed += 1
        else:
            assert cost[differs].max(initial=0) < 1e-5
    assert bool(changed) == (name in EVEN)


def test_shifts_of_a_group_are_the_same_in_iq1_s() -> None:
    kind = TYPES["IQ1_S"]
    data = rounded(random_rows(24, 256), kind, factorize(random_moment(256), 0.01))
    eighths = np.rint(dequantize(data, kind) * 8 / np.repeat(scales_of(data, kind), 8, axis=1)).reshape(24, 8, 32) % 8
    assert set(np.unique(eighths)) == {1, 7}
    assert (eighths == eighths[:, :, :1]).all()


@pytest.mark.parametrize("name", [*MAGNITUDES, *SHIFTED])
def test_descent_gives_less_loss(name: str) -> None:
    """On one super-block, whose loss is that of the whole row."""
    kind, moment = TYPES[name], regular_moment(256)
    x, factor = random_rows(32, 256), factorize(moment, 0.0)
    several_scales, descended = (loss_of(x, rounded(x, kind, factor, effort), kind, moment) for effort in (Effort(5), BEST))
    assert descended < 0.93 * several_scales


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_S"])
def test_no_single_point_is_much_better_after_descent(name: str) -> None:
    """Other points of the codebook in place of one, all others kept, under the whole moment."""
    kind, moment = TYPES[name], regular_moment(256)
    x, factor = random_rows(16, 256), factorize(moment, 0.0)
    data = rounded(x, kind, factor)
    weights, scales, values = dequantize(data, kind).astype(np.float64), scales_of(data, kind), codebook(name).values
    losses = np.einsum("ri,ij,rj->r", x - weights, moment.astype(np.float64), x - weights)
    gains = []
    for row in range(len(x)):
        for at in range(0, 256, 8):
            chosen = weights[row, at : at + 8]
            change = chosen - values * scales[row, at // 8] * np.where(chosen < 0, -1, 1)
            block = moment[at : at + 8, at : at + 8].astype(np.float64)
            slope = (x[row] - weights[row]) @ moment[:, at : at + 8].astype(np.float64)
            gains.append(-(2 * change @ slope + np.einsum("ci,ij,cj->c", change, block, change)).min() / losses[row])
    assert np.mean(np.array(gains) > 1e-3) < 0.1
