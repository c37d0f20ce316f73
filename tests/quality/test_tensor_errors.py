"""Errors of tensors against NumPy in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantcli.conversion.convert import convert
from quantcli.conversion.source import open_source
from quantcli.core.block_types import block_type
from quantcli.core.errors import ModelError, ValueRangeError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import dequantize, quantize
from quantcli.quality.tensor_errors import compare_tensors
from quantcli.tensors.tensor import Tensor


class Held(Tensor):
    """A tensor in memory, quantized to a type."""

    data: np.ndarray

    @classmethod
    def of(cls, values, kind, name="w"):
        held = cls(name, values.shape, block_type(kind))
        object.__setattr__(held, "data", quantize(values.reshape(-1, values.shape[-1]), kind))
        return held

    def read(self, start, stop, out):
        out[:] = self.data[start:stop]

    @property
    def numbers(self):
        return dequantize(self.data, self.type).astype(np.float64)


def values(*shape):
    return (np.random.default_rng(3).standard_normal(shape) * 0.05).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kinds", [("F32", "Q4_0"), ("BF16", "Q4_K"), ("Q8_0", "Q2_K"), ("F32", "F16")])
def test_figures_are_those_of_their_definitions(kinds, threads, monkeypatch):
    monkeypatch.setattr("quantcli.conversion.execute.CHUNK_WEIGHTS", 512 * 3)
    weights = values(2, 5, 512)
    first, second = (Held.of(weights, kind) for kind in kinds)
    importance = np.random.default_rng(4).random((2, 512)).astype(np.float32)
    done = []
    imatrix = Imatrix("i", (), 0, {"w": importance})
    found = compare_tensors({"w": first}, {"w": second}, imatrix, threads=threads, advance=done.append)
    (error,) = found.errors
    a, b = first.numbers, second.numbers
    noise = (a - b) ** 2
    length = max(block_type(kind).block_length for kind in kinds)
    assert (error.types, error.weights, error.block_length) == (kinds, weights.size, length)
    assert error.rmse == pytest.approx(math.sqrt(noise.mean()))
    assert error.relative_rmse == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert error.sqnr == pytest.approx(10 * math.log10((a**2).sum() / noise.sum()))
    assert error.cosine == pytest.approx(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert error.block_rmse == pytest.approx(math.sqrt(noise.reshape(-1, length).mean(1).max()))
    per_row = np.repeat(importance.astype(np.float64), 5, axis=0)
    assert error.weighted_rmse == pytest.approx(math.sqrt(np.average(noise, weights=per_row)))
    assert sum(done) == first.nbytes
    assert len(done) == 4


def test_the_worst_is_first_and_equal_tensors_are_last():
    weights = values(4, 256)
    names = ("equal", "good", "bad")
    first = {name: Held.of(weights, "F32", name) for name in names}
    second = {name: Held.of(weights, kind, name) for name, kind in zip(names, ("F32", "Q8_0", "Q2_K"), strict=True)}
    errors = compare_tensors(first, second).errors
    assert [error.name for error in errors] == ["bad", "good", "equal"]
    assert [error.equal for error in errors] == [False, False, True]
    last = errors[-1]
    assert (last.rmse, last.relative_rmse, last.sqnr, last.cosine, last.weighted_rmse) == (0, 0, None, 1, None)


def test_zeros_have_no_ratio():
    nothing, something = Held.of(values(2, 32) * 0, "F32"), Held.of(values(2, 32), "F32")
    (error,) = compare_tensors({"w": nothing}, {"w": something}).errors
    assert (error.relative_rmse, error.sqnr, error.cosine) == (None, None, None)
    (error,) = compare_tensors({"w": something}, {"w": nothing}).errors
    assert (error.relative_rmse, error.sqnr, error.cosine) == (1, 0, None)
    assert compare_tensors({"w": nothing}, {"w": nothing}).errors[0].equal


def test_what_cannot_be_compared_is_named():
    weights = values(4, 64)
    first = {name: Held.of(weights, "F32", name) for name in ("both", "old", "shape", "leading")}
    second = {name: Held.of(weights, "F32", name) for name in ("both", "new")}
    second["shape"] = Held.of(weights[:3], "F32", "shape")
    second["leading"] = replace_shape(first["leading"], (1, 4, 64))
    found = compare_tensors(first, second)
    assert {error.name for error in found.errors} == {"both", "leading"}
    assert (found.missing, found.added) == (("old",), ("new",))
    assert found.shapes == (("shape", (4, 64), (3, 64)),)
    with pytest.raises(ModelError, match="no tensor of the same name and shape"):
        compare_tensors({"w": first["both"]}, {"v": first["both"]})


def replace_shape(held, shape):
    changed = replace(held, shape=shape)
    object.__setattr__(changed, "data", held.data)
    return changed


def test_wrong_numbers_are_errors():
    weights = values(4, 64)
    good = Held.of(weights, "F32")
    weights[2, 7] = np.inf
    with pytest.raises(ValueRangeError, match=r"tensor 'w': a weight in rows 0 to 3 is not finite"):
        compare_tensors({"w": good}, {"w": Held.of(weights, "F32")}, threads=2)
    with pytest.raises(ModelError, match="the importance matrix has 63 values, not 64"):
        compare_tensors({"w": good}, {"w": good}, Imatrix("i", (), 0, {"w": np.ones(63, np.float32)}))


def test_a_checkpoint_is_compared_with_its_file(golden, tmp_path):
    convert(golden / "stories260K", "Q8_0", tmp_path / "q.gguf")
    with open_source(golden / "stories260K") as source, open_gguf(tmp_path / "q.gguf") as file:
        found = compare_tensors(source.tensors, file.tensors)
        assert len(found.errors) == len(source.tensors)
        worst = found.errors[0]
        a, b = source.tensors[worst.name].load(), file.tensors[worst.name].load()
        noise = dequantize(b, file.tensors[worst.name].type).astype(np.float64) - a.astype(np.float64)
    assert not (found.missing or found.added or found.shapes)
    assert worst.types[1] == "Q8_0"
    assert worst.rmse == pytest.approx(math.sqrt((noise**2).mean()))
    assert {error.name for error in found.errors if error.equal} == {
        name for name, tensor in source.tensors.items() if len(tensor.shape) == 1
    }
