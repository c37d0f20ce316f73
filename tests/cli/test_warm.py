"""`quantize warm`: what it compiles, later commands need not compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.cli.example_model import plans, use_kernels
from quantcli.conversion.recipes import RECIPES
from quantcli.kernels.compilation import trace

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples/storyteller"


def quantize(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantcli", *map(str, words)], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "QUANTCLI_CACHE_DIR": str(cache)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_after_it_quantize_and_run_compile_nothing(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", tmp_path / "model.gguf"
    done = json.loads(quantize(cache, "warm", "Q8_0", "--json").stdout)
    files = sorted(Path(done["directory"]).iterdir())
    assert Path(done["directory"]).parent == cache
    assert done["compiled"] == done["kernels"] == len(files)
    assert done["bytes"] == sum(file.stat().st_size for file in files)
    shown = quantize(cache, "warm", "q8_0")
    assert shown.stderr == ""
    assert shown.stdout.startswith(f"{done['directory']}: {len(files)} kernels, ")
    said = quantize(cache, STORYTELLER, "--type", "Q8_0", "-o", model).stderr
    for prompt in ("Once", "Once upon", "Once upon a time, there was a little girl"):
        said += quantize(cache, "run", model, "--prompt", prompt, "-n", 3).stderr
    assert said == ""
    assert sorted(Path(done["directory"]).iterdir()) == files


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_kernels_to_compile(name: str) -> None:
    kernels = {call.kernel.py_func.__name__ for call in trace(lambda: use_kernels([name], importance=True))}
    assert {"multiply_few", "multiply_many", "attend", "attend_many", "rms_norm", "rotate", "add", "gate"} <= kernels


def test_a_tensor_type_that_is_no_recipe_is_that_of_all_matrices() -> None:
    made = plans("nvfp4", importance=False)
    assert {plan[-1].source_type.name for plan in made} == {"BF16", "F16", "F32"}
    for plan in made:
        assert {planned.type.name for planned in plan if len(planned.shape) == 2} == {"NVFP4"}


def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, said = run_command(capsys, "warm", "Q4_K_N")
    assert status == 2
    assert "unknown type 'Q4_K_N'" in said
    status, _, said = run_command(capsys, "warm", "Q4_0", "--all")
    assert status == 2
    assert "--all includes every type" in said
    monkeypatch.setenv("QUANTCLI_CACHE_DIR", "/dev/null")
    status, _, said = run_command(capsys, "warm")
    assert status == 1
    assert "cannot be written" in said
