"""Weights that are not finite, or that their type cannot hold, are refused with tensor and index, and no file is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.conversion.convert import convert
from quantcli.conversion.plan import PlanOptions, parse_override
from quantcli.core.block_types import TYPES
from quantcli.core.errors import ValueRangeError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import quantize
from quantcli.tensors.tensor import TensorInfo

MATRIX, NORM = "blk.0.ffn_down.weight", "blk.0.attn_norm.weight"
ROWS, LENGTH = 4, 512


def write_model(path: Path, changed: dict[str, tuple[tuple[int, ...], float]], types: dict[str, str] | None = None) -> Path:
    """A GGUF file of two tensors with some weights changed: `{tensor: (index, value)}`; F32, or what `types` says."""
    random = np.random.default_rng(3)
    arrays: dict[str, NDArray[np.float32]] = {
        MATRIX: random.standard_normal((ROWS, LENGTH)).astype(np.float32),
        NORM: random.standard_normal(LENGTH).astype(np.float32),
    }
    for name, (index, value) in changed.items():
        arrays[name][index] = value
    kinds = {name: TYPES[(types or {}).get(name, "F32")] for name in arrays}
    infos = [TensorInfo(name, array.shape, kinds[name]) for name, array in arrays.items()]
    with GGUFWriter(path, {"general.architecture": string("llama")}, infos) as writer:
        for number, (name, array) in enumerate(arrays.items()):
            writer.write(number, 0, quantize(array.reshape(-1, LENGTH), kinds[name]).reshape(-1))
    return path


def refusal(source: Path, recipe: str, **more: object) -> str:
    """The error of a conversion that must fail, and must leave nothing."""
    output = source.with_name("out.gguf")
    with pytest.raises(ValueRangeError) as caught:
        convert(source, recipe, output, **more)
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    return f"{caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("recipe", ["F32", "F16", "Q4_K_M"])
def test_norms_are_checked_though_they_are_copied(value: float, recipe: str, tmp_path: Path) -> None:
    said = refusal(write_model(tmp_path / "in.gguf", {NORM: ((3,), value)}), recipe)
    assert f"tensor '{NORM}': weight [3] is {value}" in said


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_matrices_are_checked_though_they_are_copied(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {MATRIX: ((2, 7), np.nan)}, {MATRIX: kind})
    assert f"tensor '{MATRIX}': weight [2, 7] is nan" in refusal(source, kind)


@pytest.mark.parametrize(("recipe", "kind"), [("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q6_K", "Q6_K"), ("Q4_1", "Q4_1")])
def test_blocks_are_checked_though_they_are_copied(recipe: str, kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {MATRIX: ((2, 300), 1e12)}, {MATRIX: kind})
    first = 300 // TYPES[kind].block_length * TYPES[kind].block_length
    said = refusal(source, recipe)
    assert f"the {kind} block of the weights [2, {first}] to [2, {first + TYPES[kind].block_length - 1}]" in said


def test_a_weight_beyond_f16_is_named_with_a_type_that_holds_it(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {MATRIX: ((3, 5), 1e6)})
    said = refusal(source, "F16")
    assert "weight [3, 5] is 1e+06; F16 cannot hold that" in said
    assert f"BF16 holds it: --tensor-type '{MATRIX}=BF16'" in said
    options = PlanOptions(overrides=[parse_override(f"{MATRIX}=BF16")])
    assert convert(source, "F16", tmp_path / "out.gguf", options=options)[0].output is not None


def test_a_weight_that_bf16_rounds_to_infinity_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {MATRIX: ((0, 1), 3.4e38)})
    assert "F32 holds it" in refusal(source, "BF16")


RECIPES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ3_S", "IQ3_XXS", "IQ4_NL",
    "IQ4_XS", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0",
]  # fmt: skip


@pytest.mark.parametrize("value", [1e10, -1e19, 1e30, 3e38])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_weight_beyond_a_block_is_refused(recipe: str, value: float, tmp_path: Path) -> None:
    """From 1e19 on squares overflow in the searches of scales: some types then give zeros, and no infinity."""
    said = refusal(write_model(tmp_path / "in.gguf", {MATRIX: ((1, 259), value)}), recipe)
    assert f"tensor '{MATRIX}': weight [1, 259] is {value:.6g}; the scale of its " in said
    assert "BF16 holds it" in said


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "Q1_0"])
def test_what_a_block_holds_is_no_error(recipe: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {MATRIX: ((1, 259), 65000.0)})
    written = convert(source, recipe, tmp_path / "out.gguf")[0].output
    with open_gguf(written) as file:
        assert MATRIX in file.tensors


def test_importance_so_large_that_sums_overflow_is_named(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", {})
    imatrix = Imatrix("guide.gguf", (), 0, {MATRIX: np.full(LENGTH, 3e38, np.float32)})
    said = refusal(source, "IQ2_XXS", imatrix=imatrix)
    assert "the values of the importance matrix are too large" in said
