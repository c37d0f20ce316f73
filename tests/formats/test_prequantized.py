"""Quantized checkpoints made by the libraries that define the formats, decoded and compared with what those decode."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.core.block_types import ELEMENT_TYPES, TYPES
from quantcli.core.errors import ModelError, QuantcliError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.checkpoint.safetensors import open_safetensors
from quantcli.formats.prequantized import METHODS, decode, transposed
from quantcli.formats.prequantized.scaled import Decoded
from quantcli.formats.prequantized.settings import quantization_config
from quantcli.kernels.rows import dequantize
from quantcli.tensors import column_blocks
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor, Tensor, stored_tensor

FIXTURES = Path(__file__).parent / "fixtures" / "prequantized"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))


def opened(name: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a fixture and its quantization_config."""
    path = FIXTURES / f"{name}.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return open_safetensors(path), json.loads(header["__metadata__"]["quantization_config"]) or None


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return dict(arrays)


def numbers(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Rows of a decoded tensor as float32."""
    if tensor.type.is_quantized:
        return dequantize(rows, tensor.type)
    assert tensor.type.name == "F32"
    return rows.view(np.float32)


def read(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    out = np.full((stop - start, tensor.row_bytes), 0xA5, np.uint8)
    tensor.read(start, stop, out)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(name: str) -> None:
    tensors = decode(*opened(name))
    weights = expected(name)
    assert weights.keys() <= tensors.keys()
    for key, weight in weights.items():
        assert tensors[key].shape == weight.shape
        found = numbers(tensors[key], read(tensors[key], 0, tensors[key].rows)).reshape(weight.shape)
        np.testing.assert_array_equal(found, weight, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_all_else_is_as_it_was(name: str) -> None:
    given, config = opened(name)
    left = {key: tensor for key, tensor in decode(given, config).items() if key not in expected(name)}
    assert all(given[key] is tensor for key, tensor in left.items())
    assert all(key.endswith(("bias", "norm.weight", "head.weight")) for key in left), "companions are left over"


@pytest.mark.parametrize("name", NAMES)
def test_any_stretch_of_rows_from_any_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transposed, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(transposed, "CACHE_BYTES", 10000)
    monkeypatch.setattr(column_blocks, "BLOCK_BYTES", 512)
    monkeypatch.setattr(column_blocks, "READ_BYTES", 64)
    tensors = decode(*opened(name))
    for key in expected(name):
        tensor = tensors[key]
        whole = read(tensor, 0, tensor.rows)
        stretches = [(start, min(start + 5, tensor.rows)) for start in range(0, tensor.rows, 3)] * 2
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda stretch, tensor=tensor: read(tensor, *stretch), stretches))
        for (start, stop), rows in zip(stretches, found, strict=True):
            np.testing.assert_array_equal(rows, whole[start:stop])
        assert read(tensor, 1, 1).shape == (0, tensor.row_bytes)


# --- what is refused ------------------------------------------------------------------------------------------------------


def refusal(tensors: dict[str, Tensor], config: dict[str, Any] | None) -> str:
    with pytest.raises(ModelError) as caught:
        decode(tensors, config)
    return caught.value.message


@pytest.mark.parametrize("method", ["hqq", "quanto", "aqlm", "eetq", "vptq", "what"])
def test_an_unknown_method_is_refused_by_name(method: str) -> None:
    message = f"quantized with {method}, which is not supported, only auto-round, awq, b"
    with pytest.raises(UnsupportedError, match=message) as caught:
        decode({}, {"quant_method": method})
    assert all(known in caught.value.message for known in METHODS)
    assert "original checkpoint" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("gptq", {"checkpoint_format": "marlin"}),
        ("awq", {"version": "gemv_fast"}),
        ("awq", {"bits": 3}),
        ("compressed-tensors", {"format": "marlin-24"}),
        ("compressed-tensors", {"format": "mixed-precision", "config_groups": {"a": {"format": ["dense"]}}}),
        ("compressed-tensors", {"format": "mixed-precision", "config_groups": {"a": {"format": "mxfp7-pack-quantized"}}}),
        ("compressed-tensors", {"format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}),
        ("compressed-tensors", {"transform_config": {"config_groups": {"R4": {"apply": [{"location": "input"}]}}}}),
        ("compressed-tensors", {"transform_config": {"config_groups": {"R3": {"apply": [{"location": "k_cache"}]}}}}),
        ("mlx", {"mode": "affine2"}),
        ("mlx", {"mode": 4}),
    ],
)
def test_a_variant_that_is_not_read_is_refused(method: str, more: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="not supported, only"):
        decode({}, {"quant_method": method, **more})


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("gptq", "bits", "four"),
        ("gptq", "checkpoint_format", 2),
        ("fp8", "weight_block_size", [128]),
        ("fp8", "weight_block_size", [0, 128]),
        ("awq", "version", 1),
        ("compressed-tensors", "config_groups", []),
        ("compressed-tensors", "format", ["dense"]),
        ("compressed-tensors", "sparsity_config", 1),
    ],
)
def test_a_configuration_that_makes_no_sense(method: str, key: str, value: Any) -> None:
    assert f"{key} of the quantization_config is {value!r}, expected" in refusal({}, {"quant_method": method, key: value})


UNUSED = ("input_scale", "input_scale_ub", "k_scale", "weight_format", "pre_quant_scale", "act_pre_scale")
COMPANIONS = [
    (name, key) for name in NAMES if len(expected(name)) == 1 for key in opened(name)[0] if not key.endswith(UNUSED)
]


@pytest.mark.parametrize(("name", "key"), COMPANIONS)
def test_without_a_companion_there_is_no_weight(name: str, key: str) -> None:
    given, config = opened(name)
    del given[key]
    (weight,) = expected(name)
    # Order and zero points that only the tensors tell of.
    if (key == "m.g_idx" and "act-order" not in name) or (
        key == "m._weight_zero_point" and name not in ("torchao-int4", "torchao-int4-awq")
    ):
        assert read(decode(given, config)[weight], 0, 4).any()
    elif key.endswith(("bias", "norm.weight", "head.weight")):
        assert weight in decode(given, config)
    else:
        try:
            left = decode(given, config)
        except ModelError as error:
            assert re.search(r"do not have the layout of .*: (m|x)\b", error.message)
        else:  # what goes by the name of a weight is gone or none: that is for the architecture to tell
            assert not isinstance(left.get(weight), Decoded)


@pytest.mark.parametrize(("name", "key"), COMPANIONS)
def test_a_companion_of_another_size_is_an_error_or_makes_another_weight(name: str, key: str) -> None:
    given, config = opened(name)
    tensor, (weight,) = given[key], expected(name)
    if len(tensor.shape) < 1 or tensor.shape[0] < 2 or key.endswith(("bias", "norm.weight", "head.weight")):
        return
    given[key] = replace(tensor, shape=(tensor.shape[0] - 1, *tensor.shape[1:]))
    try:
        found = decode(given, config)[weight]
    except ModelError as error:
        assert re.search(r"do not have the layout of .*: (m|x)\b", error.message)
    else:
        assert found.shape != expected(name)[weight].shape
        read(found, 0, found.rows)


@pytest.mark.parametrize("name", NAMES)
def test_companions_of_any_shape_and_type_end_in_an_error_or_in_numbers(name: str) -> None:
    given, config = opened(name)
    (weight, *_) = expected(name)
    outcomes = set()
    for key, tensor in given.items():
        lengths = [{0, 1, 2, 3, 8, 32, size // 2, size * 2, size * 4, 1 << 40} for size in tensor.shape]
        shapes = [
            (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
            for axis, sizes in enumerate(lengths)
            for length in sorted(sizes)
        ]
        shapes += [
            (),
            (0,),
            (1,),
            (1, 1, 1),
            (tensor.size,),
            (1, tensor.size),
            (tensor.size, 1),
            (*tensor.shape, 1),
            (1, *tensor.shape),
        ]
        for shape in shapes:
            for kind in (tensor.type, ELEMENT_TYPES["U8"], ELEMENT_TYPES["I32"], ELEMENT_TYPES["F16"]):
                assert isinstance(tensor, StoredTensor)
                changed = stored_tensor(key, shape, kind, tensor.file, tensor.offset)
                try:
                    found = decode({**given, key: changed}, config).get(weight)
                    if isinstance(found, Decoded) and found.size < 1 << 20:
                        read(found, 0, min(found.rows, 3))
                    outcomes.add("numbers")
                except QuantcliError:
                    outcomes.add("error")
    assert outcomes == {"numbers", "error"} or name == "fp8-plain"


@pytest.mark.parametrize("name", NAMES)
def test_companions_of_any_type_end_in_an_error_or_in_numbers(name: str) -> None:
    given, config = opened(name)
    for key, tensor in given.items():
        for kind in ELEMENT_TYPES.values():
            if tensor.row_length % kind.block_length == 0:
                assert isinstance(tensor, StoredTensor)
                changed = stored_tensor(key, tensor.shape, kind, tensor.file, 0)
                try:
                    for found in decode({**given, key: changed}, config).values():
                        if isinstance(found, Decoded):
                            read(found, 0, 1)
                except QuantcliError as error:
                    assert "\n" not in error.message


def test_all_modules_that_do_not_fit_are_listed() -> None:
    given, config = opened("gptq-4")
    more = {
        f"layer.{number}.{key}": replace(given[f"m.{key}"], name=f"layer.{number}.{key}")
        for number in range(7)
        for key in ("qweight", "scales")
    }
    message = refusal(given | more, config)
    assert "layer.0: layer.0.qzeros is missing; layer.1: " in message
    assert message.endswith(" and 2 more")


def test_bits_that_the_configuration_denies() -> None:
    given, config = opened("gptq-4")
    assert config is not None
    assert "m: 4 bits, where the quantization_config says 8" in refusal(given, {**config, "bits": 8})
    decode(given, {**config, "bits": 8, "dynamic": {"m": {"bits": 4}}})


def test_groups_that_do_not_exist(tmp_path: Path) -> None:
    given, config = opened("gptq-4-act-order")
    beyond = replace(given["m.g_idx"], offset=given["m.scales"].offset)
    weight = decode({**given, "m.g_idx": beyond}, config)["m.weight"]
    with pytest.raises(ModelError, match=r"'m.g_idx' names groups .* but there are 8"):
        weight.load()


def test_scaled_weights_of_a_checkpoint_that_says_nothing() -> None:
    given, _ = opened("fp8-block")
    assert "m.weight: it has scales, but config.json has no quantization_config" in refusal(given, None)


def test_a_weight_that_is_there_twice() -> None:
    given, config = opened("gptq-4")
    twice = {**given, "m.weight": replace(given["m.bias"], name="m.weight")}
    assert "m: there is m.weight as well" in refusal(twice, config)


def test_a_layer_that_is_not_quantized_is_left_alone() -> None:
    for name in NAMES:
        given, config = opened(name)
        plain = given | {"n.weight": replace(given[next(iter(given))], name="n.weight", type=TYPES["BF16"], shape=(1, 1))}
        assert decode(plain, config)["n.weight"] is plain["n.weight"]


# --- where a checkpoint says so -------------------------------------------------------------------------------------------


def settings(place: Path, config: dict[str, Any], **files: Any) -> Any:
    for name, document in files.items():
        (place / f"{name}.json").write_text(json.dumps(document))
    return quantization_config(Checkpoint(place, place, config, {}))


def test_settings_in_the_configuration_or_in_that_of_the_language_model(tmp_path: Path) -> None:
    awq = {"quant_method": "awq"}
    assert settings(tmp_path, {}) is None
    assert settings(tmp_path, {"quantization_config": awq}) == awq
    assert settings(tmp_path, {"compression_config": awq}) == awq
    assert settings(tmp_path, {"text_config": {"quantization_config": awq}}) == awq
    assert settings(tmp_path, {"quantization_config": {"load_in_4bit": True}})["quant_method"] == "bitsandbytes"


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    assert settings(tmp_path, {}, quantize_config={"bits": 4}) == {"quant_method": "gptq", "bits": 4}
    (tmp_path / "quantize_config.json").unlink()
    assert settings(tmp_path, {}, quant_config={"w_bit": 4}) == {"quant_method": "awq", "w_bit": 4}
    (tmp_path / "quant_config.json").unlink()
    modelopt = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    assert settings(tmp_path, {}, hf_quant_config=modelopt) == {"quant_method": "modelopt", "quant_algo": "FP8"}


@pytest.mark.parametrize("wrong", ["fp8", ["fp8"], {"bits": 4}, {"quant_method": 4}])
def test_settings_that_name_no_method(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantization_config"):
        settings(tmp_path, {"quantization_config": wrong})


# --- bitsandbytes' JSON ---------------------------------------------------------------------------------------------------


def with_state(place: Path, name: str, text: bytes) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A fixture with another text in place of the state of its weight."""
    given, config = opened(name)
    key = next(key for key in given if "quant_state" in key)
    path = place / "state.bin"
    path.write_bytes(text)
    given[key] = stored_tensor(key, (len(text),), ELEMENT_TYPES["U8"], InputFile(path), 0)
    return given, config


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 5000, "is not JSON"),
        (b"[]", "no shape and blocksize"),
        (b'{"blocksize": 64}', "no shape and blocksize"),
        (b'{"shape": [300, 64]}', "no shape and blocksize"),
        (b'{"shape": [300, 64], "blocksize": 0}', "no shape and blocksize"),
        (b'{"shape": [300, -64], "blocksize": 64}', "no shape and blocksize"),
        (b'{"shape": [3e2, 64], "blocksize": 64}', "no shape and blocksize"),
        (b'{"shape": [30, 64], "blocksize": 64}', "bytes of codes, expected 960"),
        (b'{"shape": [300, 64], "blocksize": 32}', "300 scales, expected 600"),
        (b'{"shape": [300, 64], "blocksize": 64}', "nested scales"),
        (b'{"shape": [300, 64], "blocksize": 64, "nested_blocksize": 0, "nested_offset": 0.5}', "nested scales"),
        (b'{"shape": [300, 64], "blocksize": 64, "nested_blocksize": 64, "nested_offset": 0.5}', "nested scales"),
        (b'{"shape": [300, 64], "blocksize": 64, "nested_blocksize": 256, "nested_offset": "x"}', "nested scales"),
        (b" " * 70000, "70000 bytes of JSON, at most 65536"),
    ],
)
def test_a_state_that_makes_no_sense(text: bytes, what: str, tmp_path: Path) -> None:
    assert what in refusal(*with_state(tmp_path, "bnb-nf4-nested", text))


def test_blocks_larger_than_the_weight(tmp_path: Path) -> None:
    given, config = with_state(tmp_path, "bnb-nf4", b'{"shape": [24, 96], "blocksize": ' + b"9" * 30 + b"}")
    given["m.weight.absmax"] = replace(given["m.weight.absmax"], shape=(1,))
    weight = decode(given, config)["m.weight"].load()
    ordinary = decode(*opened("bnb-nf4"))["m.weight"].load()
    np.testing.assert_array_equal(weight[0, :64], ordinary[0, :64])
    assert np.isfinite(weight).all()
