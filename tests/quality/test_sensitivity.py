"""Sensitivities: how divergences are scaled and interpolated, and what replacing a tensor does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.conversion.encode import ReferenceEncoder
from quantcli.conversion.plan import PlanOptions, parse_override
from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.reader import open_gguf
from quantcli.kernels.scoring import compare
from quantcli.quality.sensitivity import Probe, Sensitivity, completed
from quantcli.quality.sensitivity_file import read_sensitivities, write_sensitivities
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model
from quantcli.runner.model import Model

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


def test_a_measured_type_has_its_own_divergence() -> None:
    one = Sensitivity({"Q2_K": 8.0, "Q4_K": 1.0}, {"Q2_K": 0.5, "Q4_K": 0.1})
    assert one.loss("Q2_K") == 0.5
    assert one.loss("Q4_K") == 0.1


def test_other_types_are_scaled_by_their_errors() -> None:
    errors = {"Q2_K": 8.0, "Q3_K": 4.0, "Q4_K": 1.0, "Q6_K": 0.25, "IQ2_XXS": 16.0, "exact": 0.0}
    one = Sensitivity(errors, {"Q2_K": 0.8, "Q4_K": 0.1})
    assert one.loss("Q6_K") == pytest.approx(0.025)
    assert one.loss("IQ2_XXS") == pytest.approx(1.6)
    assert one.loss("Q3_K") == pytest.approx(0.4)
    assert one.loss("exact") == 0
    steep = Sensitivity({"low": 4.0, "middle": 2.0, "high": 1.0}, {"low": 0.48, "high": 0.06})
    assert steep.loss("middle") == pytest.approx(0.06 * 2**1.5)


def test_a_divergence_of_zero_does_not_break_the_scale() -> None:
    one = Sensitivity({"Q2_K": 8.0, "Q3_K": 4.0, "Q4_K": 1.0}, {"Q2_K": 0.8, "Q4_K": 0.0})
    assert one.loss("Q3_K") == pytest.approx(0.4)


def test_layers_between_are_interpolated_by_the_ratio_to_the_error() -> None:
    found = {
        "blk.0.attn_q.weight": Sensitivity({"Q3_K": 1.0}, {"Q3_K": 0.1}),
        "blk.0.attn_v.weight": Sensitivity({"Q3_K": 1.0}, {"Q3_K": 9.0}),
        "blk.1.attn_q.weight": Sensitivity({"Q3_K": 2.0, "Q4_K": 0.5}),
        "blk.2.attn_q.weight": Sensitivity({"Q3_K": 1.0}, {"Q3_K": 0.4}),
        "blk.4.attn_q.weight": Sensitivity({"Q3_K": 1.0}, {"Q3_K": 100.0}),
    }
    whole = completed(found)
    assert whole["blk.1.attn_q.weight"].loss("Q3_K") == pytest.approx(2 * 0.2)
    assert whole["blk.1.attn_q.weight"].loss("Q4_K") == pytest.approx(0.5 * 0.2)
    assert whole["blk.2.attn_q.weight"] is found["blk.2.attn_q.weight"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(STORYTELLER, "F32", path)
    return path


CHUNK = np.random.default_rng(3).integers(3, 2000, 64).tolist()


def logits(model: Model) -> np.ndarray:
    return model.forward(CHUNK, Cache(model.sizes, len(CHUNK), "f32"), every=True)


@pytest.mark.parametrize("name", ["blk.0.attn_v.weight", "blk.2.ffn_down.weight", "token_embd.weight"])
def test_the_divergence_is_that_of_a_file_with_one_tensor_quantized(name: str, base: Path, tmp_path: Path) -> None:
    kind = TYPES["Q2_K"]
    with open_gguf(base) as file:
        model = Model(file)
        probe = Probe(model, file, [CHUNK, CHUNK[:40]], threads=2)
        if name.startswith("blk"):
            probe.advance_to(int(name.split(".")[1]))
        found = probe.divergence(file.tensors[name], ReferenceEncoder(kind), kind)
        again = probe.divergence(file.tensors[name], ReferenceEncoder(kind), kind)
    convert(base, "F32", tmp_path / "one.gguf", options=PlanOptions(overrides=[parse_override(f"^{name}$=Q2_K")]))
    changed = load_model(tmp_path / "one.gguf").model
    total, count = 0.0, 0
    for length in (64, 40):
        ours, theirs = logits(changed)[:length], logits(model)[:length]
        divergences = np.empty(length)
        compare(
            np.ascontiguousarray(ours), np.ascontiguousarray(theirs), np.zeros(length, np.int64), np.empty((2, length)),
            np.empty((2, length), np.int32), divergences,
        )  # fmt: skip
        total, count = total + divergences.sum(), count + length
    # The file's products round activations too, which adds a little.
    assert found == pytest.approx(total / count, rel=0.1)
    assert again == found > 0


def test_files_that_are_unused_for_a_month_are_removed(tmp_path: Path) -> None:
    names = {digit: f"{digit * 32}.json" for digit in "0123"}
    paths = {digit: tmp_path / name for digit, name in names.items()}
    partial, other = tmp_path / f"{names['0']}.tmp.1a", tmp_path / "notes.json"
    for path in (paths["0"], paths["1"], partial, other):
        path.write_text("{}")
        os.utime(path, (0, time.time() - 31 * 24 * 3600))
    paths["2"].write_text("{}")
    read_sensitivities(paths["1"])  # marks it as used
    write_sensitivities(paths["3"], {"a": Sensitivity({"Q4_K": 1.0}, {})})
    assert {path.name for path in tmp_path.iterdir()} == {names["1"], names["2"], names["3"], other.name}
    assert read_sensitivities(paths["3"])["a"].errors == {"Q4_K": 1.0}
