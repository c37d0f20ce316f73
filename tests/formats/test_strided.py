"""Scattered views, against NumPy's own strides."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import ELEMENT_TYPES, TYPES
from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.tensors import strided
from quantcli.tensors.files import InputFile
from quantcli.tensors.strided import StridedTensor, is_contiguous

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "reversed axes": lambda x: x.T,
    "last two swapped": lambda x: x.swapaxes(1, 2),
    "first two swapped": lambda x: x.swapaxes(0, 1),
    "rotated": lambda x: x.transpose(1, 2, 0),
    "a slab": lambda x: x[1:4, 2:5, 3:],
    "steps": lambda x: x[::2, ::3, ::4],
    "steps, reversed axes": lambda x: x[::2, ::3, ::4].T,
    "one row": lambda x: x[2, 3],
    "one column": lambda x: x[2, :, 3],
    "one number": lambda x: x[2, 3, 4:5].reshape(()),
    "repeated rows": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "repeated columns": lambda x: np.broadcast_to(x[:, :, :1], x.shape),
    "all the same": lambda x: np.broadcast_to(x[1:2, 1:2, 1:2], x.shape),
    "four dimensions": lambda x: x.reshape(5, 7, 3, 3).transpose(2, 0, 3, 1),
    "nothing": lambda x: x[:, :0].T,
}


def tensor_of(path: Path, whole: np.ndarray, view: np.ndarray, type: str) -> StridedTensor:
    """A tensor of what `view` sees of `whole`, which is stored behind 11 other bytes."""
    path.write_bytes(bytes(11) + whole.tobytes())
    start = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0] if view.size else 0
    return StridedTensor("w", view.shape, TYPES[type], InputFile(path), 11 + start, view.strides)


@pytest.mark.parametrize("span", [8, 40, 300, strided.SPAN])
@pytest.mark.parametrize("gap", [0, 30, 1 << 15])
@pytest.mark.parametrize("name", VIEWS)
def test_every_view_reads_as_numpy_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, span: int, gap: int
) -> None:
    monkeypatch.setattr(strided, "SPAN", span)
    monkeypatch.setattr(strided, "_GAP", gap)
    for dtype, type in (("<f4", "F32"), ("i1", "I8")):
        whole = np.random.default_rng(0).integers(-100, 100, (5, 7, 9)).astype(dtype)
        view = VIEWS[name](whole)
        tensor = tensor_of(tmp_path / "x", whole, view, type)
        assert tensor.load().tobytes() == view.tobytes()
        rows = np.ascontiguousarray(view).reshape(tensor.rows, tensor.row_length)
        for start, stop in itertools.combinations(range(0, tensor.rows + 1, 3), 2):
            out = np.empty((stop - start, tensor.row_bytes), np.uint8)
            tensor.read(start, stop, out)
            assert out.tobytes() == rows[start:stop].tobytes()


@pytest.mark.parametrize("name", VIEWS)
def test_contiguity_is_what_numpy_calls_it(name: str) -> None:
    view = VIEWS[name](np.zeros((5, 7, 9), "<f4"))
    if view.size > 1:
        strides = tuple(stride // 4 for stride in view.strides)
        assert is_contiguous(view.shape, strides) == view.flags.c_contiguous


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    whole = np.arange(3000 * 2000, dtype="<f4").reshape(3000, 2000)  # 24 MB
    tensor = tensor_of(tmp_path / "x", whole, whole.T, "F32")
    out = np.empty((8, tensor.row_bytes), np.uint8)
    tracemalloc.start()
    try:
        tensor.read(500, 508, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < strided.SPAN + (1 << 20)
    assert out.tobytes() == np.ascontiguousarray(whole.T[500:508]).tobytes()


def test_a_file_that_lost_its_end_is_an_error(tmp_path: Path) -> None:
    whole = np.zeros((4, 4), "<f4")
    tensor = tensor_of(tmp_path / "x", whole, whole.T, "F32")
    tensor.load()
    with (tmp_path / "x").open("r+b") as file:
        file.truncate(60)
    with pytest.raises(FormatError, match="the file ends 15 bytes early"):
        tensor.load()


def test_a_type_gguf_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4))
    tensor = StridedTensor("mask", (2, 2), ELEMENT_TYPES["BOOL"], InputFile(tmp_path / "x"), 0, (1, 2))
    with pytest.raises(UnsupportedError, match="tensor 'mask' is stored as BOOL"):
        tensor.load()
