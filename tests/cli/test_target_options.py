"""`quantize MODEL --target-size`, `--target-bpw`, `--target-ram`: the options, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.cli.target import EFFORTS
from quantcli.formats.gguf.reader import open_gguf
from quantcli.quality import sensitivity_file
from quantcli.quality.calibration_text import CALIBRATION
from quantcli.quality.measure import NORMAL, SAMPLINGS

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
FEW = ("--tokens", "2048", "--effort", "low")


@pytest.fixture
def quantize(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sensitivity_file, "cache_directory", lambda: tmp_path / "cache" / "kernels")
    return lambda *words: run_command(capsys, *words)


def test_the_efforts_are_those_of_measuring():
    assert tuple(SAMPLINGS) == EFFORTS
    assert NORMAL in EFFORTS


def test_one_command(quantize, tmp_path):
    status, said, errors = quantize(STORYTELLER, "--target-bpw", "4.25", "--quality", "good", *FEW)
    assert status == 0
    assert said.startswith("storyteller-4.25bpw.gguf: Q3_K_M, ")
    assert "measuring 22 tensors, 1 type each, on 512 tokens: as much as 6,784 tokens through the model" in errors
    assert "4.25 bits per weight: 29 tensors allocated" in errors
    with open_gguf(tmp_path / "storyteller-4.25bpw.gguf") as file:
        assert file.get("quantize.calibration.dataset") == CALIBRATION
        assert file.get("general.file_type") == 12
        assert len({tensor.type.name for tensor in file.tensors.values()}) > 4


def test_saved_types_give_the_same_file(quantize, tmp_path):
    words = ("--target-size", "2.2MB", *FEW, "-o", "one.gguf", "--save-types", "types.txt")
    assert quantize(STORYTELLER, *words)[0] == 0
    assert quantize(STORYTELLER, "--type", "Q4_K_S", "--tensor-type-file", "types.txt", "-o", "two.gguf")[0] == 0
    one, two = (tmp_path / name for name in ("one.gguf", "two.gguf"))
    with open_gguf(one) as first, open_gguf(two) as second:
        assert all(
            tensor.type is second.tensors[name].type and (first.map(tensor) == second.map(second.tensors[name])).all()
            for name, tensor in first.tensors.items()
        )
    assert len((tmp_path / "types.txt").read_text().splitlines()) == 29
    status, _, errors = quantize(STORYTELLER, *words, "--type", "Q4_K_M")
    assert (status, errors) == (1, "error: types.txt: the file exists\nhint: --overwrite replaces it")


def test_a_dry_run_shows_the_plan_after_measuring(quantize, tmp_path):
    status, said, _ = quantize(STORYTELLER, "--target-ram", "15.5MB", "--ctx", "128", *FEW, "--dry-run", "--json")
    assert status == 0
    document = json.loads(said)
    assert document["output"] is None
    reasons = [tensor["reason"] for tensor in document["tensors"]]
    assert sum(reason.startswith("allocated: predicted divergence") for reason in reasons) == 29
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-size", "2MB", "--target-bpw", "4"), "--target-size and --target-bpw exclude each other"),
        (("--target-bpw", "4", "--ctx", "128"), "--ctx needs --target-ram"),
        (("--type", "Q4_K", "--effort", "low"), "--effort needs --target-size, --target-bpw or --target-ram"),
        (("--type", "Q4_K", "--save-types", "x"), "--save-types needs --target-size, --target-bpw or --target-ram"),
        (("--target-size", "much"), "'much' is not a size"),
        (("--target-bpw", "4", "--imatrix", "auto"), "a target and --imatrix auto exclude each other"),
        (("--target-bpw", "4", "--remote"), "a target and --remote exclude each other"),
        (("--target-bpw", "4", "--type", "Q4_K_M,Q8_0"), "a target is for one file, not for 2 types"),
        (("--type", "Q4_K_M", "--tokens", "2048"), "--tokens needs --quality good or best"),
        ((), "no --type given"),
    ],
)
def test_contradictions_are_refused(quantize, words, message):
    status, said, errors = quantize(STORYTELLER, *words)
    assert (status, said) == (2, "")
    assert errors.startswith(f"error: {message}")
