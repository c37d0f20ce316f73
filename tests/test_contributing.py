"""CONTRIBUTING.md's examples work as they stand there, in the number of places that it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.tables import PACKAGE_DIRECTORY
from quantcli.conversion import recipes
from quantcli.conversion.roles import recipe_text
from quantcli.core.block_types import TYPES
from quantcli.formats import prequantized
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import Plain
from quantcli.formats.prequantized.scaled import Scaled

ROOT = Path(__file__).parents[1]
RECIPE, ARCHITECTURE = re.findall(
    r"^```toml\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def test_a_recipe_is_an_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.load_recipes(f"{recipe_text()}\n{RECIPE}"))
    status, shown, _ = run_command(capsys, ROOT / "examples/storyteller", "--type", "Q4_K_V", "--dry-run")
    assert status == 0
    assert re.search(r"blk\.0\.attn_v\.weight .* Q6_K .*Q4_K_V gives the attention value projection Q6_K", shown)
    assert re.search(r"blk\.0\.attn_q\.weight .* Q4_K ", shown)


def test_an_architecture_is_a_file(tmp_path: Path) -> None:
    assert (PACKAGE_DIRECTORY / "orion.toml").read_text(encoding="utf-8") == ARCHITECTURE
    (tmp_path / "mine.toml").write_text(ARCHITECTURE.replace("OrionForCausalLM", "MineForCausalLM"), encoding="utf-8")
    case = json.loads((ROOT / "tests/golden/architectures/orion.json").read_text())
    case["checkpoint"]["config"]["architectures"] = ["MineForCausalLM"]
    with open_checkpoint(write_checkpoint(tmp_path, case["checkpoint"])) as opened:
        mine = find_architecture(opened.config, tmp_path / "mine.toml")
        found = [[tensor.name, list(tensor.shape)] for tensor in mine.tensors(opened.tensors, opened.config)]
    assert found == [[name, shape] for name, _, shape, _ in case["f32"]["tensors"]]


def take_halves(companions: Companions) -> None:
    """A method of its own: weights are stored halved."""
    for stem in companions.stems(".halves"):
        with companions.module(stem):
            stored = companions.take(f"{stem}.halves", ("F32",), 2)
            weight = Scaled(f"{stem}.weight", stored.shape, TYPES["F32"], "halves", Plain(stored, doubled))
            companions.put(f"{stem}.halves", weight)


def doubled(values: np.ndarray) -> np.ndarray:
    return values * 2


def test_a_quantization_method_is_a_function_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods: dict[str, Callable[[Companions], None]] = {**prequantized.METHODS, "halves": take_halves}
    monkeypatch.setattr(prequantized, "METHODS", methods)
    config = {"model_type": "llama", "quantization_config": {"quant_method": "halves"}}
    stored = {"m.halves": ["F32", [3, 8]], "m.bias": ["F32", [3]]}
    directory = write_checkpoint(tmp_path, {"directory": "m", "config": config, "tensors": stored})
    with open_checkpoint(directory) as opened:
        decoded = prequantized.decoded_checkpoint(opened).tensors
        assert decoded.keys() == {"m.weight", "m.bias"}
        expected = opened.tensors["m.halves"].load().view(np.float32) * 2
        np.testing.assert_array_equal(decoded["m.weight"].load().view(np.float32).ravel(), expected.ravel())
