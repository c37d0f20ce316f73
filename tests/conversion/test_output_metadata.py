from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_quantize import reference_plan, write_hollow_model

from quantcli.conversion.metadata.output import parse_metadata_override, quantized_metadata
from quantcli.conversion.plan import PlanOptions, make_plan
from quantcli.conversion.recipes import RECIPES
from quantcli.core.block_types import TYPES
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, f32, i32, string, u32
from quantcli.formats.gguf.writer import make_layout
from quantcli.formats.imatrix import Imatrix
from quantcli.tensors.tensor import TensorInfo

MODEL: Metadata = {
    "general.architecture": string("llama"),
    "general.quantization_version": u32(1),
    "general.file_type": u32(1),
    "split.no": u32(0),
    "general.name": string("A model"),
    "llama.block_count": u32(1),
    "llama.context_length": u32(64),
    "llama.embedding_length": u32(256),
    "llama.feed_forward_length": u32(256),
    "llama.attention.head_count": u32(4),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    "split.tensors.count": i32(2),
    "quantize.imatrix.file": string("an older one"),
    "general.tags": array(ValueType.STRING, ["a", "", "c"]),
    "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.5, -1.0]),
}
TENSORS = [TensorInfo("token_embd.weight", (8, 256), TYPES["F16"]), TensorInfo("output_norm.weight", (256,), TYPES["F32"])]


def test_what_is_set_goes_to_the_end_and_split_keys_go() -> None:
    metadata = quantized_metadata(MODEL, RECIPES["Q4_K_M"])
    assert list(metadata)[-2:] == ["general.quantization_version", "general.file_type"]
    assert metadata["general.quantization_version"] == u32(2)
    assert metadata["general.file_type"] == u32(15)
    assert [key for key in MODEL if key not in metadata] == ["split.no", "split.tensors.count"]
    assert "split.no" in MODEL


def test_copying_keeps_the_file_type() -> None:
    assert quantized_metadata(MODEL, RECIPES["COPY"])["general.file_type"] == u32(1)


@pytest.mark.parametrize(
    ("types", "file_type"),
    [(["F16", "Q4_K", "Q4_K"], 15), (["F16", "Q8_0"], 1), (["Q8_0", "F16"], 7), (["MXFP4"], 0), (["IQ2_S"], 28), ([], 0)],
)
def test_an_unknown_file_type_is_guessed_from_the_tensors(types: list[str], file_type: int) -> None:
    tensors = [TensorInfo(f"blk.{i}.x", (1, 256), TYPES[name]) for i, name in enumerate(types)]
    assert quantized_metadata({}, RECIPES["COPY"], tensors=tensors)["general.file_type"] == u32(1024 + file_type)


def test_overrides_come_before_the_notes_on_importance() -> None:
    imatrix = Imatrix("m.gguf", ("wiki.txt",), 3, {"a": np.ones(1, np.float32)})
    metadata = quantized_metadata(MODEL, RECIPES["Q8_0"], imatrix, overrides={"general.name": string("B")})
    assert list(metadata)[-5:] == ["general.name", *imatrix.metadata()]


@pytest.mark.parametrize(
    ("text", "key", "entry"),
    [
        ("llama.context_length=int:4096", "llama.context_length", u32(4096)),
        ("a=float:0.5", "a", f32(0.5)),
        ("a=bool:true", "a", boolean(True)),
        ("a=bool:false", "a", boolean(False)),
        ("a=str:x=y:z", "a", string("x=y:z")),
        ("a=str:", "a", string("")),
    ],
)
def test_overrides_are_read(text: str, key: str, entry: object) -> None:
    assert parse_metadata_override(text) == (key, entry)


@pytest.mark.parametrize("text", ["a", "a=1", "=int:1", "a=i32:1", "a=int:x", "a=int:-1", "a=int:4294967296", "a=bool:1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(UsageError):
        parse_metadata_override(text)


@pytest.mark.parametrize("recipe", ["COPY", "F32", "Q8_0"])
@pytest.mark.parametrize("typed", [True, False])
def test_the_header_is_the_reference_s(recipe: str, typed: bool, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="writes the model")
    llama_cpp = pytest.importorskip("llama_cpp", reason="is the reference")
    source = MODEL if typed else {key: entry for key, entry in MODEL.items() if key != "general.file_type"}
    model, output = tmp_path / "model.gguf", tmp_path / "output.gguf"
    write_hollow_model(model, source, TENSORS, gguf)
    imatrix = Imatrix("some/imatrix.gguf", ("wiki.txt",), 3, {"token_embd.weight": np.ones(256, np.float32)})
    overrides = {"general.name": string("B"), "new.flag": boolean(True), "new.ratio": f32(0.25), "new.count": u32(3)}
    options = PlanOptions(importance=imatrix.sizes)
    assert reference_plan(llama_cpp, model, RECIPES[recipe], options, output, overrides | imatrix.metadata())
    metadata = quantized_metadata(source, RECIPES[recipe], imatrix, overrides=overrides, tensors=TENSORS)
    plan = make_plan(TENSORS, metadata, RECIPES[recipe], options)
    header = make_layout(metadata, [planned.info for planned in plan]).header
    assert output.read_bytes()[: len(header)] == header
