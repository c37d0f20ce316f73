"""Conversions with calibration: less divergence, the same bytes for any number of threads, resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.conversion.encode import FeedbackEncoder
from quantcli.conversion.plan import PlanOptions
from quantcli.core.block_types import TYPES
from quantcli.core.errors import QuantcliWarning
from quantcli.formats.gguf.reader import open_gguf
from quantcli.kernels.rounding.feedback import quantize_with_feedback
from quantcli.kernels.rounding.stretch import GOOD
from quantcli.quality.calibrate import Calibration, calibrated_stages
from quantcli.quality.calibration_text import calibration_text
from quantcli.quality.evaluate import evaluate
from quantcli.quality.moment_run import MomentRun
from quantcli.quality.moments import Factors, Inputs
from quantcli.quality.subjects import SUBJECTS
from quantcli.runner.load import load_model

TEXTS = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore:the perplexity of the calibration text")

CALIBRATED = PlanOptions(calibrated=True)


@pytest.fixture(scope="module")
def storyteller() -> Path:
    return TEXTS / "storyteller"


@pytest.fixture(scope="module")
def story() -> str:
    return calibration_text().text


def calibration(text: str, **more: object) -> Calibration:
    return Calibration(texts=[("text", text)], **{"tokens": 6144, "quality": "good"} | more)  # type: ignore[arg-type]


def made(model: Path, kind: str, target: Path, how: Calibration, threads: int = 2) -> bytes:
    stages = partial(calibrated_stages, replace(how, threads=threads))
    convert(model, kind, target, options=CALIBRATED, stages=stages, threads=threads, overwrite=True)
    return target.read_bytes()


def test_less_divergence_at_the_same_size(storyteller: Path, story: str, tmp_path: Path) -> None:
    """On text that is not in the calibration text."""
    text = SUBJECTS[0].text
    convert(storyteller, "F32", tmp_path / "base.gguf")
    convert(storyteller, "Q3_K_M", tmp_path / "stock.gguf")
    made(storyteller, "Q3_K_M", tmp_path / "best.gguf", calibration(story, quality="best", tokens=16384))
    base = load_model(tmp_path / "base.gguf")
    found = {}
    for name in ("stock", "best"):
        result = evaluate(load_model(tmp_path / f"{name}.gguf"), text, context=256, chunks=12, base=base)
        assert result.divergence is not None
        found[name] = result.divergence.mean
    assert found["best"] < 0.75 * found["stock"]
    sizes = {name: sum(tensor.nbytes for tensor in tensors_of(tmp_path / f"{name}.gguf")) for name in found}
    assert sizes["best"] == sizes["stock"]


def tensors_of(path: Path) -> list[object]:
    with open_gguf(path) as file:
        return list(file.tensors.values())


def test_the_bytes_do_not_depend_on_the_threads_and_are_those_of_stored_moments(
    storyteller: Path, story: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = calibration(story)
    whole = made(storyteller, "Q4_K_M", tmp_path / "one.gguf", how, threads=1)
    assert made(storyteller, "Q4_K_M", tmp_path / "two.gguf", how, threads=2) == whole
    stored = replace(how, moments=tmp_path / "moments")
    assert made(storyteller, "Q4_K_M", tmp_path / "three.gguf", stored) == whole
    ran: list[int] = []
    monkeypatch.setattr(MomentRun, "_run_layer", lambda run, layer: ran.append(layer))
    monkeypatch.setattr(MomentRun, "_call_kernels", lambda run, context: ran.append(context))
    assert made(storyteller, "Q4_K_M", tmp_path / "four.gguf", stored) == whole
    assert not ran


def test_an_interrupted_run_continues(
    storyteller: Path, story: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is not collected again, and the file is that of an uninterrupted run."""
    how = calibration(story, moments=tmp_path / "moments")
    run_layer: Callable[[MomentRun, int], None] = MomentRun._run_layer

    def interrupted(run: MomentRun, layer: int) -> None:
        if layer == 2:
            raise KeyboardInterrupt
        run_layer(run, layer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MomentRun, "_run_layer", interrupted)
        made(storyteller, "Q4_K_M", tmp_path / "model.gguf", how)
    assert not list(tmp_path.glob("*.gguf"))
    assert len(list((tmp_path / "moments").iterdir())) == 2
    again = made(storyteller, "Q4_K_M", tmp_path / "model.gguf", how)
    assert again == made(storyteller, "Q4_K_M", tmp_path / "other.gguf", replace(how, moments=None))


@pytest.mark.filterwarnings("error")
def test_a_text_that_the_model_does_not_know_is_named(storyteller: Path, story: str, tmp_path: Path) -> None:
    """The storyteller knows children's stories, and no code or Chinese."""
    with pytest.warns(QuantcliWarning, match=r"the perplexity of the calibration text is [\d,]{3,}: it is unlike"):
        made(storyteller, "Q4_0", tmp_path / "model.gguf", calibration(story, tokens=16384))
    tale = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun. One day, she saw a "
    made(storyteller, "Q4_0", tmp_path / "other.gguf", calibration(tale * 300))


def test_what_has_no_feedback_keeps_the_rounding_of_llama_cpp(storyteller: Path, story: str, tmp_path: Path) -> None:
    """Plain types are copied or cast, and tensors that are no products keep the reference's bytes."""
    kept: dict[str, str] = {}
    made(storyteller, "Q4_K_M", tmp_path / "model.gguf", calibration(story, kept=kept.__setitem__))
    convert(storyteller, "Q4_K_M", tmp_path / "stock.gguf")
    with open_gguf(tmp_path / "model.gguf") as file, open_gguf(tmp_path / "stock.gguf") as stock:
        for name, tensor in file.tensors.items():
            same = np.array_equal(tensor.load(), stock.tensors[name].load())
            assert same == (name in kept or len(tensor.shape) == 1), name


def test_stacked_matrices_are_rounded_under_their_own_moments() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((2, 400, 64)).astype(np.float32) * (random.random((2, 1, 64)) + 0.1).astype(np.float32)
    inputs = [Inputs(np.triu(rows.T @ rows), len(rows)) for rows in x]
    kind, weights = TYPES["Q4_0"], random.standard_normal((16, 64)).astype(np.float32)
    encoder = FeedbackEncoder(kind, Factors(inputs, 0.01), 8, GOOD)
    data = np.empty((16, kind.row_bytes(64)), np.uint8)
    encoder.encode(weights[8:], 8, data[8:])
    alone = np.empty_like(data[8:])
    quantize_with_feedback(weights[8:], kind, Factors(inputs, 0.01)[1], GOOD, alone)
    assert np.array_equal(data[8:], alone)
    encoder.encode(weights[8:], 0, data[:8])
    assert not np.array_equal(data[:8], alone)
