"""LoRA adapters as GGUF adapters: the reference's own files, byte for byte, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.conversion.convert import Conversion
from quantcli.conversion.lora.gguf_adapter import convert_adapter
from quantcli.core.errors import FormatError, ModelError, OutputError, QuantcliError, UnsupportedError, UsageError
from quantcli.formats.adapters import open_adapter
from quantcli.formats.gguf.reader import open_gguf

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS)]

from descriptors import open_descriptors  # noqa: E402
from lora_cases import CONVERSIONS, GPT2, LLAMA, adapter, base, conversion, embedding, pair  # noqa: E402
from tiny_checkpoint import tensor_bytes, write_adapter, write_checkpoint  # noqa: E402

GOLDENS: dict[str, Any] = json.loads((TESTS / "golden/lora/adapters.json").read_text())

Q = "model.layers.0.self_attn.q_proj"


def convert(place: Path, model: dict[str, Any], described: dict[str, Any], type: str = "F32", **options: Any) -> Conversion:
    """The file `out.gguf` of an adapter."""
    base, directory = write_checkpoint(place, model), write_adapter(place, described)
    return convert_adapter(directory, type, place / "out.gguf", base=base, threads=2, **options)


@pytest.mark.parametrize("golden", GOLDENS)
def test_the_file_is_that_of_the_reference(golden: str, tmp_path: Path) -> None:
    name, outtype = golden.split()
    result = convert(tmp_path, *conversion(name), outtype.upper())
    expected = GOLDENS[golden]
    with open_gguf(tmp_path / "out.gguf") as file:
        found = [[tensor.name, tensor.type.name, list(tensor.shape)] for tensor in file.tensors.values()]
        assert found == expected["tensors"]
        assert list(file.metadata) == [key for key, *_ in expected["metadata"]]
    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == expected["sha256"]
    assert [tensor.name for tensor in result.plan] == [name for name, *_ in expected["tensors"]]
    assert result.output_bytes == (tmp_path / "out.gguf").stat().st_size


def test_every_case_is_in_the_goldens() -> None:
    assert GOLDENS.keys() == {f"{name} {outtype}" for name, (_, outtypes, _) in CONVERSIONS.items() for outtype in outtypes}


def tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_gguf(path) as file:
        return {name: tensor.load() for name, tensor in file.tensors.items()}


def alpha(path: Path) -> float:
    with open_gguf(path) as file:
        return float(file.get("adapter.lora.alpha"))


def test_layers_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's weights are (in, out) and its adapters are not: here the reference exchanges the matrices, which llama.cpp
    then refuses."""
    c_fc = "transformer.h.0.mlp.c_fc"
    convert(tmp_path, GPT2, adapter(pair(c_fc, 16, 64), fan_in_fan_out=True))
    found = tensors(tmp_path / "out.gguf")
    assert {name: array.shape for name, array in found.items()} == {
        "blk.0.ffn_up.weight.lora_a": (4, 16), "blk.0.ffn_up.weight.lora_b": (64, 4),
    }  # fmt: skip
    for half in "ab":
        written = found[f"blk.0.ffn_up.weight.lora_{half}"]
        key = f"base_model.model.{c_fc}.lora_{half.upper()}.weight"
        assert written.tobytes() == tensor_bytes(key, "F32", list(written.shape))


@pytest.mark.parametrize(
    ("changes", "expected_alpha", "factors"),
    [
        ({}, 6, [1, 1]),
        ({"use_rslora": True}, 12, [1, 1]),
        ({"alpha_pattern": {"q_proj": 18, "v_proj": 18}}, 18, [1, 1]),
        ({"alpha_pattern": {"q_proj": 18}}, 6, [3, 1]),
        ({"use_rslora": True, "alpha_pattern": {"v_proj": 3}}, 6, [2, 1]),
    ],
)
def test_scalings_of_single_layers(
    tmp_path: Path, changes: dict[str, Any], expected_alpha: float, factors: list[float]
) -> None:
    names = {"q": (Q, 16), "v": ("model.layers.0.self_attn.v_proj", 8)}
    described = adapter({**pair(names["q"][0], 16, 16), **pair(names["v"][0], 16, 8)}, **changes)
    convert(tmp_path, base({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}), described)
    assert alpha(tmp_path / "out.gguf") == expected_alpha
    found = tensors(tmp_path / "out.gguf")
    for (letter, (module, rows)), factor in zip(names.items(), factors, strict=True):
        b = np.frombuffer(tensor_bytes(f"base_model.model.{module}.lora_B.weight", "F32", [rows, 4]), "<f4").reshape(
            rows, 4
        )
        assert np.array_equal(found[f"blk.0.attn_{letter}.weight.lora_b"], b * np.float32(factor))


def test_an_adapter_of_the_embedding_by_plain_matrices(tmp_path: Path) -> None:
    """As some tools name them; the first still has a row for each token."""
    convert(tmp_path, base(), adapter(pair("model.embed_tokens", 16, 40)))
    found = tensors(tmp_path / "out.gguf")
    assert found["token_embd.weight.lora_a"].shape == (40, 4)
    assert found["token_embd.weight.lora_b"].shape == (16, 4)


# --- the base model -------------------------------------------------------------------------------------------------------


def test_the_base_model_the_adapter_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_checkpoint(tmp_path, base())
    directory = write_adapter(tmp_path, adapter(pair(Q, 16, 16), base_model_name_or_path=str(model)))
    monkeypatch.chdir(tmp_path)
    assert convert_adapter(directory).output == Path("tiny-lora-F32.gguf")
    named = Path("tiny-lora-F32.gguf").read_bytes()
    for given in (model, model / "config.json"):
        convert_adapter(directory, base=given, overwrite=True)
        assert Path("tiny-lora-F32.gguf").read_bytes() == named
    with pytest.raises(OutputError, match="exists"):
        convert_adapter(directory)


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        (None, UsageError, r"adapter_config\.json does not name the base model"),
        ("/nowhere/at/all", FormatError, r"/nowhere/at/all: no such file; the architecture of the base model"),
    ],
)
def test_a_base_model_that_is_not_there(
    tmp_path: Path, named: str | None, error: type[QuantcliError], message: str
) -> None:
    directory = write_adapter(tmp_path, adapter(pair(Q, 16, 16), base_model_name_or_path=named))
    with pytest.raises(error, match=message) as caught:
        convert_adapter(directory, output=tmp_path / "out.gguf")
    assert "--base" in (caught.value.hint or "")


# --- what is refused ------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[QuantcliError], str]] = {
    "a whole weight": (
        adapter({**pair(Q, 16, 16), "base_model.model.lm_head.weight": ["F32", [40, 16]]}),
        UnsupportedError, "a GGUF adapter cannot hold lm_head.weight",
    ),
    "a bias": (
        adapter({**pair(Q, 16, 16), f"base_model.model.{Q}.lora_B.bias": ["F32", [16]]}),
        UnsupportedError, f"a GGUF adapter cannot hold {Q}.lora_B.bias",
    ),
    "a magnitude": (
        adapter({**pair(Q, 16, 16), f"base_model.model.{Q}.lora_magnitude_vector": ["F32", [16]]}, use_dora=True),
        UnsupportedError, f"a GGUF adapter cannot hold {Q}.lora_magnitude_vector",
    ),
    "a layer too many": (
        adapter(pair("model.layers.2.self_attn.q_proj", 16, 16)), ModelError,
        "the adapter's tensors do not match the architecture llama and config.json: 1 unknown: model.layers.2.",
    ),
    "other shapes": (
        adapter({**pair(Q, 32, 16), **embedding("model.embed_tokens", 41, 16)}), ModelError, "2 with another shape: ",
    ),
    "a condition in words": (
        adapter(pair(Q, 16, 16), invocation_string="<go>"), UnsupportedError, "invocation_string without",
    ),
    "a condition of nonsense": (
        adapter(pair(Q, 16, 16), alora_invocation_tokens=["x"]), FormatError, "alora_invocation_tokens are not token ids",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gguf_adapter_cannot_hold(tmp_path: Path, name: str) -> None:
    described, error, message = REFUSED[name]
    with pytest.raises(error) as caught:
        convert(tmp_path, base(), described)
    assert message in caught.value.message
    assert not (tmp_path / "out.gguf").exists()


def test_some_experts_only(tmp_path: Path) -> None:
    model, _ = conversion("mixtral")
    described = adapter(pair("model.layers.0.block_sparse_moe.experts.1.w1", 64, 96))
    with pytest.raises(ModelError, match=r"2 missing: model\.layers\.0\.block_sparse_moe\.experts\.\{0,2\}\.w1"):
        convert(tmp_path, model, described)


def test_weights_that_a_pair_cannot_follow(tmp_path: Path) -> None:
    """DeepSeek's keys and values are cut out of one weight, whose pair has no such parts."""
    config = {**LLAMA, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"}
    config |= {"kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "first_k_dense_replace": 9}
    described = adapter(pair("model.layers.0.self_attn.kv_b_proj", 8, 32))
    with pytest.raises(UnsupportedError, match="cannot be reshaped to"):
        convert(tmp_path, {"directory": "base", "config": config, "tensors": {}}, described)


def test_an_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'Q4_K' is not a type for adapters"):
        convert_adapter(tmp_path, "Q4_K")


def test_closing_gives_descriptors_back(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    (weights,) = directory.glob("*.safetensors")
    with open_adapter(directory) as opened:
        opened.pairs[f"{Q}.weight"].a.load()
        assert open_descriptors(weights) == 1
    assert open_descriptors(weights) == 0


def test_an_alpha_of_zero_is_not_written_since_readers_take_it_for_a_scaling_of_one(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, base())
    directory = write_adapter(tmp_path, adapter(pair(Q, 16, 16), lora_alpha=0))
    output = convert_adapter(directory, "F32", tmp_path / "out.gguf", base=model).output
    with open_gguf(output) as file:
        assert file.get("adapter.lora.alpha") == 1.0
        halves = [tensor.load() for tensor in file.tensors.values()]
    assert halves[0].any()
    assert not halves[1].any()
