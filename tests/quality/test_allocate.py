"""The allocation of types, against brute force over all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.quality import allocate as module
from quantcli.quality.allocate import Candidate, allocate

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def instance(seed: int, tensors: int, unit: int) -> dict[str, list[Candidate]]:
    """Random candidates. Losses mostly fall with the bytes, but not always."""
    random = np.random.default_rng(seed)
    found = {}
    for tensor in range(tensors):
        names = random.choice(NAMES, random.integers(1, 5), replace=False)
        sizes = random.integers(1, 40, len(names)) * unit
        losses = random.random(len(names)) / sizes
        found[f"t{tensor}"] = [
            Candidate(TYPES[name], int(size), float(loss)) for name, size, loss in zip(names, sizes, losses, strict=True)
        ]
    return found


def best_of_all(candidates: dict[str, list[Candidate]], budget: int) -> float:
    return min(
        sum(option.loss for option in options)
        for options in itertools.product(*candidates.values())
        if sum(option.nbytes for option in options) <= budget
    )


def sums(chosen: dict[str, Candidate]) -> tuple[int, float]:
    return sum(option.nbytes for option in chosen.values()), sum(option.loss for option in chosen.values())


@pytest.mark.parametrize("seed", range(30))
def test_the_least_loss_of_all_choices(seed: int) -> None:
    candidates = instance(seed, tensors=6, unit=(1, 32, 1000)[seed % 3])
    least = sum(min(option.nbytes for option in options) for options in candidates.values())
    most = sum(max(option.nbytes for option in options) for options in candidates.values())
    for budget in (least, least + (most - least) // 3, least + 2 * (most - least) // 3 + 1, most, 2 * most):
        chosen = allocate(candidates, budget)
        assert list(chosen) == list(candidates)
        assert all(option in candidates[name] for name, option in chosen.items())
        size, loss = sums(chosen)
        assert size <= budget
        assert loss == pytest.approx(best_of_all(candidates, budget), rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_rounded_sizes_stay_within_the_budget_and_near_the_optimum(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = instance(seed, tensors=6, unit=997)
    least = sum(min(option.nbytes for option in options) for options in candidates.values())
    most = sum(max(option.nbytes for option in options) for options in candidates.values())
    budget = (least + most) // 2
    exact = allocate(candidates, budget)
    monkeypatch.setattr(module, "MOST_STATES", 25)
    size, loss = sums(allocate(candidates, budget))
    assert size <= budget
    assert loss <= best_of_all(candidates, budget - (budget - least) // 5)
    assert sums(exact)[1] <= loss


def test_many_tensors_fill_the_budget() -> None:
    """Losses that fall as those of real types: what is left of the budget is below half a percent."""
    random = np.random.default_rng(0)
    bits = {"Q2_K": 2.625, "Q3_K": 3.4375, "IQ4_XS": 4.25, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}
    candidates = {}
    for tensor in range(200):
        weights, sensitivity = int(random.integers(4, 60)) * 4096 * 256, float(random.lognormal(0, 1.5))
        candidates[f"t{tensor}"] = [
            Candidate(TYPES[name], int(weights * width / 8), sensitivity * 4.0**-width) for name, width in bits.items()
        ]
    total = sum(options[0].nbytes for options in candidates.values())
    for factor in (1.05, 1.5, 2.5):
        size, _ = sums(allocate(candidates, int(total * factor)))
        assert total * factor * 0.995 < size <= total * factor


def test_too_small_a_budget_is_refused() -> None:
    candidates = instance(1, tensors=3, unit=8)
    least = sum(min(option.nbytes for option in options) for options in candidates.values())
    with pytest.raises(ValueError, match="smallest candidates"):
        allocate(candidates, least - 1)
