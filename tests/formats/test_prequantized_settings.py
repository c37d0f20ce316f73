"""What a configuration may say of how a checkpoint is quantized: anything at all ends in an error of ours or in numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prequantized import NAMES, opened, with_state

from quantcli.core.errors import ModelError, QuantcliError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.prequantized import METHODS, decode
from quantcli.formats.prequantized.numbers import read_small
from quantcli.formats.prequantized.scaled import Decoded
from quantcli.formats.prequantized.settings import quantization_config

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 3, 4.0, 0.5, 1 << 31, 1 << 64, -(1 << 70), float("inf"), float("nan"), "", "4", "four",
    "fp8_e4m3", [], [0], [[]], [128, 128], ["a", 1], {}, {"a": 1}, {"format": []}, {"": None}, "x" * 10000, "\n\x1b[31m",
]  # fmt: skip
"""Values of every kind that JSON has, of which some are what a setting may be."""

SETTINGS = (
    "act_bits", "adapter", "algo_config", "backend", "bits", "checkpoint_format", "config_groups", "desc_act", "dynamic",
    "extra_config", "format", "global_quant_config", "group_size", "is_marlin_format", "kv_cache_scheme",
    "layer_quant_config", "layer_type_quant_config", "linear_class", "m", "mode", "pack_dtype", "packing_format",
    "q_group_size", "quant_algo", "quantization_mode", "rotation", "scale_fmt", "sparsity_config", "sym",
    "transform_config", "use_rms_norm", "version", "w_bit", "weight_block_size", "zero_point",
)  # fmt: skip
"""Every key of a configuration that some method reads, and some that none does."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a configuration something can be put in place of what is there."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    """A copy with `put` at that place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = put
    return copy


def outcome(name: str, config: Any) -> str:
    """What comes of a fixture under that configuration."""
    tensors, _ = opened(name)
    try:
        for tensor in decode(tensors, config).values():
            if isinstance(tensor, Decoded) and tensor.size < 1 << 20:
                tensor.read(0, 1, np.empty((1, tensor.row_bytes), np.uint8))
    except QuantcliError as error:
        assert "\n" not in error.message
        assert "\x1b" not in error.message
        assert len(error.message) < 1500
        return "error"
    return "numbers"


@pytest.mark.parametrize("name", [name for name in NAMES if opened(name)[1] is not None])
def test_any_value_at_any_place(name: str) -> None:
    _, config = opened(name)
    assert config is not None
    found = list(places(config))
    chosen = random.Random(name)
    cases = [(path, value) for path in found if path != ("quant_method",) for value in STRANGE]
    cases += [((key,), value) for key in SETTINGS for value in STRANGE]
    assert outcome(name, config) == "numbers"
    outcomes = {outcome(name, changed(config, path, value)) for path, value in chosen.sample(cases, min(len(cases), 250))}
    assert outcomes <= {"numbers", "error"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", SETTINGS)
def test_any_value_of_any_setting_of_any_method(method: str, key: str) -> None:
    tensors, _ = opened("gptq-4")
    for value in STRANGE:
        try:
            decode(tensors, {"quant_method": method, key: value})
        except QuantcliError as error:
            assert "\n" not in error.message
            assert "\x1b" not in error.message
            assert len(error.message) < 1500


@pytest.mark.parametrize("value", STRANGE)
def test_any_value_for_all_the_settings(value: Any, tmp_path: Path) -> None:
    for config in (
        {"quantization_config": value},
        {"quantization": value},
        {"compression_config": value},
        {"text_config": value},
        {"quantization_config": {"quant_method": value}},
        {"quantization": {"bits": value, "group_size": value, "mode": value}},
        {"quantization_config": {"bits": value, "group_size": 64}},
    ):
        try:
            found = quantization_config(Checkpoint(tmp_path, tmp_path, config, {}))
            decode(opened("mlx-4-bit")[0], found)
        except QuantcliError as error:
            assert "\n" not in error.message
            assert "\x1b" not in error.message


@pytest.mark.parametrize("key", ["shape", "blocksize", "nested_blocksize", "nested_offset", "quant_type", "dtype"])
def test_any_value_in_the_state_of_bitsandbytes(key: str, tmp_path: Path) -> None:
    given, _ = opened("bnb-nf4-nested")
    state = json.loads(read_small(given["m.weight.quant_state.bitsandbytes__nf4"]).tobytes())
    for value in STRANGE:
        tensors, config = with_state(tmp_path, "bnb-nf4-nested", json.dumps({**state, key: value}).encode())
        try:
            weight = decode(tensors, config)["m.weight"]
            weight.read(0, 1, np.empty((1, weight.row_bytes), np.uint8))
        except QuantcliError as error:
            assert "\n" not in error.message


def test_blocks_that_are_written_as_text() -> None:
    """As compressed-tensors wrote them once: "16x32"."""
    tensors, config = opened("ct-int4-block")
    weights = config["config_groups"]["group_0"]["weights"] if config else {}
    expected = decode(tensors, config)["m.weight"].load()
    weights["block_structure"] = "16x32"
    np.testing.assert_array_equal(decode(tensors, config)["m.weight"].load(), expected)
    weights["block_structure"] = "16x"
    assert "do not fit a weight of shape" in refusal("ct-int4-block", config or {})


def test_groups_that_may_be_of_several_sizes() -> None:
    """Two groups of 64 are as many as a row of 128 has of 96: then nothing tells which."""
    _, config = opened("ct-int4-g64-asym")
    groups = {str(size): {"weights": {"num_bits": 4, "symmetric": False, "group_size": size}} for size in (64, 96)}
    message = refusal("ct-int4-g64-asym", {**(config or {}), "config_groups": groups})
    assert "m: scales of shape [48, 2] may be for several sizes: [64, 96]" in message


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("auto-round-gptq", "auto_round:auto_gptq:exllamav2"),
        ("auto-round-gptq", "auto_gptq"),
        ("auto-round-own", "auto_round:exllamav2"),
        ("auto-round-own", "auto_round:gptqmodel"),
    ],
)
def test_layouts_of_auto_round(name: str, layout: str) -> None:
    tensors, config = opened(name)
    expected = decode(tensors, config)["m.weight"].load()
    found = decode(tensors, {**(config or {}), "packing_format": layout})["m.weight"].load()
    np.testing.assert_array_equal(found, expected)


# --- MLX ------------------------------------------------------------------------------------------------------------------


def refusal(name: str, config: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        decode(opened(name)[0], config)
    return caught.value.message


def test_settings_of_mlx(tmp_path: Path) -> None:
    def found(config: dict[str, Any]) -> Any:
        return quantization_config(Checkpoint(tmp_path, tmp_path, config, {}))

    settings = {"group_size": 64, "bits": 4}
    assert found({"quantization": settings}) == {"quant_method": "mlx", **settings}
    assert found({"quantization": settings, "quantization_config": settings}) == {"quant_method": "mlx", **settings}
    assert found({"quantization_config": settings}) == {"quant_method": "mlx", **settings}
    assert found({"text_config": {"quantization": settings}}) == {"quant_method": "mlx", **settings}
    # What was quantized before MLX did it says nothing of what the file holds.
    both = {"quantization": settings, "quantization_config": {"quant_method": "mxfp4"}}
    assert found(both) == {"quant_method": "mlx", **settings}


def test_a_module_that_mlx_names_must_be_as_it_says() -> None:
    tensors, config = opened("mlx-mixed")
    assert config is not None
    message = refusal("mlx-mixed", {**config, "m": {"group_size": 64, "bits": 4}})
    assert "m: weight [16, 24] and scales [16, 2] do not fit together with 4 bits in groups of 64" in message
    eight = {"quant_method": "mlx", "m": {"mode": "mxfp8", "bits": 8, "group_size": 64}}
    assert "m: m.scales is F16, expected U8" in refusal("mlx-8-bit", eight)
    # False is for modules that are not quantized; names that are no modules say nothing.
    decode(tensors, {**config, "vision.head": False, "vision.body": {"bits": 5, "group_size": 128}})


def test_a_module_that_mlx_names_within_its_part_of_the_model() -> None:
    """As mlx-vlm has it in `text_config`: names without the `language_model` before them."""
    tensors, config = opened("mlx-3-bit-one-group-float32")
    inner = {key.replace("m.", "language_model.m."): value for key, value in tensors.items()}
    settings = {"group_size": 64, "bits": 4, "m": {"group_size": 128, "bits": 3}}
    found = decode({key: replace(t, name=key) for key, t in inner.items()}, {"quant_method": "mlx", **settings})
    np.testing.assert_array_equal(found["language_model.m.weight"].load(), decode(tensors, config)["m.weight"].load())


def test_a_module_that_mlx_does_not_name_is_told_by_its_tensors() -> None:
    tensors, config = opened("mlx-6-bit")
    assert config is not None
    expected = decode(tensors, config)["m.weight"].load()
    for other in ({"bits": 4}, {"mode": "mxfp4", "group_size": 64}):
        np.testing.assert_array_equal(decode(tensors, {**config, **other})["m.weight"].load(), expected)


@pytest.mark.parametrize(
    ("name", "config", "what"),
    [
        ("gptq-4", {"rotation": "hadamard"}, "GPTQ with rotation 'hadamard' is not supported"),
        ("gptq-4", {"adapter": {"name": "lora"}}, "GPTQ with adapter {'name': 'lora'} is not supported"),
        ("gptq-4", {"checkpoint_format": "gptq_p"}, "GPTQ in the layout 'gptq_p' is not supported"),
        ("awq-gemm", {"checkpoint_format": "gemv_fast"}, "AWQ in the layout 'gemv_fast' is not supported"),
        ("gptq-4", {"format": "marlin"}, "GPTQ in the layout 'marlin' is not supported"),
        ("bitnet", {"quantization_mode": "online"}, "BitNet with quantization_mode online is not supported"),
        ("bitnet", {"use_rms_norm": True}, "BitNet with use_rms_norm True is not supported"),
        ("modelopt-nvfp4", {"quant_algo": "NVFP4_SVD"}, "quant_algo 'NVFP4_SVD' is not supported"),
        ("modelopt-int4", {"quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ' is not supported"),
        ("auto-round-own", {"packing_format": "auto_round:fp8_static"}, "auto-round in the layout"),
        ("auto-round-own", {"act_bits": 8}, "auto-round with act_bits 8"),
        ("quark-fp8", {"global_quant_config": {"weight": {"dtype": "uint4"}}}, "quark with weights of {'dtype': 'uint4'}"),
        ("quark-mxfp4", {"layer_quant_config": {"*": {"weight": {"dtype": "mx6"}}}}, "quark with weights of"),
        ("quark-fp8", {"algo_config": [{"name": "rotation"}]}, "quark with the algorithm 'rotation' is not supported"),
    ],
)
def test_an_option_that_changes_values_is_refused_by_name(name: str, config: dict[str, Any], what: str) -> None:
    tensors, given = opened(name)
    with pytest.raises(UnsupportedError) as caught:
        decode(tensors, {**(given or {}), **config})
    assert what in caught.value.message
