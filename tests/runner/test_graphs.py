"""Every architecture's forward pass, against what llama.cpp answers in the same tiny files."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_model import PROMPT, write_model

from quantcli.architectures.loader import architectures
from quantcli.formats.gguf.reader import open_gguf
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = runpy.run_path(str(GOLDEN / "logit_cases.py"))["CASES"]
ENCODERS = runpy.run_path(str(GOLDEN / "embedding_cases.py"))["CASES"]  # whose embeddings test_embed.py has
pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect")  # some configurations say what GGUF readers do not read

POSITIONS = (0, 23, 50, 86)

WITHOUT_REFERENCE = {
    "ernie4_5-moe": "llama.cpp asks for experts of another size than its tiny checkpoint has",
    "phimoe": "llama.cpp norms and routes in other ways than the model does",
}
"""Architectures that no golden is of, and why; test_transformers.py has them."""


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDEN / "logits.npz") as opened:
        return dict(opened)


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    with open_gguf(write_model(tmp_path, *CASES[request.param])) as file:
        return request.param, Model(file)


def share(name: str, model: Model) -> float:
    """How far logits may be apart, of their range. For packed types both round activations to int8, and a number near the
    middle of two codes may go either way; GELU llama.cpp looks up in a table of halves."""
    if CASES[name][3] != "F32":
        return 0.01
    return 5e-4 if model.graph.activation == "gelu" else 1e-5


def test_logits_are_those_of_the_reference_however_the_text_is_cut(case, goldens):
    name, model = case
    tokens = [*PROMPT.tolist(), *goldens[f"{name}.tokens"].tolist()]
    near = share(name, model) * float(goldens[f"{name}.range"])
    whole = model.forward(tokens, Cache(model.sizes, 128, "f32"), every=True)
    assert np.ptp(whole) == pytest.approx(goldens[f"{name}.range"], abs=2 * near)
    assert np.abs(whole[list(POSITIONS), ::8] - goldens[f"{name}.logits"]).max() <= near
    answers = whole[len(PROMPT) - 1 : -1]
    chosen = np.take_along_axis(answers, goldens[f"{name}.tokens"][:, None].astype(np.int64), 1)[:, 0]
    assert (answers.max(1) - chosen <= 2 * near).all()
    cache = Cache(model.sizes, 128, "f32")
    cuts = (0, 1, 9, 10, 11, 40, len(tokens))
    parts = [model.forward(tokens[start:stop], cache, every=True) for start, stop in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=max(near, 2e-5 * np.ptp(whole)))


def test_every_architecture_has_a_golden():
    names = {checkpoint for checkpoint, *_ in (*CASES.values(), *ENCODERS.values())}
    able = [architecture for architecture in architectures() if architecture.graph and not architecture.graph.missing]
    covered = {architecture.gguf for architecture in able if any(covers(name, architecture) for name in names)}
    assert {architecture.gguf for architecture in able} - covered == set(WITHOUT_REFERENCE)


def covers(checkpoint: str, architecture) -> bool:
    text = (GOLDEN / f"architectures/{checkpoint}.json").read_text()
    return json.loads(text)["checkpoint"]["config"]["architectures"][0] in architecture.classes
