"""Whole conversions: what llama.cpp makes of a model in two steps, in one."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.conversion.convert import Progress, convert
from quantcli.conversion.plan import PlanOptions
from quantcli.conversion.recipes import RECIPES
from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError, OutputError, QuantcliError, UsageError, ValueRangeError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.imatrix import Imatrix, read_imatrix
from quantcli.kernels.compilation import tracing
from quantcli.kernels.rows import quantize
from quantcli.tensors.tensor import TensorInfo

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples" / "storyteller"
STORIES = ROOT / "tests" / "golden" / "stories260K"


def read_golden(path: Path) -> dict[str, Any]:
    with gzip.open(path) as file:
        document: dict[str, Any] = json.load(file)
    return document


def described(path: Path) -> dict[str, list[str]]:
    """Type and digest of every tensor, in the order of the file."""
    with open_gguf(path) as file:
        return {
            name: [tensor.type.name, hashlib.sha256(file.map(tensor).tobytes()).hexdigest()]
            for name, tensor in file.tensors.items()
        }


@pytest.mark.parametrize("model", [STORYTELLER, STORIES], ids=lambda path: path.name)
@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.base])
def test_tensors_equal_the_reference(model: Path, recipe: str, golden: Path, tmp_path: Path) -> None:
    expected = read_golden(golden / "recipes" / f"{model.name}.json.gz")[recipe]
    output = tmp_path / "out.gguf"
    if "error" in expected:
        with pytest.raises(QuantcliError):
            convert(model, recipe, output)
        assert not list(tmp_path.iterdir())
        return
    result = convert(model, recipe, output)[0]
    assert result.output == output
    assert result.output_bytes == output.stat().st_size
    made = described(output)
    if expected:  # nothing where no other reader knows the type
        assert made == expected
        assert list(made) == list(expected)


@pytest.mark.parametrize("source", ["llama-8x256", "llama-8x256.bf16.gguf"])
@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.base and recipe.base.is_quantized])
def test_with_and_without_importance(recipe: str, source: str, shared: Path, tmp_path: Path) -> None:
    folder, output = shared / "golden", tmp_path / "out.gguf"
    goldens = read_golden(folder / "llama-8x256.json.gz")
    for variant, imatrix in (("plain", None), ("imatrix", read_imatrix(folder / "imatrix.gguf"))):
        expected = goldens.get(f"{recipe}.{variant}")
        if expected is None:
            continue
        if "error" in expected:
            with pytest.raises(QuantcliError):
                convert(folder / source, recipe, output, imatrix=imatrix, overwrite=True)
            continue
        convert(folder / source, recipe, output, imatrix=imatrix, overwrite=True)
        assert described(output) == {
            name: [tensor["type"], tensor["sha256"]] for name, tensor in expected["tensors"].items()
        }
        if variant == "plain" and source.endswith(".gguf"):
            assert hashlib.sha256(output.read_bytes()).hexdigest() == expected["file_sha256"]


def test_several_types_read_the_source_once(tmp_path: Path) -> None:
    done: list[int] = []
    results = convert(STORIES, ["Q8_0", "F16", "Q4_0"], tmp_path, progress=Progress(advance=done.append))
    assert sum(done) == results[0].source_bytes
    for result in results:
        alone = tmp_path / "alone.gguf"
        convert(STORIES, result.type, alone, overwrite=True)
        assert result.output is not None
        assert result.output.name == f"stories260K-{result.type}.gguf"
        assert result.output.read_bytes() == alone.read_bytes()


def test_what_several_types_have_in_common_is_quantized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q4_K_S, Q4_K_M and Q5_K_M differ in some tensors only. A chunk is quantized once for each type that it gets."""
    weights: dict[str, int] = {}

    def counted(x: Any, kind: Any, importance: Any = None, out: Any = None) -> Any:
        if not tracing():
            weights[kind.name] = weights.get(kind.name, 0) + x.size
        return quantize(x, kind, importance, out)

    monkeypatch.setattr("quantcli.kernels.rows.quantize", counted)
    results = convert(STORYTELLER, ["Q4_K_S", "Q4_K_M", "Q5_K_M"], tmp_path, threads=1)
    wanted: dict[str, set[str]] = {}
    size: dict[str, int] = {}
    for result in results:
        for planned in result.plan:
            if planned.type is not planned.source_type:
                wanted.setdefault(planned.name, set()).add(planned.type.name)
                size[planned.name] = math.prod(planned.shape)
    expected: dict[str, int] = {}
    for name, kinds in wanted.items():
        for kind in kinds:
            expected[kind] = expected.get(kind, 0) + size[name]
    assert weights == expected
    assert any(len(kinds) == 1 for kinds in wanted.values())
    monkeypatch.undo()
    for result in results:
        alone = tmp_path / "alone.gguf"
        convert(STORYTELLER, result.type, alone, overwrite=True)
        assert result.output is not None
        assert result.output.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("types", [["F16", "Q4_0"], ["Q4_0", "F16"]], ids="+".join)
def test_each_stacked_matrix_has_its_own_importance_whatever_else_is_written(types: list[str], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    experts = random.normal(size=(2, 32, 256)).astype(np.float32)
    embedding = random.normal(size=(32, 256)).astype(np.float32)
    names = {"token_embd.weight": embedding, "blk.0.ffn_gate_exps.weight": experts}
    metadata = {"general.architecture": string("llama"), "llama.block_count": u32(1), "llama.expert_count": u32(2)}
    infos = [TensorInfo(name, values.shape, TYPES["F32"]) for name, values in names.items()]
    with GGUFWriter(tmp_path / "experts.gguf", metadata, infos) as writer:
        for index, values in enumerate(names.values()):
            writer.write(index, 0, values.view(np.uint8).reshape(-1))
    importance = random.uniform(0.01, 100, (2, 256)).astype(np.float32)
    imatrix = Imatrix("guide.gguf", (), 1, {"blk.0.ffn_gate_exps.weight": importance.reshape(-1)})
    convert(tmp_path / "experts.gguf", types, tmp_path, imatrix=imatrix)
    with open_gguf(tmp_path / "experts-Q4_0.gguf") as file:
        found = file.map(file.tensors["blk.0.ffn_gate_exps.weight"]).reshape(2, -1)
        for expert in range(2):
            np.testing.assert_array_equal(found[expert], quantize(experts[expert], "Q4_0", importance[expert]).reshape(-1))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_result_does_not_depend_on_threads_or_chunks(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(STORYTELLER, "Q4_K_M", tmp_path / "one.gguf", threads=1)
    monkeypatch.setattr("quantcli.conversion.execute.CHUNK_WEIGHTS", 3000)
    convert(STORYTELLER, "Q4_K_M", tmp_path / "cut.gguf", threads=threads)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "cut.gguf").read_bytes()


def test_dry_run_writes_nothing_and_tells_the_size(tmp_path: Path) -> None:
    planned = convert(STORYTELLER, "Q4_K_M", tmp_path / "out.gguf", dry_run=True)[0]
    assert planned.output is None
    assert not list(tmp_path.iterdir())
    written = convert(STORYTELLER, "Q4_K_M", tmp_path / "out.gguf")[0]
    assert planned.output_bytes == (tmp_path / "out.gguf").stat().st_size
    assert {**planned.as_json(), "output": None, "seconds": 0} == {**written.as_json(), "output": None, "seconds": 0}


def damaged_copy(folder: Path, index: int, value: float) -> Path:
    """The small model with one weight of its embedding changed. Its file begins with a length and a JSON header."""
    folder.mkdir()
    for file in STORIES.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / "model.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])["model.embed_tokens.weight"]["data_offsets"][0]
    place = 8 + length + begin + 4 * index
    data[place : place + 4] = np.float32(value).tobytes()
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name_and_place(value: float, tmp_path: Path) -> None:
    model = damaged_copy(tmp_path / "model", 64 * 17 + 5, value)
    with pytest.raises(ValueRangeError, match=r"'token_embd.weight': weight \[17, 5\]"):
        convert(model, "Q8_0", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        convert(STORIES, "Q8_0", output)
    assert output.read_bytes() == b"mine"
    convert(STORIES, "Q8_0", output, overwrite=True)
    assert output.read_bytes()[:4] == b"GGUF"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_the_model_is_never_its_own_output(tmp_path: Path) -> None:
    source = tmp_path / "experts.gguf"
    convert(STORIES, "F32", source)
    before = source.read_bytes()
    with pytest.raises(OutputError, match="replace the model"):
        convert(source, "Q8_0", source, overwrite=True)
    assert source.read_bytes() == before


def test_one_path_for_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several files"):
        convert(STORIES, ["Q8_0", "F16"], tmp_path / "out.gguf")
    convert(STORIES, ["Q8_0", "F16"], tmp_path / "small-{type}.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"small-Q8_0.gguf", "small-F16.gguf"}


def test_quantizing_again_needs_leave(tmp_path: Path) -> None:
    source = convert(STORYTELLER, "Q8_0", tmp_path / "q8.gguf")[0].output
    assert source is not None
    with pytest.raises(UsageError, match="already quantized"):
        convert(source, "Q4_0", tmp_path / "q4.gguf")
    again = convert(source, "Q4_0", tmp_path / "q4.gguf", options=PlanOptions(allow_requantize=True))[0]
    assert {tensor.type.name for tensor in again.plan} == {"F32", "Q4_0", "Q6_K"}


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((STORIES / name).read_bytes())
    with pytest.raises(ModelError, match=r"tokenizer\.model"):
        convert(tmp_path, "Q8_0", tmp_path / "out.gguf")
