"""Activations that are not finite: one line that says what to do, and under --debug the tensor that gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.core.errors import GenerationError
from quantcli.formats.gguf.reader import open_gguf

TEXT = "Once upon a time there was a little dog named Max. He lived in a small house near the big park. " * 20


@pytest.fixture(scope="module")
def damaged(golden, tmp_path_factory) -> Path:
    """A model whose second layer overflows: its gate and its up projection are huge, and their product is infinite."""
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    convert(golden / "stories260K", "F32", path)
    with open_gguf(path) as file:
        places = [file.tensors[f"blk.1.{name}.weight"] for name in ("ffn_gate", "ffn_up")]
    content = bytearray(path.read_bytes())
    for tensor in places:
        weights = np.frombuffer(content, np.float32, tensor.size, tensor.offset)
        content[tensor.offset : tensor.offset + tensor.nbytes] = (weights * np.float32(1e25)).tobytes()
    path.write_bytes(content)
    return path


@pytest.fixture
def commands(damaged, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return {
        "run": ("run", damaged, "--prompt", "Once", "-n", "4", "--temp", "0"),
        "eval": ("eval", damaged, "--text", text, "--ctx", "32"),
    }


@pytest.mark.parametrize("name", ["run", "eval"])
def test_the_tensor_is_named_under_debug(commands, capsys, name):
    status, _, errors = run_command(capsys, *commands[name])
    assert status == 1
    assert "error: the model's output is not a number" in errors
    assert "hint: --debug names the tensor that gets the first such values" in errors
    first = r"model\.gguf: the first inputs that are not finite are those of blk\.1\.ffn_down\.weight: -?(inf|nan) at token"
    with pytest.raises(GenerationError, match=first):
        run_command(capsys, *commands[name], "--debug")


def test_an_importance_matrix_names_it_at_once(damaged, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ("imatrix", damaged, "--text", tmp_path / "text.txt", "--ctx", "32", "-o", tmp_path / "out.gguf")
    status, _, errors = run_command(capsys, *words)
    assert status == 1
    assert "error: blk.1.ffn_down.weight: the sums of its squared inputs are not finite" in errors
    assert not (tmp_path / "out.gguf").exists()
