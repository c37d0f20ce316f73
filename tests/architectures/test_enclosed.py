"""Language models inside models that see, hear or speak: where their configuration is, and what is set aside."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from quantcli.architectures.loader import architectures, find_architecture
from quantcli.core.errors import UnsupportedError
from quantcli.formats.checkpoint.nested import text_config, with_text_changes

QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8}


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": QWEN},
        {"llm_config": QWEN},
        {"lm_config": QWEN},
        {"language_config": QWEN},
        {"lfm": QWEN},
        {"thinker_config": {"text_config": QWEN, "audio_config": {}}},
        {"thinker_config": None, "text_config": QWEN},
    ],
)
def test_the_inner_configuration_is_found_at_every_place(config: dict[str, Any]):
    outer = {"architectures": ["SomethingThatSees"], "hidden_size": 4, **config}
    assert text_config(outer) == QWEN
    assert find_architecture(outer).name == "qwen2"
    assert find_architecture(outer).hyperparameters(outer)["hidden"] == 8
    changed = with_text_changes(outer, {"hidden_size": 16})
    assert text_config(changed) == {**QWEN, "hidden_size": 16}
    assert changed["hidden_size"] == 16
    assert outer == {"architectures": ["SomethingThatSees"], "hidden_size": 4, **config}


@pytest.mark.parametrize(
    "config", [{}, {"text_config": None}, {"text_config": [1]}, {"thinker_config": {"text_config": 3}}]
)
def test_a_configuration_may_be_of_a_language_model_alone(config: dict[str, Any]):
    assert text_config(config) == {}
    assert with_text_changes(config, {"a": 1}) == {**config, "a": 1}


def test_an_unknown_class_is_known_by_the_type_of_the_language_model_inside():
    config = {"architectures": ["SomethingThatSees"], "model_type": "sees", "text_config": {"model_type": "qwen2"}}
    assert find_architecture(config).name == "qwen2"
    with pytest.raises(UnsupportedError, match="model class SomethingThatSees is not supported"):
        find_architecture(config | {"text_config": {"model_type": "unheard_of"}})


def test_a_class_may_decide_over_that_of_the_language_model_inside():
    inside = {"text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}}
    assert find_architecture({"architectures": ["StepVLForConditionalGeneration"], **inside}).name == "qwen3"
    assert find_architecture({"architectures": ["Qwen3ForCausalLM"], **inside}).name == "llama"


def test_what_is_set_aside_is_no_tensor_of_any_language_model():
    base = {row.pattern for row in find_architecture(QWEN).declaration.ignore if "rotary" not in row.why}
    rows = [row for architecture in architectures() for row in architecture.declaration.tensors]
    names = {source for row in rows for way in (row, *row.alternatives) for source in way.sources}
    assert "*vision_*" in base
    assert [(name, glob) for name in sorted(names) for glob in base if fnmatchcase(name, glob)] == []
