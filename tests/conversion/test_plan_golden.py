"""Plans equal those of llama-quantize, tensor by tensor and in its order, for the models in golden/plans."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quantcli.conversion.plan import PlanOptions, check_plan, make_plan
from quantcli.conversion.recipes import find_recipe
from quantcli.core.block_types import TYPES
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.spec import Metadata, f32, string, u32
from quantcli.tensors.tensor import TensorInfo

PLANS = Path(__file__).parent.parent / "golden" / "plans"
MODELS = sorted(path.name.removesuffix(".json.gz") for path in PLANS.glob("*.json.gz"))


def read_model(model: str) -> tuple[list[TensorInfo], Metadata, dict[str, dict[str, str]]]:
    """Tensors, metadata and the reference's plans, keyed `RECIPE` and `RECIPE+imatrix`."""
    with gzip.open(PLANS / f"{model}.json.gz") as file:
        document: dict[str, Any] = json.load(file)
    tensors = [TensorInfo(name, tuple(reversed(shape)), TYPES[type]) for name, shape, type in document["tensors"]]
    metadata = {"general.architecture": string(document["architecture"])}
    metadata |= {key: u32(value) if isinstance(value, int) else f32(value) for key, value in document["metadata"].items()}
    return tensors, metadata, document["plans"]


def importance_sizes(tensors: list[TensorInfo]) -> dict[str, int]:
    """How many values an importance matrix of the whole model holds for each tensor."""
    return {it.name: it.row_length * (it.shape[-3] if len(it.shape) > 2 else 1) for it in tensors}


def test_there_are_models() -> None:
    assert len(MODELS) == 9


@pytest.mark.parametrize("model", MODELS)
def test_plans_equal_the_reference(model: str) -> None:
    tensors, metadata, plans = read_model(model)
    sizes = importance_sizes(tensors)
    for key, expected in plans.items():
        name, _, imatrix = key.partition("+")
        options = PlanOptions(importance=sizes if imatrix else None)
        if "error" in expected:
            with pytest.raises(QuantcliError):
                check_plan(make_plan(tensors, metadata, find_recipe(name), options), options)
            continue
        plan = make_plan(tensors, metadata, find_recipe(name), options)
        assert [(it.name, it.type.name) for it in plan] == list(expected.items()), key


def test_real_runs_are_not_refused() -> None:
    """The plans of llama-8x256 are of real runs, not of dry ones: what the reference wrote may be written."""
    tensors, metadata, plans = read_model("llama-8x256")
    for key in (key for key, expected in plans.items() if "error" not in expected):
        name, _, imatrix = key.partition("+")
        options = PlanOptions(importance=importance_sizes(tensors) if imatrix else None)
        check_plan(make_plan(tensors, metadata, find_recipe(name), options), options)
