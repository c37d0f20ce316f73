"""Files whose metadata and tensors contradict each other: they are refused in one line, or run, and nothing else."""

from __future__ import annotations

import random
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from quantcli.core.block_types import TYPES
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, boolean, f32, string, u32
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model

CASES = runpy.run_path(str(Path(__file__).parents[1] / "golden/logit_cases.py"))["CASES"]

pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect")

MORE_KEYS = (
    "attention.key_length", "attention.value_length", "attention.head_count_kv", "attention.sliding_window",
    "attention.sliding_window_pattern", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
    "attention.key_length_mla", "attention.temperature_scale", "attn_logit_softcapping", "rope.dimension_count",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.yarn_beta_fast", "expert_count", "expert_used_count",
    "expert_group_count", "expert_group_used_count", "expert_gating_func", "nextn_predict_layers", "logit_scale",
)  # fmt: skip


def some_value(dice: random.Random, layers: int):
    numbers = [0, 1, 2, 3, 5, 8, 64, 100, 2**20, 2**31, 2**32 - 1]
    return dice.choice(
        [
            u32(dice.choice(numbers)),
            f32(dice.choice([0.0, -1.0, 1.5, float("nan"), float("inf"), 1e30, 1e-30])),
            string(dice.choice(["yarn", "longrope", ""])),
            boolean(dice.random() < 0.5),
            array(ValueType.INT32, [dice.choice([0, 1, 2, 4, -1]) for _ in range(dice.choice([layers, 0, 5]))]),
            array(ValueType.STRING, ["a"] * layers),
        ]
    )


def spoil(file, dice: random.Random):
    """The same file with one to three keys or tensors changed or gone, or tensors of another shape."""
    metadata, tensors, prefix = dict(file.metadata), dict(file.tensors), f"{file.architecture}."
    keys = [key for key in metadata if key.startswith(prefix)] + [prefix + key for key in MORE_KEYS]
    for _ in range(dice.choice([1, 1, 2, 3])):
        name, kind = dice.choice(list(tensors)), dice.random()
        if kind < 0.6:
            metadata[dice.choice(keys)] = some_value(dice, file.get(f"{prefix}block_count"))
        elif kind < 0.7:
            metadata.pop(dice.choice(keys), None)
        elif kind < 0.8:
            tensors.pop(name)
        else:
            shape = list(tensors[name].shape)
            shape[dice.randrange(len(shape))] //= 2
            shape = dice.choice([tensors[name].shape[::-1], (tensors[name].size,), tuple(max(1, n) for n in shape)])
            tensors[name] = replace(tensors[name], shape=shape)
    return replace(file, metadata=metadata, tensors=tensors)


@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt-oss", "deepseek3", "bloom", "lfm2", "mamba2", "command-r", "phi3-long"]
)
def test_contradictions_end_in_one_line(name, tmp_path):
    dice, messages = random.Random(name), []
    with open_gguf(write_model(tmp_path, *CASES[name])) as file:
        for _ in range(60):
            try:
                model = Model(spoil(file, dice))
                cache = Cache(model.sizes, 40, "f32")
                with np.errstate(all="ignore"):  # scales may be huge
                    for tokens in ([3, 4, 5, 6, 7], [8], list(range(3, 20))):
                        model.forward(tokens, cache)
            except QuantcliError as error:
                messages.append(error.message)
    assert 20 < len(messages) < 60
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64", "Q8_1", "Q8_K"])
@pytest.mark.parametrize("name", ["output_norm.weight", "token_embd.weight", "blk.0.attn_norm.weight"])
def test_numbers_of_a_type_that_is_only_stored_are_refused_by_name(name, kind, tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["llama"])) as file:
        tensor = replace(file.tensors[name], type=TYPES[kind])
        if tensor.shape[-1] % tensor.type.block_length:
            tensor = replace(tensor, shape=(*tensor.shape[:-1], tensor.type.block_length))
        with pytest.raises(QuantcliError, match=rf"tensor '{name}'"):
            Model(replace(file, tensors={**file.tensors, name: tensor}))


def test_a_kind_of_file_that_is_no_text_is_refused(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["llama"])) as file:
        for kind in (array(ValueType.UINT32, [1, 2, 3]), array(ValueType.STRING, ["model"]), u32(1), string("adapter")):
            with pytest.raises(QuantcliError, match=r"general\.type is .*expected 'model'"):
                Model(replace(file, metadata={**file.metadata, "general.type": kind}))


def test_an_unknown_rope_scaling_is_refused_by_name(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["llama"])) as file:
        changed = {**file.metadata, "llama.rope.scaling.type": string("spiral")}
        with pytest.raises(QuantcliError, match="rope scaling 'spiral' is not supported"):
            Model(replace(file, metadata=changed))
