"""Adapters that train one of two tied weights: what becomes of the other, in the GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.architectures.loader import find_architecture
from quantcli.conversion.convert import convert
from quantcli.conversion.lora.merge import AdapterRequest, merged
from quantcli.core.errors import QuantcliWarning, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS)]

from lora_cases import V, adapter, base, pair  # noqa: E402
from tiny_checkpoint import tensor_bytes, write_adapter, write_checkpoint  # noqa: E402

EMBEDDING = "base_model.model.model.embed_tokens.weight"
OUTPUT = "base_model.model.lm_head.weight"
SHAPE = [40, 16]


def outputs(place: Path, config: dict[str, Any], saved: list[str], **settings: Any) -> dict[str, bytes]:
    """The embedding and the output of the GGUF file."""
    tensors = {**pair(f"model.layers.0.{V}", 16, 8), **{name: ["F32", SHAPE] for name in saved}}
    model = write_checkpoint(place, base({"tie_word_embeddings": True, **config}, dtype="F32"))
    request = AdapterRequest(write_adapter(place, adapter(tensors, target_modules=["v_proj"], **settings)))
    with open_checkpoint(model) as checkpoint:
        architecture = find_architecture(checkpoint.config)
        with merged(checkpoint, architecture, [request]) as view:
            found = {tensor.name: tensor for tensor in architecture.tensors(view.tensors, view.config)}
            names = ("token_embd.weight", "output.weight")
            return {name: np.asarray(found[name].load()).tobytes() for name in names if name in found}


def old() -> bytes:
    return tensor_bytes("model.embed_tokens.weight", "F32", SHAPE)


def new(name: str) -> bytes:
    return tensor_bytes(name, "F32", SHAPE)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("module", ["embed_tokens", "model.embed_tokens"])
def test_the_output_keeps_the_embedding_that_it_was_tied_to(kind: str, module: str, tmp_path: Path) -> None:
    config = {"model_type": kind, "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]]}
    found = outputs(tmp_path, config, [EMBEDDING], modules_to_save=[module])
    assert found == {"token_embd.weight": new(EMBEDDING), "output.weight": old()}


def test_an_output_of_its_own_is_written_though_the_architecture_drops_it_where_tied(tmp_path: Path) -> None:
    """The reference's converter leaves lm_head out where config.json says tied; the adapter says otherwise."""
    config = {"model_type": "hunyuan_v1_dense", "architectures": ["HunYuanDenseV1ForCausalLM"], "head_dim": 4}
    tensors = {OUTPUT: ["F32", SHAPE], **pair(f"model.layers.0.{V}", 16, 8)}
    model = write_checkpoint(tmp_path, base({"tie_word_embeddings": True, **config}, dtype="F32"))
    place = write_adapter(tmp_path, adapter(tensors, target_modules=["v_proj"], modules_to_save=["lm_head"]))
    with open_checkpoint(model) as checkpoint:
        architecture = find_architecture(checkpoint.config)
        with merged(checkpoint, architecture, [AdapterRequest(place)]) as view:
            assert architecture.hyperparameters(view.config)["tie_word_embeddings"] is False


def test_weights_that_are_kept_tied_stay_tied(tmp_path: Path) -> None:
    """With `ensure_weight_tying` peft trains both as one, and saves it twice."""
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    assert outputs(tmp_path, {}, [EMBEDDING, OUTPUT], **settings) == {"token_embd.weight": new(EMBEDDING)}


def test_an_embedding_that_was_saved_and_not_trained_apart_stays_tied(tmp_path: Path) -> None:
    """As `save_embedding_layers` saves it: it is loaded into the weight that both share."""
    assert outputs(tmp_path, {}, [EMBEDDING]) == {"token_embd.weight": new(EMBEDDING)}


def test_both_trained_apart_are_both_written(tmp_path: Path) -> None:
    found = outputs(tmp_path, {}, [EMBEDDING, OUTPUT], modules_to_save=["embed_tokens", "lm_head"])
    assert found == {"token_embd.weight": new(EMBEDDING), "output.weight": new(OUTPUT)}


def test_where_gguf_has_no_output_it_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 4}
    with pytest.raises(UnsupportedError, match="tied to its embedding, but the adapter trained only the embedding"):
        outputs(tmp_path, config, [EMBEDDING], modules_to_save=["embed_tokens"])


def test_an_adapter_in_the_folder_of_a_model_is_told(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, base(dtype="F32"))
    place = write_adapter(tmp_path, adapter(pair(f"model.layers.0.{V}", 16, 8), target_modules=["v_proj"]))
    for file in place.iterdir():
        file.rename(model / file.name)
    (model / "tokenizer.model").write_bytes((TESTS.parent / "examples/storyteller/tokenizer.model").read_bytes())
    with pytest.warns(QuantcliWarning, match=r"this directory has an adapter too, which is not merged; --lora"):
        convert(model, "F32", tmp_path / "out.gguf")
    convert(model, "F32", tmp_path / "merged.gguf", adapters=[AdapterRequest(model)])
    assert (tmp_path / "out.gguf").read_bytes() != (tmp_path / "merged.gguf").read_bytes()
