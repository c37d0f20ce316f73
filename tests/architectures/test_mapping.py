"""What is said of checkpoints that do not fit their configuration, and that it is said before anything is read."""

from __future__ import annotations

import re

import numpy as np
import pytest
from memory import memory_tensor

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.name_ranges import ranges
from quantcli.core.block_types import OPAQUE_TYPES
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.tensors.tensor import OpaqueTensor

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
    "tie_word_embeddings": False,
}  # fmt: skip

LAYER = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
    "input_layernorm": (8,), "post_attention_layernorm": (8,),
}  # fmt: skip


def ones(name: str, *shape: int) -> dict:
    return {name: memory_tensor(np.ones(shape, np.float32), name)}


@pytest.fixture
def tensors():
    shapes = {"lm_head": (16, 8), "model.embed_tokens": (16, 8), "model.norm": (8,)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()}
    return {f"{n}.weight": memory_tensor(np.ones(shape, np.float32), f"{n}.weight") for n, shape in sorted(shapes.items())}


def mapped(tensors, **changes):
    config = CONFIG | changes
    return find_architecture(config).tensors(tensors, config)


def failure(tensors, **changes) -> str:
    with pytest.raises(ModelError) as caught:
        mapped(tensors, **changes)
    assert not any(tensor.read_rows for tensor in tensors.values() if hasattr(tensor, "read_rows"))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_checkpoint_that_fits(tensors):
    assert len(mapped(tensors)) == len(tensors)


def test_all_that_is_wrong_is_told_at_once(tensors):
    del tensors["model.norm.weight"]
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors |= ones("model.layers.0.mlp.extra.weight", 2, 2)
    tensors |= ones("model.layers.0.mlp.gate_proj.weight", 12, 9)
    message = failure(tensors)
    assert "2 missing: model.norm.weight, model.layers.1.mlp.up_proj.weight" in message
    assert "1 unknown: model.layers.0.mlp.extra.weight" in message
    assert "1 with another shape: model.layers.0.mlp.gate_proj.weight [12, 9] where config.json says [12, 8]" in message


def test_a_quantized_checkpoint_is_told_as_such(tensors):
    tensors["model.layers.0.mlp.up_proj.qweight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    with pytest.raises(ModelError) as caught:
        find_architecture(config).tensors(tensors, config)
    assert "quantized with gptq" in (caught.value.hint or "")


def test_a_foreign_checkpoint_is_told_by_its_own_names():
    message = failure(ones("h.0.attn.weight", 2, 2), num_hidden_layers=1)
    assert "1 unknown: h.0.attn.weight" in message


def test_biases_that_do_nothing_are_left_out_where_they_do_nothing(tensors):
    tensors = {name: tensor for name, tensor in tensors.items() if "post_attention" not in name and "lm_head" not in name}
    cohere = {"architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "rotary_pct": 1.0, "sliding_window": 4}
    zeros = {"model.layers.0.self_attn.q_proj.bias": memory_tensor(np.zeros(8, np.float16))}
    assert len(mapped(tensors | zeros, **cohere)) == len(tensors)
    ones_ = {"model.layers.0.self_attn.q_proj.bias": memory_tensor(np.ones(8, np.float16), "q_proj.bias")}
    with pytest.raises(ModelError, match=r"1 unknown: q_proj.bias"):
        mapped(tensors | ones_, **cohere)


def test_a_language_model_inside_a_larger_one(tensors):
    assert len(mapped({f"language_model.{name}": tensor for name, tensor in tensors.items()})) == len(tensors)


def test_two_tensors_of_one_name(tensors):
    tensors |= ones("language_model.model.norm.weight", 8)
    assert "holds model.norm.weight twice, as model.norm.weight and as language_model.model" in failure(tensors)


def test_names_that_differ_in_numbers_are_told_as_one(tensors):
    message = failure({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, num_hidden_layers=9)
    assert "72 missing: model.layers.{1-8}.input_layernorm.weight, " in message
    for name in LAYER:
        assert f"model.layers.{{1-8}}.{name}.weight" in message


def test_lists_of_what_is_no_model_are_cut_and_counted(tensors):
    for number in range(150):
        tensors |= ones(f"x{number}", 2)
    message = failure(tensors)
    assert message.endswith("x99 and 50 more")


def test_ranges_stand_for_exactly_the_names():
    pairs = [(layer, expert) for layer in range(4) for expert in range(3) if (layer, expert) != (2, 1)]
    names = [f"l.{layer}.e.{expert}.w1" for layer, expert in pairs]
    assert ranges([*names, "top", "7.b", "9.b", "9.b"]) == ["l.{0-1,3}.e.{0-2}.w1", "l.2.e.{0,2}.w1", "top", "{7,9}.b"]


def test_a_head_is_needed_unless_the_embeddings_are_tied(tensors):
    del tensors["lm_head.weight"]
    assert "1 missing: lm_head.weight" in failure(tensors)
    names = [tensor.name for tensor in mapped(tensors, tie_word_embeddings=True)]
    assert "output.weight" not in names


def test_biases_that_the_configuration_promises_are_needed(tensors):
    message = failure(tensors, attention_bias=True)
    assert "8 missing: model.layers.{0-1}.self_attn.q_proj.bias, model.layers.{0-1}.self_attn.k_proj.bias" in message


def test_biases_that_the_configuration_does_not_mention_are_taken(tensors):
    tensors["model.layers.1.self_attn.q_proj.bias"] = memory_tensor(np.arange(8, dtype=np.float32))
    bias = next(tensor for tensor in mapped(tensors) if tensor.name == "blk.1.attn_q.bias")
    assert bias.load().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_hidden_layers": 10**12}, "is 1000000000000, but the checkpoint has 21 tensors"),
        ({"num_hidden_layers": -1}, "is -1, expected a count"),
        ({"num_hidden_layers": 2.0}, "is 2.0, expected a count"),
        ({"num_hidden_layers": "two"}, "is 'two', expected a count"),
        ({"num_hidden_layers": None}, r"no value for the number of layers \(looked for first\(n_layers, num_hidden"),
        ({"vocab_size": 10**15}, "config.json says .1000000000000000, 8"),
        ({"head_dim": 10**12, "rope_scaling": {"rope_type": "llama3"}}, "with another shape"),
        ({"num_attention_heads": 0}, "zero"),
        ({"num_key_value_heads": 0}, "with another shape"),
        ({"hidden_size": "8"}, "not a number"),
        ({"rope_scaling": "linear"}, "expected a table"),
        ({"num_attention_heads": 10**4000, "head_dim": 10**4000}, "too large for a size"),
        ({"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 0}}, "are invalid for llama3_rope_factors .* zero"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, "invalid for llama3_rope_factors of rope_freqs.weight"),
        ({"rope_scaling": {"rope_type": "llama3", "rope_theta": []}}, "are invalid for llama3_rope_factors"),
    ],
)
def test_absurd_configurations_are_refused_before_memory_is_taken(tensors, changes, what):
    assert re.search(what, failure(tensors, **changes))


def test_more_experts_than_tensors():
    config = CONFIG | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 30, "num_local_experts": 30,
    }  # fmt: skip
    tensors = {f"t{number}": memory_tensor(np.ones((1, 1), np.float32)) for number in range(40)}
    with pytest.raises(ModelError, match=r"describes 900 tensors such as .*\{expert\}.w1.weight, but .* has 40"):
        find_architecture(config).tensors(tensors, config)


def test_a_missing_expert_is_named():
    config = CONFIG | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 2}
    tensors = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{w}.weight": memory_tensor(np.ones((1, 1), np.float32))
        for layer in range(2) for expert in range(2) for w in (1, 2, 3)
    }  # fmt: skip
    del tensors["model.layers.1.block_sparse_moe.experts.1.w2.weight"]
    with pytest.raises(ModelError, match=r"model.layers.1.block_sparse_moe.experts.1.w2.weight|missing"):
        find_architecture(config).tensors(tensors, config)


def with_experts(tensors, layers: int = 2, experts: int = 2) -> dict:
    """The tensors of a Qwen 3 MoE, its experts apart."""
    found = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name}
    for layer in range(layers):
        place = f"model.layers.{layer}."
        found |= ones(f"{place}mlp.gate.weight", experts, 8)
        found |= ones(f"{place}self_attn.q_norm.weight", 4) | ones(f"{place}self_attn.k_norm.weight", 4)
        for expert in range(experts):
            for name, shape in (("gate", (6, 8)), ("up", (6, 8)), ("down", (8, 6))):
                found |= ones(f"{place}mlp.experts.{expert}.{name}_proj.weight", *shape)
    return found


EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 6,
    "head_dim": 4,
}  # fmt: skip


def test_one_layer_may_hold_its_tensors_in_another_way_than_the_next(tensors):
    tensors = with_experts(tensors)
    for name in [name for name in tensors if name.startswith("model.layers.1.mlp.experts.")]:
        del tensors[name]
    tensors |= ones("model.layers.1.mlp.experts.gate_up_proj", 2, 12, 8)
    tensors |= ones("model.layers.1.mlp.experts.down_proj", 2, 8, 6)
    shapes = {tensor.name: tensor.shape for tensor in mapped(tensors, **EXPERTS)}
    for layer in range(2):
        assert shapes[f"blk.{layer}.ffn_up_exps.weight"] == shapes[f"blk.{layer}.ffn_gate_exps.weight"] == (2, 6, 8)
        assert shapes[f"blk.{layer}.ffn_down_exps.weight"] == (2, 8, 6)


def test_more_experts_than_tensors_fit_into_few(tensors):
    tensors = {name: tensor for name, tensor in with_experts(tensors, experts=1).items() if ".experts." not in name}
    for layer in range(2):
        place = f"model.layers.{layer}.mlp."
        tensors |= ones(f"{place}gate.weight", 20, 8)
        tensors |= ones(f"{place}experts.gate_up_proj", 20, 12, 8) | ones(f"{place}experts.down_proj", 20, 8, 6)
    assert len(tensors) < 2 * 20
    assert "blk.1.ffn_down_exps.weight" in [t.name for t in mapped(tensors, **EXPERTS | {"num_experts": 20})]


def test_more_experts_than_there_are_tensors_fit_into_one(tensors):
    tensors = {name: tensor for name, tensor in with_experts(tensors, experts=1).items() if ".experts." not in name}
    for layer in range(2):
        place = f"model.layers.{layer}.mlp."
        tensors |= ones(f"{place}gate.weight", 200, 8)
        tensors |= ones(f"{place}experts.gate_up_proj", 200, 12, 8) | ones(f"{place}experts.down_proj", 200, 8, 6)
    shapes = {tensor.name: tensor.shape for tensor in mapped(tensors, **EXPERTS | {"num_experts": 200})}
    assert shapes["blk.1.ffn_down_exps.weight"] == (200, 8, 6)


def test_the_counting_of_missing_experts_ends():
    config = CONFIG | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 3000,
        "num_local_experts": 3000,
    }  # fmt: skip
    tensors = {f"t{number}": memory_tensor(np.ones((1, 1), np.float32)) for number in range(3000)}
    with pytest.raises(ModelError, match=r"describes 9000000 tensors such as .*, but the checkpoint has 3000 tensors"):
        find_architecture(config).tensors(tensors, config)


def test_what_is_missing_is_told_by_the_names_of_the_first_way(tensors):
    tensors = with_experts(tensors)
    del tensors["model.layers.1.mlp.experts.1.up_proj.weight"]
    assert "1 missing: model.layers.1.mlp.experts.1.up_proj.weight" in failure(tensors, **EXPERTS)


def test_the_shape_of_another_way_is_its_own(tensors):
    tensors = {name: tensor for name, tensor in with_experts(tensors).items() if ".experts." not in name}
    for layer in range(2):
        place = f"model.layers.{layer}.mlp.experts."
        tensors |= ones(f"{place}gate_up_proj", 2, 6, 8) | ones(f"{place}down_proj", 2, 8, 6)
    message = failure(tensors, **EXPERTS)
    assert "2 with another shape: model.layers.{0-1}.mlp.experts.gate_up_proj [2, 6, 8] where config" in message
    assert "says [2, 12, 8]" in message


def test_an_encoding_that_cannot_be_read_is_refused_by_name(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = OpaqueTensor(name, (12, 8), OPAQUE_TYPES["F8_E4M3"], file=None, offset=0)
    with pytest.raises(UnsupportedError, match=f"1 tensors are stored as F8_E4M3, which cannot be converted: {name}"):
        mapped(tensors)


def test_an_unreadable_tensor_that_is_not_needed_does_no_harm(tensors):
    name = "model.layers.0.self_attn.attention.bias"
    tensors[name] = OpaqueTensor(name, (8, 8), OPAQUE_TYPES["BOOL"], file=None, offset=0)
    assert len(mapped(tensors)) == len(tensors) - 1


MAMBA = {
    "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 4, "num_hidden_layers": 1, "state_size": 2,
    "time_step_rank": 1,
}  # fmt: skip


def mamba(head: np.ndarray | None) -> dict:
    """A Mamba of one layer, with an output like its embeddings, another one, or none."""
    place = "backbone.layers.0."
    shapes = {
        "norm.weight": (4,), "mixer.in_proj.weight": (16, 4), "mixer.conv1d.weight": (8, 1, 4), "mixer.conv1d.bias": (8,),
        "mixer.x_proj.weight": (5, 8), "mixer.dt_proj.weight": (8, 1), "mixer.dt_proj.bias": (8,), "mixer.A_log": (8, 2),
        "mixer.D": (8,), "mixer.out_proj.weight": (4, 8),
    }  # fmt: skip
    found = ones("backbone.embeddings.weight", 10, 4) | ones("backbone.norm_f.weight", 4)
    for name, shape in shapes.items():
        found |= ones(place + name, *shape)
    return found | ({} if head is None else {"lm_head.weight": memory_tensor(head, "lm_head.weight")})


@pytest.mark.parametrize(("head", "kept"), [(None, False), (np.ones((10, 4)), False), (np.zeros((10, 4)), True)])
def test_an_output_is_left_out_where_it_is_the_embeddings(head, kept):
    found = find_architecture(MAMBA).tensors(mamba(None if head is None else head.astype(np.float32)), MAMBA)
    assert ("output.weight" in [tensor.name for tensor in found]) is kept


def test_a_variant_without_an_equivalent_is_refused():
    with pytest.raises(UnsupportedError, match=r"Mamba.* with an expansion other than 2 has no equivalent"):
        find_architecture(MAMBA).tensors(mamba(None), MAMBA | {"expand": 3})


def test_beginnings_are_taken_off_and_endings_replaced():
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 0, "vocab_size": 10,
        "max_position_embeddings": 6, "num_attention_heads": 1,
    }  # fmt: skip
    tensors = {
        **ones("bert.embeddings.word_embeddings.weight", 10, 4), **ones("bert.embeddings.position_embeddings.weight", 6, 4),
        **ones("bert.embeddings.token_type_embeddings.weight", 2, 4), **ones("bert.embeddings.LayerNorm.gamma", 4),
        **ones("embeddings.LayerNorm.beta", 4),
    }  # fmt: skip
    assert len(find_architecture(config).tensors(tensors, config)) == 5
    tensors |= ones("encoder.bert.extra.weight", 1)
    with pytest.raises(ModelError, match=r"1 unknown: encoder\.bert\.extra\.weight"):
        find_architecture(config).tensors(tensors, config)
