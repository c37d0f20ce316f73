"""Hyperparameters of other architectures: they change nothing, as in llama.cpp, and are warned about."""

from __future__ import annotations

import runpy
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from changed_file import write_changed
from reference_logits import generate
from tiny_model import PROMPT, write_model

from quantcli.core.errors import ModelError, QuantcliWarning
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import boolean, f32, string, u32
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model

CASES = runpy.run_path(str(Path(__file__).parents[1] / "golden/logit_cases.py"))["CASES"]

LOUD = {
    "attention.clamp_kqv": f32(0.05),
    "attention.max_alibi_bias": f32(4),
    "attention.scale": f32(1.75),
    "attention.sliding_window": u32(4),
    "attention.temperature_scale": f32(0.5),
    "attn_logit_softcapping": f32(0.2),
    "final_logit_softcapping": f32(0.2),
    "embedding_scale": f32(3),
    "residual_scale": f32(0.25),
    "logit_scale": f32(0.125),
    "expert_weights_scale": f32(3),
    "rope.freq_base_swa": f32(50),
    "rope.scaling.alpha": f32(100),
    "rope.scaling.yarn_beta_fast": f32(0.05),
    "rope.scaling.yarn_beta_slow": f32(0.01),
    "rope.scaling.yarn_ext_factor": f32(0.5),
    "rope.scaling.yarn_attn_factor": f32(3),
    "rope.scaling.yarn_log_multiplier": f32(5),
}
"""Values that change much where they are read."""

YARN = {
    "rope.scaling.type": string("yarn"), "rope.scaling.factor": f32(4), "rope.scaling.original_context_length": u32(16),
}  # fmt: skip
WINDOW = {"attention.sliding_window", "rope.freq_base_swa"}
GRANITE = {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}

READ: dict[str, set[str]] = {
    "llama": set(),
    "mixtral": set(),
    "qwen2": set(),
    "qwen3moe": set(),
    "qwen2moe": set(),
    "gptneox": set(),
    "bloom": set(),
    "falcon": set(),
    "starcoder2": set(),
    "phi3": set(),
    "exaone4": set(),
    "minicpm": {"embedding_scale", "residual_scale", "logit_scale"},
    "olmo": {"attention.clamp_kqv"},
    "mpt": {"attention.clamp_kqv", "attention.max_alibi_bias"},
    "command-r": {"logit_scale"},
    "cohere2": {"logit_scale", "attention.sliding_window"},
    "gemma": set(),
    "gemma2": {"attn_logit_softcapping", "final_logit_softcapping", *WINDOW},
    "gemma3": {"final_logit_softcapping", *WINDOW},
    "olmo3": {"attention.sliding_window"},
    "gpt-oss": WINDOW,
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "granitehybrid": GRANITE,
    "deepseek": {"expert_weights_scale"},
    "dots1": {"expert_weights_scale"},
    "glm4moe": {"expert_weights_scale"},
    "lfm2": {"attention.sliding_window"},
    "lfm2moe": set(),
    "hunyuan-dense": {"rope.scaling.alpha"},
    "ministral3": {
        "attention.temperature_scale", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    },
}  # fmt: skip
"""Which of them the reference reads for an architecture, and its graph uses. Source: `load_hparams` in `llama-model.cpp`,
and `load_arch_hparams` in each file of `src/models`."""

WITHOUT_ROPE = {"bloom", "mpt", "granitehybrid"}
PEERS = ("llama", "qwen2", "gptneox", "granite", "olmo", "gemma2", "cohere2", "lfm2moe", "ministral3", "mixtral", "gpt-oss",
         "olmo3", "granitemoe", "minicpm", "command-r", "mpt", "gemma3", "dots1", "exaone4-32b", "phi3", "nemotron")


@pytest.fixture(params=READ)
def model_file(request, tmp_path):
    """A model with YaRN where it turns, and no key that is ignored."""
    name = request.param
    path = write_model(tmp_path, *CASES[name])
    with open_gguf(path) as file:
        prefix = f"{file.architecture}."
        kept = {key: value for key, value in file.metadata.items() if key.removeprefix(prefix) not in LOUD}
        needed = {prefix + key: file.metadata[prefix + key] for key in READ[name] if prefix + key in file.metadata}
        turning = {} if name in WITHOUT_ROPE else {prefix + key: value for key, value in YARN.items()}
        yield name, replace(file, metadata={**kept, **needed, **turning})


def logits_of(file):
    model = Model(file)
    return model.forward(PROMPT.tolist(), Cache(model.sizes, 64, "f32"), every=True)


def with_key(file, key):
    return replace(file, metadata={**file.metadata, f"{file.architecture}.{key}": LOUD[key]})


def can_matter(name: str, file, key: str) -> bool:
    """Whether the model has what the key is about: where it does not, there is nothing to warn of."""
    if key.startswith("rope.scaling.yarn"):
        return name not in WITHOUT_ROPE
    if key == "expert_weights_scale":
        return file.get(f"{file.architecture}.expert_count", 0) > 0
    return key != "rope.freq_base_swa" or name in ("olmo3", "cohere2")


def test_a_key_of_other_architectures_changes_nothing_and_is_warned_about(model_file):
    name, file = model_file
    plain = logits_of(file)
    for key in LOUD:
        if key in READ[name]:
            continue
        changed = with_key(file, key)
        if can_matter(name, file, key):
            with pytest.warns(QuantcliWarning, match=rf"{key} is .*has no effect"):
                np.testing.assert_array_equal(logits_of(changed), plain, key)
        else:
            np.testing.assert_array_equal(logits_of(changed), plain, key)


def test_a_key_of_the_architecture_is_used_without_a_word(model_file):
    name, file = model_file
    plain = logits_of(file)
    for key in READ[name]:
        assert not np.array_equal(logits_of(with_key(file, key)), plain), key


def test_a_value_that_would_change_nothing_is_not_warned_about(tmp_path):
    neutral = {"attention.clamp_kqv": f32(0), "logit_scale": f32(1), "attention.sliding_window": u32(1 << 20),
               "rope.scaling.yarn_beta_fast": f32(32), "rope.scaling.yarn_attn_factor": f32(1 + 0.1 * np.log(4)),
               "rope.scaling.yarn_beta_slow": f32(1), "expert_weights_norm": boolean(False), **YARN}  # fmt: skip
    path = write_model(tmp_path, *CASES["llama"], {f"llama.{key}": value for key, value in neutral.items()})
    with open_gguf(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        Model(file)


def test_a_value_of_another_kind_is_refused_where_it_is_read(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["olmo"])) as file:
        changed = replace(file, metadata={**file.metadata, "olmo.attention.clamp_kqv": string("x")})
        with pytest.raises(ModelError, match="projection_clamp is 'x', expected a finite number"):
            Model(changed)


@pytest.mark.parametrize("name", PEERS)
def test_the_reference_passes_over_the_same_keys(name, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference")
    bare = write_model(tmp_path, *CASES[name])
    with open_gguf(bare) as file:
        prefix, turning = f"{file.architecture}.", {} if name in WITHOUT_ROPE else YARN
    more = {prefix + key: value for key, value in {**LOUD, **turning}.items()}
    path = write_changed(bare, tmp_path / "changed.gguf", more)
    theirs, _ = generate(path, PROMPT.tolist())
    with open_gguf(path) as file, pytest.warns(QuantcliWarning, match="has no effect"):
        model = Model(file)
    ours = model.forward(PROMPT.tolist(), Cache(model.sizes, 64, "f32"), every=True)
    # Its GELU is from a table of halves.
    assert np.abs(ours - theirs).max() <= (5e-3 if model.graph.activation == "gelu" else 1e-4) * np.ptp(theirs)


VARIATIONS = [
    ("glm4moe", {"expert_gating_func": None}),
    ("glm4moe", {"expert_gating_func": u32(1)}),
    ("lfm2moe", {"expert_gating_func": u32(1)}),
    ("granitemoe", {"rope.scaling.finetuned": boolean(False)}),
    ("granite", {"rope.scaling.finetuned": boolean(False)}),
    ("deepseek3", {"expert_weights_scale": f32(3)}),
    ("qwen2", {"rope.scale_linear": f32(4)}),
    ("qwen2", {"rope.scale_linear": f32(4), "rope.scaling.factor": f32(2)}),
]


@pytest.mark.filterwarnings("ignore:.*has no effect")  # the configuration of one has a key that is none
@pytest.mark.parametrize(("name", "keys"), VARIATIONS, ids=str)
def test_a_key_means_what_it_means_to_the_reference(name, keys, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference")
    bare = write_model(tmp_path, *CASES[name])
    with open_gguf(bare) as file:
        changes = {f"{file.architecture}.{key}": value for key, value in keys.items()}
    path = write_changed(bare, tmp_path / "changed.gguf", changes)
    theirs, _ = generate(path, PROMPT.tolist())
    with open_gguf(path) as file:
        assert np.abs(logits_of(file) - theirs).max() <= 1e-4 * np.ptp(theirs)


def test_a_router_that_does_not_say_how_it_counts_counts_as_the_architecture_does(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["glm4moe"])) as file:
        bare = {key: value for key, value in file.metadata.items() if not key.endswith("expert_gating_func")}
        for said, expected in ((None, "sigmoid"), (u32(0), "sigmoid"), (u32(1), "softmax"), (u32(2), "sigmoid")):
            more = {} if said is None else {"glm4moe.expert_gating_func": said}
            experts = Model(replace(file, metadata={**bare, **more})).sizes.feed_forward["experts"]
            assert experts.gating == expected


def test_heads_of_windows_that_are_of_other_sizes_are_refused(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["gemma3"])) as file:
        size = file.get("gemma3.attention.key_length")
        Model(replace(file, metadata={**file.metadata, "gemma3.attention.key_length_swa": u32(size)}))
        changed = replace(file, metadata={**file.metadata, "gemma3.attention.key_length_swa": u32(2 * size)})
        with pytest.raises(ModelError, match="key_length_swa"):
            Model(changed)
