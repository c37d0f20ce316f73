from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError, ValueRangeError
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.imatrix import Imatrix, read_imatrix
from quantcli.tensors.tensor import TensorInfo

METADATA: Metadata = {
    "general.type": string("imatrix"),
    "imatrix.datasets": array(ValueType.STRING, ["wiki.txt", "code.txt"]),
    "imatrix.chunk_count": u32(7),
    "imatrix.chunk_size": u32(512),
}


def write_gguf(path: Path, tensors: dict[str, Any], metadata: Metadata = METADATA, type: str = "F32") -> Path:
    arrays = {name: np.asarray(values, TYPES[type].layout) for name, values in tensors.items()}
    infos = [TensorInfo(name, values.shape, TYPES[type]) for name, values in arrays.items()]
    with GGUFWriter(path, metadata, infos) as writer:
        for index, values in enumerate(arrays.values()):
            writer.write(index, 0, values.tobytes())
    return path


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name.encode())) + name.encode()
        data += struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return data + tail


def test_golden_values_are_sums_over_counts(golden: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="reads the file independently")
    imatrix = read_imatrix(golden / "imatrix.gguf")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(golden / "imatrix.gguf").tensors}
    assert imatrix.datasets == ("cal.txt",)
    assert imatrix.chunks == 20
    assert len(imatrix.entries) == 56
    for name, values in imatrix.entries.items():
        count = np.float32(stored[f"{name}.counts"].item())
        expected = np.array([np.float32(total) / count for total in stored[f"{name}.in_sum2"]])
        assert values.dtype == np.float32
        assert np.array_equal(values, expected)


def test_experts_have_values_each_and_unused_ones_are_neutral(tmp_path: Path) -> None:
    sums = [[1.0, 2.0, 4.0], [3.0, 3.0, 1.0], [9.0, 9.0, 9.0]]
    path = write_gguf(tmp_path / "m.gguf", {"e.in_sum2": sums, "e.counts": [[3.0], [7.0], [0.0]]})
    imatrix = read_imatrix(path)
    third, seventh = np.float32(3), np.float32(7)
    expected = [[np.float32(it) / third for it in sums[0]], [np.float32(it) / seventh for it in sums[1]], [1, 1, 1]]
    assert np.array_equal(imatrix.entries["e"], np.array(expected, np.float32))
    assert imatrix.values("e", 3).shape == (3, 3)
    assert imatrix.sizes == {"e": 9}


def test_counts_are_rounded_half_up_as_lround_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"a.in_sum2": [10.0], "a.counts": [2.5], "b.in_sum2": [10.0], "b.counts": [0.4]})
    entries = read_imatrix(path).entries
    assert entries["a"][0] == np.float32(10) / np.float32(3)
    assert entries["b"][0] == 1


def test_legacy_values_are_divided_by_calls(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    tail = struct.pack("<ii", 125, 8) + b"wiki.txt"
    path.write_bytes(legacy({"blk.0.attn_q.weight": (3, [1.0, 2.0]), "blk.0.ffn_up.weight": (0, [5.0])}, tail))
    imatrix = read_imatrix(path)
    assert np.array_equal(imatrix.entries["blk.0.attn_q.weight"], np.array([1, 2], np.float32) / np.float32(3))
    assert imatrix.entries["blk.0.ffn_up.weight"][0] == 5
    assert imatrix.datasets == ("wiki.txt",)
    assert imatrix.chunks == 125


@pytest.mark.parametrize(("tail", "chunks"), [(b"", 0), (struct.pack("<i", 9), 9), (struct.pack("<ii", 9, 0), 9)])
def test_the_end_of_a_legacy_file_is_optional(tmp_path: Path, tail: bytes, chunks: int) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy({"a": (1, [1.0])}, tail))
    imatrix = read_imatrix(path)
    assert imatrix.chunks == chunks
    assert imatrix.datasets == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_unusable_values_are_named(tmp_path: Path, bad: float) -> None:
    modern = write_gguf(tmp_path / "m.gguf", {"x.in_sum2": [1.0, bad], "x.counts": [2.0]})
    old = tmp_path / "m.dat"
    old.write_bytes(legacy({"x": (1, [1.0, bad])}))
    for path in (modern, old):
        with pytest.raises(ValueRangeError, match=r"tensor 'x'.* at index 1"):
            read_imatrix(path)


def test_a_tensor_nothing_of_which_matters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy({"x": (1, [0.0, 1.0]), "y": (1, [0.0, 0.0])}))
    with pytest.raises(ValueRangeError, match="tensor 'y': all importance values are zero"):
        read_imatrix(path)


def test_a_count_must_be_finite(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"x.in_sum2": [1.0], "x.counts": [float("inf")]})
    with pytest.raises(ValueRangeError, match="tensor 'x'"):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.in_sum2": [1.0, 2.0]}, r"expected an F32 tensor 'x\.counts', found none"),
        ({"x.counts": [1.0]}, r"expected an F32 tensor 'x\.in_sum2', found none"),
        ({"x.in_sum2": [1.0, 2.0, 3.0], "x.counts": [1.0, 1.0]}, "3 sums do not divide into 2 counts"),
        ({"other": [1.0]}, "without entries"),
    ],
)
def test_contradictions(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_imatrix(write_gguf(tmp_path / "m.gguf", tensors))


def test_sums_must_be_floats(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"x.in_sum2": [1.0], "x.counts": [1.0]}, type="F16")
    with pytest.raises(FormatError, match="found one of F16"):
        read_imatrix(path)


@pytest.mark.parametrize(
    "change",
    [
        {"general.type": string("model")},
        {"imatrix.datasets": string("wiki.txt")},
        {"imatrix.chunk_count": array(ValueType.UINT32, [1])},
        {"imatrix.chunk_size": string("512")},
    ],
)
def test_another_gguf_file_is_refused(tmp_path: Path, change: Metadata) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"x.in_sum2": [1.0], "x.counts": [1.0]}, METADATA | change)
    with pytest.raises(FormatError, match="importance matrix"):
        read_imatrix(path)


def test_every_cut_of_a_legacy_file_is_refused(tmp_path: Path) -> None:
    whole = legacy({"blk.0": (3, [1.0, 2.0]), "blk.1": (3, [1.0])})
    path = tmp_path / "m.dat"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_imatrix(path)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<i", 0),
        struct.pack("<i", -1),
        struct.pack("<ii", 1, -5),
        struct.pack("<ii", 1, 0x7FFFFFFF),
        struct.pack("<iicii", 1, 1, b"a", 1, -1),
        struct.pack("<iicii", 1, 1, b"a", 1, 0),
        b"not an importance matrix at all",
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        read_imatrix(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        read_imatrix(tmp_path / "none.gguf")


def test_notes_in_the_output(tmp_path: Path) -> None:
    values = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    notes = Imatrix("dir/m.gguf", ("wiki.txt", "code.txt"), 7, values).metadata()
    assert list(notes.items()) == [
        ("quantize.imatrix.file", string("dir/m.gguf")),
        ("quantize.imatrix.dataset", string("wiki.txt")),
        ("quantize.imatrix.entries_count", u32(2)),
        ("quantize.imatrix.chunks_count", u32(7)),
    ]
    sparse = Imatrix("\N{GREEK SMALL LETTER ALPHA}" * 100, (), 0, values).metadata()
    assert list(sparse) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    assert sparse["quantize.imatrix.file"].value.encode("utf-8", "surrogateescape") == ("α" * 100).encode()[:127]


@pytest.mark.parametrize("shape", [(0,), (1, 0), (0, 4)])
@pytest.mark.parametrize("suffix", ["in_sum2", "counts"])
def test_an_entry_without_numbers_is_refused(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"a.in_sum2": [[1.0, 2.0]], "a.counts": [[1.0]], f"a.{suffix}": np.zeros(shape)}
    with pytest.raises(FormatError, match=rf"'a.{suffix}' is empty"):
        read_imatrix(write_gguf(tmp_path / "m.gguf", tensors))


@pytest.mark.parametrize("value", [b"\1\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\xff"], ids=["signal", "nan", "-inf"])
def test_numbers_that_are_none_are_refused_without_a_word_of_numpy(value: bytes, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"a.in_sum2": [[1.0, 7.0]], "a.counts": [[3.0]]})
    path.write_bytes(path.read_bytes().replace(struct.pack("<f", 7.0), value))
    with pytest.raises(ValueRangeError, match="at index 1, expected a finite number"):
        read_imatrix(path)
    old = legacy({"a": (3, [1.0, 7.0])}).replace(struct.pack("<f", 7.0), value)
    path.write_bytes(old)
    with pytest.raises(ValueRangeError, match="at index 1, expected a finite number"):
        read_imatrix(path)
