"""A wrong base is noticed from the headers of the files."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from quantcli.conversion.convert import convert
from quantcli.core.block_types import block_type
from quantcli.core.errors import ModelError, QuantcliWarning
from quantcli.formats.gguf.arrays import pack_strings
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Field, ValueType, string, u32
from quantcli.quality.reference import check_reference, check_vocabulary, warn_of_quantized_reference
from quantcli.tensors.tensor import TensorInfo


def header(path="a.gguf", tokens=("a", "b"), architecture="llama", layers=1, type="F16", shape=(4, 32)):
    return SimpleNamespace(
        path=path,
        metadata={
            "general.architecture": string(architecture),
            f"{architecture}.block_count": u32(layers),
            "tokenizer.ggml.tokens": Field(ValueType.ARRAY, pack_strings(tokens), ValueType.STRING),
        },
        tensors={
            "output_norm.weight": TensorInfo("output_norm.weight", (32,), block_type("F32")),
            "output.weight": TensorInfo("output.weight", shape, block_type(type)),
        },
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "different models: architecture 'llama' and architecture 'qwen2'"),
        ({"layers": 2}, "different models: 1 layers and 2 layers"),
        ({"shape": (4, 64)}, r"different models: 'output.weight' has the shapes \(4, 32\) and \(4, 64\)"),
        ({"tokens": ("a", "c")}, r"different vocabularies \(token 1 is 'b' and 'c'\)"),
        ({"tokens": ("a", "b", "c")}, r"different vocabularies \(2 and 3 tokens\)"),
    ],
)
def test_another_model_is_no_base(changes, message):
    with pytest.raises(ModelError, match=rf"^a\.gguf and b\.gguf .*{message}"):
        check_reference(header(), header("b.gguf", **changes))


def test_the_same_model_in_another_type_is_a_base():
    check_reference(header(type="Q4_0"), header("b.gguf"))
    tied = header("b.gguf")
    del tied.tensors["output.weight"]
    check_reference(header(), tied)


def test_most_weights_decide_whether_a_base_is_quantized():
    with pytest.warns(QuantcliWarning, match=r"a\.gguf: the base is itself quantized: 80% .* most of them in Q4_0"):
        warn_of_quantized_reference(header(type="Q4_0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_quantized_reference(header(type="BF16"))


def test_files_of_one_model_agree(golden, tmp_path):
    for kind in ("F32", "Q4_K_M"):
        convert(golden / "stories260K", kind, tmp_path / f"{kind}.gguf")
    with open_gguf(tmp_path / "F32.gguf") as plain, open_gguf(tmp_path / "Q4_K_M.gguf") as packed:
        check_reference(packed, plain)


def test_a_file_without_tokens_has_another_vocabulary():
    bare, other = header("b.gguf"), header("c.gguf")
    for each in (bare, other):
        del each.metadata["tokenizer.ggml.tokens"]
    with pytest.raises(ModelError, match=r"different vocabularies \(one of them has none\)"):
        check_vocabulary(header(), bare)
    check_vocabulary(bare, other)
