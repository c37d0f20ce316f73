"""The whole road beside the reference: what `quantize` writes, llama.cpp loads and continues with the same words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quantcli.cli.main import cli
from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf

ROOT = Path(__file__).parents[1]
MODELS = [ROOT / "examples" / "storyteller", ROOT / "tests" / "golden" / "stories260K"]
PROMPTS = ["Once upon a time", "Lily had a red ball. One day", "The dog said:"]
TOKENS = 64


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Any]]:
    """Opens a file with llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference")
    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        # Repacked weights crash on virtual machines that announce AMX and do not have it.
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", without_repacking)
    with ExitStack() as stack:

        def loaded(path: Path) -> Any:
            return stack.enter_context(closing(llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, verbose=False)))

        yield loaded


@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_cpp_continues_with_the_same_tokens(
    prompt: str, model: Path, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    convert(model, "F32", path)
    reference = load(path)
    done = CliRunner().invoke(cli, ["run", str(path), "--prompt", prompt, "-n", str(TOKENS), "--temp", "0", "--json"])
    ours = json.loads(done.stdout)
    prompt_tokens = reference.tokenize(prompt.encode(), add_bos=True, special=False)
    theirs: list[int] = []
    for token in reference.generate(prompt_tokens, temp=0.0, repeat_penalty=1.0):
        if token == reference.token_eos() or len(theirs) == TOKENS:
            break
        theirs.append(token)
    assert ours["prompt_tokens"] == prompt_tokens
    assert ours["tokens"] == theirs
    assert ours["text"].encode() == reference.detokenize(theirs)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "BF16"])
def test_llama_cpp_loads_and_runs(
    recipe: str, model: Path, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    convert(model, recipe, path)
    text = load(path)("Once upon a time", max_tokens=32, temperature=0.0)["choices"][0]["text"]
    assert " was " in text


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q5_0", "Q6_K", "F16"])
def test_the_gguf_package_reads_the_same(recipe: str, model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is the independent reader")
    path = tmp_path / "model.gguf"
    convert(model, recipe, path)
    reader = gguf.GGUFReader(path)
    with open_gguf(path) as ours:
        assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
        for tensor in reader.tensors:
            mine = ours.tensors[tensor.name]
            assert tensor.tensor_type.name == mine.type.name
            assert tuple(reversed(tensor.shape.tolist())) == mine.shape
            assert tensor.data.tobytes() == ours.map(mine).tobytes()
        keys = [key for key in reader.fields if not key.startswith("GGUF.")]
        assert keys == list(ours.metadata)
