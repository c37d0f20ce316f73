"""`quantize convert`: the options that change the model, and those that split the output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quantcli.cli.commands.convert import command
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import f32, u32


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def model(golden: Path) -> Path:
    return golden / "stories260K"


def test_metadata_and_layers(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.gguf"
    given = ("general.name=str:First", "new.ratio=float:0.5", "general.name=str:a=b:c")
    run(model, "--type", "F16", "-o", output, "--prune-layers", "1, 2", *(f"--override-kv={text}" for text in given))
    with open_gguf(output) as file:
        assert list(file.metadata)[-3:] == ["new.ratio", "general.name", "llama.block_count"]
        assert file.metadata["new.ratio"] == f32(0.5)
        assert file.get("general.name") == "a=b:c"
        assert file.metadata["llama.block_count"] == u32(3)


def test_shards(model: Path, tmp_path: Path) -> None:
    arguments = (model, "--type", "F16", "--split-max-size", "200K")
    document: Any = json.loads(run(*arguments, "-o", tmp_path / "m.gguf", "--json"))
    paths = [Path(part["path"]) for part in document["parts"]]
    assert len(paths) > 1
    assert document["output"] == str(paths[0])
    assert paths == sorted(tmp_path.iterdir())
    said = run(*arguments, "-o", tmp_path / "n.gguf")
    assert said.startswith(f"{tmp_path / 'n-00001-of-'}{len(paths):05}.gguf, the first of {len(paths)} shards: F16, ")


@pytest.mark.parametrize(
    "option",
    [
        "--override-kv=general.name",
        "--override-kv=a=int:x",
        "--override-kv=split.count=int:3",
        "--prune-layers=a",
        "--split-max-size=2X",
    ],
)
def test_malformed_options_are_usage_errors(model: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError):
        run(model, "--type", "F16", "-o", tmp_path / "m.gguf", option)
    assert not list(tmp_path.iterdir())


def test_fallback_types_are_said_with_what_they_cost(model: Path, tmp_path: Path) -> None:
    words = [str(word) for word in (model, "--type", "Q4_K_M", "-o", tmp_path / "m.gguf", "--json")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    tensors = json.loads(result.stdout)["tensors"]
    rows = {64: 0, 172: 0}
    for tensor in tensors:
        if len(tensor["shape"]) == 2:
            rows[tensor["shape"][0]] += 1
    said = [line for line in result.stderr.splitlines() if "instead of" in line]
    assert sum(int(line.split()[1]) for line in said) == sum(rows.values())
    kinds = [line.removeprefix("Q4_K_M: ").split(" ", 1)[1].rsplit(", ", 1)[0] for line in said]
    assert "tensors have rows of 64, not a multiple of 256: Q5_0 instead of Q4_K" in kinds
    assert all(re.search(r", \+[\d.]+ (bytes|KiB)$", line) for line in said)
    result = CliRunner().invoke(command, [*words[:2], "Q8_0", *words[3:], "--overwrite", "--pure"], catch_exceptions=False)
    assert "instead of" in result.stderr
    result = CliRunner().invoke(command, [*words[:2], "F16", *words[3:], "--overwrite"], catch_exceptions=False)
    assert result.stderr == ""
