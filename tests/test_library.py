"""The package from Python: its names, their examples, and what they return."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quantcli
from quantcli import library
from quantcli.formats.gguf.spec import string

EXAMPLE = Path(__file__).parents[1] / "examples" / "storyteller"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("library")
    quantcli.convert(EXAMPLE, ["Q8_0", "F16"], place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return quantcli.load(folder / "storyteller-Q8_0.gguf")


def test_the_examples(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = doctest.testmod(library)
    assert found.attempted > 8
    assert found.failed == 0


def test_all_names_are_there_and_documented():
    shown = dir(quantcli)
    assert {"load", "convert", "open_gguf", "read_tensor", "export", "estimate"} <= set(shown)
    for name in shown:
        assert name == "__version__" or getattr(quantcli, name).__doc__
        assert name == "__version__" or f"{name}(" in quantcli.__doc__


def test_importing_loads_nothing_heavy():
    code = "import sys, quantcli; dir(quantcli); sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_is_shown_in_one_line(folder):
    with quantcli.open_gguf(folder / "storyteller-Q8_0.gguf") as file:
        assert len(repr(file)) < 200 + len(str(folder))
        assert "llama" in repr(file)
        assert "38 tensors" in repr(file)
        assert quantcli.read_tensor(file, "token_embd.weight").shape == (2048, 256)
        assert quantcli.read_tensor(file, "output_norm.weight").dtype == np.float32


def test_text_and_tokens(model):
    tokens = model.tokens("Once upon a time")
    assert model.text(tokens) == "Once upon a time"
    first = int(model.logits(tokens).argmax())
    answer = model.generate("Once upon a time", tokens=12, temperature=0)
    assert answer.startswith(model.text([first]).strip())
    assert "".join(model.stream("Once upon a time", tokens=12, temperature=0)) == answer
    stopped = model.generate("Once upon a time", tokens=12, temperature=0, stop=["little"])
    assert answer.startswith(stopped)
    assert "little" not in stopped
    with pytest.raises(Exception, match="temperature is -1"):
        model.generate("Once", temperature=-1)


def test_chat(model, monkeypatch):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    monkeypatch.setitem(model.loaded.metadata, "tokenizer.chat_template", string(template))
    answer = model.chat([{"role": "user", "content": "Once upon a time"}], tokens=6, temperature=0)
    assert answer == model.generate("Once upon a time", tokens=6, temperature=0)


def test_embeddings(model):
    found = model.embed(["A cat sleeps.", "A kitten naps."])
    assert found.shape == (2, 256)
    assert np.allclose((found**2).sum(axis=1), 1)
