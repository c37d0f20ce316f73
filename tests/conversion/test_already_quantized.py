"""Conversions of models whose weights somebody has quantized before: what lies on a grid stays as it is, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from quantized_models import (
    LAYER,
    LINEAR,
    OTHER,
    TOKENIZER,
    UNTURNED,
    awq_model,
    bf16,
    from_bf16,
    gptq_model,
    normal,
    on_grid,
    packed_model,
    write_model,
)
from tiny_checkpoint import write_checkpoint

from quantcli.cli.commands.convert import command
from quantcli.conversion.already_quantized import inspect_weights
from quantcli.conversion.convert import convert
from quantcli.conversion.plan import check_plan, make_plan, quantized_twice
from quantcli.conversion.recipes import find_recipe
from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import dequantize, quantize
from quantcli.tensors.tensor import Tensor

NAMES = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"} | {
    f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")
}


def converted(model: Path, recipe: str, output: Path, **more: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The weights of the layer in the file that is written of a model, and the plan's reasons."""
    result = convert(model, recipe, output, **more)[0]
    with open_gguf(output) as file:
        weights = {part: file.tensors[f"blk.0.{part}.weight"] for part in UNTURNED}
        return (
            {part: dequantize(tensor.load(), tensor.type) for part, tensor in weights.items()},
            {tensor.name: tensor.reason for tensor in result.plan},
        )


@pytest.mark.parametrize(("recipe", "low", "high"), [("Q4_0", -7, 7), ("Q5_0", -12, 12), ("Q8_0", -90, 90)])
def test_weights_on_the_grid_are_kept_and_others_quantized_as_ever(
    recipe: str, low: int, high: int, tmp_path: Path
) -> None:
    grid = {f"{name}.weight": on_grid(shape, low, high) for name, shape in LINEAR.items()}
    beside = f"{LAYER}.mlp.up_proj.weight"
    grid[beside][-1, -1] *= 1.001
    model = write_model(tmp_path / "model", grid)
    weights, reasons = converted(model, recipe, tmp_path / "out.gguf")
    for part, name in NAMES.items():
        source = grid[f"{LAYER}.{name}.weight"]
        ordinary = dequantize(quantize(source, recipe), recipe)
        assert (ordinary != source).any()
        if part == "ffn_up":
            np.testing.assert_array_equal(weights[part], ordinary)
        else:
            np.testing.assert_array_equal(weights[part], source)
    exact = {
        name for name, reason in reasons.items() if reason.endswith(f"on a {recipe} grid and are repacked without loss")
    }
    assert exact == {f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", *UNTURNED)} - {"blk.0.ffn_up.weight"}
    dry = convert(model, recipe, tmp_path / "out.gguf", dry_run=True)[0]
    assert {tensor.name: tensor.reason for tensor in dry.plan} == reasons
    weights, _ = converted(model, recipe, tmp_path / "reference.gguf", as_reference=True)
    source = grid[f"{LAYER}.{NAMES['ffn_gate']}.weight"]
    np.testing.assert_array_equal(weights["ffn_gate"], dequantize(quantize(source, recipe), recipe))


def test_importance_changes_nothing_where_nothing_is_lost(tmp_path: Path) -> None:
    grid = {f"{name}.weight": on_grid(shape, -7, 7) for name, shape in LINEAR.items()}
    model = write_model(tmp_path / "model", grid)
    plan = convert(model, "Q4_0", tmp_path / "plan.gguf", dry_run=True)[0].plan
    entries = {tensor.name: np.linspace(0.1, 3, tensor.shape[-1], dtype=np.float32) for tensor in plan}
    weights, _ = converted(model, "Q4_0", tmp_path / "out.gguf", imatrix=Imatrix("m.gguf", (), 1, entries))
    for part, name in NAMES.items():
        np.testing.assert_array_equal(weights[part], grid[f"{LAYER}.{name}.weight"])


def test_gptq_becomes_the_same_numbers(tmp_path: Path) -> None:
    model, expected = gptq_model(tmp_path / "model")
    for recipe in ("Q4_0", "Q8_0"):
        weights, reasons = converted(model, recipe, tmp_path / f"{recipe}.gguf")
        for part, name in NAMES.items():
            np.testing.assert_array_equal(weights[part], expected[f"{LAYER}.{name}"])
        assert "; quantized in the checkpoint as GPTQ 4-bit; its weights lie on a" in reasons["blk.0.ffn_up.weight"]
        assert "checkpoint" not in reasons["output.weight"]


@pytest.mark.parametrize(
    ("make", "recipe", "origin"),
    [(awq_model, "Q5_0", "AWQ 4-bit"), (awq_model, "Q8_0", "AWQ 4-bit"), (packed_model, "Q4_0", "compressed-tensors int4")],
)
def test_other_methods_become_the_same_numbers(make: Any, recipe: str, origin: str, tmp_path: Path) -> None:
    """Those with zero points need a type with room for 31 levels."""
    model, expected = make(tmp_path / "model")
    weights, reasons = converted(model, recipe, tmp_path / "out.gguf")
    for part, name in NAMES.items():
        np.testing.assert_array_equal(weights[part], expected[f"{LAYER}.{name}"])
    reason = f"; quantized in the checkpoint as {origin}; its weights lie on a {recipe} grid"
    assert reason in reasons["blk.0.ffn_up.weight"]


def trained_model(place: Path, group: int | None = None) -> tuple[Path, dict[str, np.ndarray]]:
    """A model as quantization-aware training leaves it, all in BF16: linear layers on a grid of Q4_0, rounded, with a scale
    for `group` weights or a row, but one of which a single weight is not; embeddings that were not trained so. And the bits
    of all weights."""
    tensors = {f"{name}.weight": bf16(on_grid(shape, -8, 7, group or shape[1])) for name, shape in LINEAR.items()}
    tensors[f"{LAYER}.mlp.up_proj.weight"][-1, -1] += 40
    tensors |= {name: bf16(normal(*shape)) for name, shape in OTHER.items()}
    return write_model(place, tensors), tensors


@pytest.mark.parametrize("group", [32, None])
def test_a_model_trained_for_q4_0_keeps_every_bit(group: int | None, tmp_path: Path) -> None:
    model, source = trained_model(tmp_path / "model", group)
    stdout, stderr = run(model, "--type", "Q4_0", "--dry-run", "--json")
    output = tmp_path / "out.gguf"
    written, noted = run(model, "--type", "Q4_0", "-o", output, "--json")
    for text in (stderr, noted):
        said = "Q4_0: the weights of 6 tensors already lie on the quantization grid of Q4_0 and are repacked without loss"
        assert said in text.splitlines()
    reasons = {tensor["name"]: tensor["reason"] for tensor in json.loads(stdout)["tensors"]}
    assert reasons == {tensor["name"]: tensor["reason"] for tensor in json.loads(written)["tensors"]}
    kept = {name for name, reason in reasons.items() if "grid" in reason}
    assert kept == {f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", *UNTURNED)} - {"blk.0.ffn_up.weight"}
    assert reasons["blk.0.attn_v.weight"] == (
        "the base type of Q4_0; its weights lie on a Q4_0 grid, to the precision of BF16, and are repacked without loss"
    )
    assert "to the precision of BF16, and are repacked" in run(model, "--type", "Q4_0", "--dry-run")[0]
    with open_gguf(output) as file:
        for part, name in {**NAMES, "": ""}.items():
            tensor = file.tensors[f"blk.0.{part}.weight" if part else "token_embd.weight"]
            bits = source[f"{LAYER}.{name}.weight" if part else "model.embed_tokens.weight"]
            assert tensor.type.name == "Q4_0"
            ordinary = quantize(from_bf16(bits), "Q4_0")
            if part in ("ffn_up", ""):
                np.testing.assert_array_equal(tensor.load(), ordinary)
            else:
                np.testing.assert_array_equal(bf16(dequantize(tensor.load(), "Q4_0")), bits)
                assert (bf16(dequantize(ordinary, "Q4_0")) != bits).any()


def test_a_trained_model_in_a_larger_type_keeps_every_bit_too(tmp_path: Path) -> None:
    model, source = trained_model(tmp_path / "model")
    for recipe in ("Q5_0", "Q8_0"):
        weights, _ = converted(model, recipe, tmp_path / f"{recipe}.gguf")
        np.testing.assert_array_equal(bf16(weights["attn_output"]), source[f"{LAYER}.self_attn.o_proj.weight"])


def run(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_a_second_quantization_is_done_and_noted(tmp_path: Path) -> None:
    model, _ = gptq_model(tmp_path / "model")
    stdout, stderr = run(model, "--type", "Q4_1", "-o", tmp_path / "out.gguf", "--json")
    noted = "Q4_1: 7 tensors stored as GPTQ 4-bit in the checkpoint: requantized, with a loss of quality"
    assert noted in stderr.splitlines()
    reasons = {tensor["name"]: tensor["reason"] for tensor in json.loads(stdout)["tensors"]}
    assert reasons["blk.0.attn_q.weight"] == "the base type of Q4_1; quantized in the checkpoint as GPTQ 4-bit"
    _, stderr = run(model, "--type", "Q8_0", "-o", tmp_path / "out8.gguf")
    assert "second time" not in stderr


@pytest.fixture
def gpt_oss(golden: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A GPT-OSS as it was published, and what the reference's converter makes of its tensors."""
    case = json.loads((golden / "prequantized/mxfp4.json").read_text())
    model = write_checkpoint(tmp_path, case["checkpoint"])
    shutil.copy(TOKENIZER, model)
    return model, {name: (kind, digest) for name, kind, _, digest in case["f32"]["tensors"]}


def test_mxfp4_is_the_reference_s_bytes(gpt_oss: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    model, expected = gpt_oss
    _, stderr = run(model, "--type", "MXFP4_MOE", "-o", tmp_path / "out.gguf")
    assert "second time" not in stderr
    with open_gguf(tmp_path / "out.gguf") as file:
        found = {
            name: (tensor.type.name, hashlib.sha256(file.map(tensor).tobytes()).hexdigest())
            for name, tensor in file.tensors.items()
            if tensor.type.name == "MXFP4"
        }
    assert len(found) == 6
    assert found.items() <= expected.items()


def test_mxfp4_becomes_another_type_without_leave(gpt_oss: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    plan = convert(gpt_oss[0], "F16", tmp_path / "out.gguf", dry_run=True)[0].plan
    check_plan(plan)
    assert not quantized_twice(plan)
    plan = convert(gpt_oss[0], "Q5_1", tmp_path / "out.gguf", dry_run=True)[0].plan
    check_plan(plan)
    assert {tensor.name for tensor in quantized_twice(plan)} == {
        f"blk.{layer}.ffn_{part}_exps.weight" for layer in (0, 1) for part in ("gate", "up", "down")
    }


@dataclass(frozen=True)
class Counted(Tensor):
    """Rows of float32 that tell how many were read."""

    values: np.ndarray = field(repr=False)
    rows_read: list[int] = field(default_factory=list)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        self.rows_read.append(stop - start)
        out.view(np.float32)[...] = self.values[start:stop]


class Breaking(Counted):
    """Of which only single rows and those at the beginning can be read."""

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        if stop - start > 1 and stop > 20_000:
            raise FormatError("model.safetensors", "broken")
        super().read(start, stop, out)


def looked_at(values: np.ndarray, *, read: bool = True) -> tuple[bool, int]:
    tensor = Counted("blk.0.ffn_up.weight", values.shape, TYPES["F32"], values)
    plan = make_plan([tensor], {"general.architecture": string("llama")}, find_recipe("Q4_0"))
    (planned,) = inspect_weights(plan, {tensor.name: tensor}, 2, read=read)
    return planned.exact, sum(tensor.rows_read)


def test_a_file_that_breaks_ends_it_at_once() -> None:
    grid = on_grid((100_000, 64), -7, 7)
    tensor = Breaking("blk.0.ffn_up.weight", grid.shape, TYPES["F32"], grid)
    plan = make_plan([tensor], {"general.architecture": string("llama")}, find_recipe("Q4_0"))
    with pytest.raises(FormatError, match="broken"):
        inspect_weights(plan, {tensor.name: tensor}, 2)
    assert sum(tensor.rows_read) < 60_000


def test_nothing_is_read_where_that_costs_too_much() -> None:
    assert looked_at(on_grid((64, 64), -7, 7), read=False) == (False, 0)


def test_one_row_of_ordinary_weights_is_read() -> None:
    assert looked_at(normal(1000, 64)) == (False, 1)


def test_a_few_rows_on_the_grid_do_not_settle_it() -> None:
    grid = on_grid((1000, 64), -7, 7)
    assert looked_at(grid)[0]
    grid[333, 5] += np.float32(1e-6)
    exact, rows_read = looked_at(grid)
    assert not exact
    assert rows_read > 100
