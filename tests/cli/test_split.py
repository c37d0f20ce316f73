"""`quantize split` and `quantize merge`: options, documents, and what they say when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from quantcli.cli.commands import inspect, merge, split
from quantcli.core.errors import UsageError


def run(command: click.Command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def document(command: click.Command, *arguments: object) -> Any:
    return json.loads(run(command, *arguments, "--json"))


@pytest.fixture
def model(golden: Path) -> Path:
    return golden / "gguf_files" / "every-value.gguf"


def test_splitting_and_merging(model: Path, golden: Path, tmp_path: Path) -> None:
    said = document(split.command, model, "--split-max-tensors", 2, "-o", tmp_path / "m.gguf")
    assert set(said) == {"dry_run", "parts", "seconds"}
    paths = [Path(shard["path"]) for shard in said["parts"]]
    assert paths == sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert [shard["tensors"] for shard in said["parts"]] == [2, 2, 1]
    assert [shard["bytes"] for shard in said["parts"]] == [path.stat().st_size for path in paths]
    merged = document(merge.command, paths[0], "-o", tmp_path / "merged.gguf")
    size = (tmp_path / "merged.gguf").stat().st_size
    assert {key: merged[key] for key in ("output", "tensors", "output_bytes")} == {
        "output": str(tmp_path / "merged.gguf"),
        "tensors": 5,
        "output_bytes": size,
    }
    assert (tmp_path / "merged.gguf").read_bytes() == (golden / "gguf_files" / "parts" / "merged.gguf").read_bytes()


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    said = document(split.command, model, "--split-max-tensors", 2, "-o", tmp_path, "--dry-run")
    assert said["dry_run"] is True
    assert [Path(shard["path"]).parent for shard in said["parts"]] == [tmp_path] * 3
    assert Path(said["parts"][0]["path"]).name == "every-value-00001-of-00003.gguf"
    assert not list(tmp_path.iterdir())
    assert "nothing was written" in run(split.command, model, "-o", tmp_path, "--dry-run")


def test_the_defaults_are_those_of_the_reference(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(model.read_bytes())
    run(split.command, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-00001-of-00001.gguf", "model.gguf"]


def test_people_are_told_what_was_written(model: Path, tmp_path: Path) -> None:
    said = run(split.command, model, "--split-max-tensors", 2, "-o", tmp_path)
    rows = [line.split() for line in said.splitlines()]
    assert [str(tmp_path / "every-value-00002-of-00003.gguf"), "2", "1.09", "KiB"] in rows
    said = run(merge.command, tmp_path / "every-value-00001-of-00003.gguf", "-o", tmp_path / "m.gguf")
    assert said == f"{tmp_path / 'm.gguf'}: 5 tensors from 3 shards, 2.72 KiB\n"


def test_the_two_limits_exclude_each_other(model: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        run(split.command, model, "--split-max-size", "1M", "--split-max-tensors", "3")


def test_inspecting_the_first_part_shows_the_model(model: Path, golden: Path) -> None:
    first = golden / "gguf_files" / "parts" / "every-value-00001-of-00003.gguf"
    whole, said = document(inspect.command, model), document(inspect.command, first)
    assert [Path(path).name for path in said["parts"]] == [f"every-value-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [tensor["part"] for tensor in said["tensors"]] == [1, 1, 2, 2, 3]
    assert "parts" not in whole
    for key in ("parameters", "bits_per_weight"):
        assert said[key] == whole[key]
    assert [tensor["name"] for tensor in said["tensors"]] == [tensor["name"] for tensor in whole["tensors"]]
    assert "3 files" in run(inspect.command, first)
