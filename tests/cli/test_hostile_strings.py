"""Strings of files reach the terminal escaped and clipped, whichever file they are in and whatever is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from changed_file import write_changed
from command_line import run_command

from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Field, Metadata, ValueType, array, string
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e" + "x" * 5000
LONGEST = 2100
"""Characters of a line: two thousand of a message, and what an escaped character takes more."""

SIDE_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

METHODS = (HOSTILE, "gptq", "awq", "fp8", "compressed-tensors", "mlx")
FORMATS = dict.fromkeys(["format", "checkpoint_format", "bits"], HOSTILE)
CONFIGS: list[dict[str, Any]] = [
    {"torch_dtype": HOSTILE},
    {"model_type": HOSTILE, "architectures": []},
    {"rope_scaling": {"type": HOSTILE, "factor": 2}},
    {"hidden_act": HOSTILE},
    {"quantization_config": HOSTILE},
    {HOSTILE: HOSTILE},
    *({"quantization_config": FORMATS | {"quant_method": method}} for method in METHODS),
]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: Any) -> str:
        status, out, err = run_command(capsys, *words)
        assert status in (0, 1, 2)
        for line in (out + err).split("\n"):
            assert line.isprintable()
            assert len(line) <= LONGEST
        assert "this is a bug" not in err
        return out + err

    return run


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "stories260K", tmp_path / "model"))


def spoiled(value: Any) -> Iterator[Any]:
    """A JSON value with each of its strings, and each of its keys, replaced."""
    if isinstance(value, str):
        yield HOSTILE
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in spoiled(inner))
    elif isinstance(value, dict):
        for key, inner in value.items():
            rest = {name: kept for name, kept in value.items() if name != key}
            yield {**rest, HOSTILE: inner}
            yield from ({**value, key: other} for other in spoiled(inner))


@pytest.mark.parametrize("name", SIDE_FILES)
def test_strings_of_a_checkpoint_s_json_files(model: Path, check: Any, name: str) -> None:
    original = json.loads((model / name).read_text())
    found = ""
    for document in spoiled(original):
        (model / name).write_text(json.dumps(document))
        found += check(model, "--type", "F16", "--dry-run")
    assert (r"\x1b]0;owned" in found) == (name == "config.json")


@pytest.mark.parametrize("change", CONFIGS, ids=range(len(CONFIGS)))
def test_values_of_a_configuration(model: Path, check: Any, change: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    check(model, "--type", "F16", "--dry-run")


def test_names_of_tensors_and_shards(model: Path, check: Any) -> None:
    shard = (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HOSTILE: shard.name}}))
    assert "owned" in check(model, "--type", "F16", "--dry-run")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": HOSTILE[:200]}}))
    assert "owned" in check(model, "--type", "F16", "--dry-run")
    (model / "model.safetensors.index.json").unlink()
    header = json.dumps({HOSTILE: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "owned" in check(model, "--type", "F16", "--dry-run")


def test_strings_of_an_adapter(model: Path, tmp_path: Path, check: Any) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(model / "model.safetensors", adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": {"a": 1}, "init_lora_weights": "pissa"}
    for document in spoiled(config):
        (adapter / "adapter_config.json").write_text(json.dumps(document))
        assert check(model, "--lora", adapter, "--type", "F16", "--dry-run").startswith("error: ")


def every_string(metadata: Metadata) -> Iterator[dict[str, Field | None]]:
    """The changes that put the string in place of each key, each string, and the first strings of each array."""
    for key, field in metadata.items():
        yield {key: None, HOSTILE: field}
        if field.type == ValueType.STRING:
            yield {key: string(HOSTILE)}
        elif field.element == ValueType.STRING:
            yield {key: array(ValueType.STRING, [HOSTILE] * 5 + list(field.elements())[5:])}
        elif field.type != ValueType.ARRAY:
            yield {key: string(HOSTILE)}


def test_strings_of_a_gguf_file(golden: Path, tmp_path: Path, check: Any) -> None:
    source = tmp_path / "source.gguf"
    check(golden / "stories260K", "--type", "F16", "-o", source)
    with open_gguf(source) as file:
        original = file.metadata | {
            "tokenizer.chat_template": string("{{ x }}"), "general.tags": array(ValueType.STRING, ["a"]),
            "general.license": string("mit"), "tokenizer.ggml.pre": string("default"), "general.type": string("model"),
        }  # fmt: skip
    changed = tmp_path / "changed.gguf"
    for changes in every_string(original):
        write_changed(source, changed, {**original, **changes})
        check("inspect", changed)
        check("inspect", changed, "--metadata")
        check("tokenize", changed, "Once upon")
        if HOSTILE not in changes:
            check(changed, "--type", "Q8_0", "--dry-run")
            check("run", changed, "-p", "Once", "-n", "1", "--temp", "0", "--chat")


def test_names_of_a_gguf_file_s_tensors(golden: Path, tmp_path: Path, check: Any) -> None:
    source, changed = tmp_path / "source.gguf", tmp_path / "changed.gguf"
    check(golden / "stories260K", "--type", "F16", "-o", source)
    with open_gguf(source) as file:
        infos = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
        infos[3] = replace(infos[3], name=HOSTILE[:60])
        with GGUFWriter(changed, file.metadata, infos) as writer:
            for index, tensor in enumerate(file.tensors.values()):
                writer.write(index, 0, file.map(tensor))
    assert "owned" in check("inspect", changed, "--tensors")
    assert "owned" in check("convert", changed, "--type", "Q8_0", "--dry-run")
    check("run", changed, "-p", "Once", "-n", "1")
