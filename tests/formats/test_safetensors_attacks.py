"""Every way a safetensors file can be wrong has its own error, and none of them takes memory or time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantcli.core.errors import FormatError, QuantcliError, UnsupportedError
from quantcli.formats.checkpoint.safetensors import MAX_HEADER, open_safetensors


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    """A header with one sound tensor `w` of two F32, changed."""
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def two(begin: int, end: int) -> dict[str, Any]:
    return one() | {"v": {"dtype": "I8", "shape": [end - begin], "data_offsets": [begin, end]}}


EIGHT = bytes(8)

ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", r"too short for a safetensors file: 0 bytes"),
    "half a length": (bytes(5), r"too short for a safetensors file: 5 bytes"),
    "length beyond the cap": (file_of(one(), EIGHT, MAX_HEADER + 1), r"a header of 100000001 bytes, at most"),
    "length of 2**64 - 1": (b"\xff" * 8 + b"{}", r"a header of 18446744073709551615 bytes, at most"),
    "length beyond the file": (file_of(one(), EIGHT, 5000), r"cut short: a header of 5000 bytes, \d+ left"),
    "length of nothing": (file_of(b""), r"the header is not valid JSON"),
    "length short by one": (file_of(one(), EIGHT, len(json.dumps(one())) - 1), r"the header is not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff\xfe": 1}'), r"the header is not valid JSON: 'utf-8' codec"),
    "not JSON": (file_of(b"{w: 1}"), r"the header is not valid JSON"),
    "two objects": (file_of(b"{}{}"), r"the header is not valid JSON: Extra data"),
    "an array": (file_of([]), r"the header is a JSON array, expected an object"),
    "a number": (file_of(b"7"), r"the header is a JSON number, expected an object"),
    "nested without end": (file_of(b'{"a":' + b"[" * 200_000), r"the header is not valid JSON"),
    "a number of a million digits": (file_of(b'{"a":' + b"9" * 1_000_000 + b"}"), r"the header is not valid JSON"),
    "a tensor twice": (
        file_of(b"{" + b",".join([json.dumps(one()).encode()[1:-1]] * 2) + b"}", EIGHT),
        r"'w' comes twice",
    ),
    "a key of a tensor twice": (
        file_of(b'{"w":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', EIGHT),
        r"'shape' comes twice",
    ),
    "metadata not an object": (file_of({"__metadata__": 3}), r"__metadata__ is not an object of strings"),
    "metadata not strings": (file_of({"__metadata__": {"a": 3}}), r"__metadata__ is not an object of strings"),
    "a tensor not an object": (file_of({"w": 3}), r"tensor 'w': expected dtype, shape and data_offsets"),
    "a key missing": (file_of({"w": {"dtype": "F32", "shape": [2]}}), r"expected dtype, shape and data_offsets"),
    "a key too many": (file_of(one(extra=1), EIGHT), r"tensor 'w': expected dtype, shape and data_offsets"),
    "half a surrogate pair": (file_of(b'{"\\ud800": {}}'), r"tensor '\\ud800': the name is not printable text"),
    "a name of two lines": (file_of({"a\nb": {}}), r"tensor 'a\\nb': the name is not printable text"),
    "unknown dtype": (file_of(one(dtype="F31"), EIGHT), r"tensor 'w': unknown dtype 'F31'"),
    "dtype in lower case": (file_of(one(dtype="f32"), EIGHT), r"unknown dtype 'f32'"),
    "dtype not a string": (file_of(one(dtype=["F32"]), EIGHT), r"unknown dtype \['F32'\]"),
    "shape not a list": (file_of(one(shape=2), EIGHT), r"shape 2 is not a list"),
    "shape with a negative": (file_of(one(shape=[-2]), EIGHT), r"shape \[-2\] is not a list"),
    "shape of two negatives": (file_of(one(shape=[-2, -1]), EIGHT), r"shape \[-2, -1\] is not a list"),
    "shape with a float": (file_of(one(shape=[2.0]), EIGHT), r"shape \[2\.0\] is not a list"),
    "shape with a truth value": (file_of(one(shape=[2, True]), EIGHT), r"shape \[2, true\] is not a list"),
    "shape with a text": (file_of(one(shape=["2"]), EIGHT), r"shape \[\"2\"\] is not a list"),
    "shape of 65 dimensions": (file_of(one(shape=[1] * 65), EIGHT), r"not a list of at most 64 sizes"),
    "shape beyond 63 bits": (file_of(one(shape=[0, 1 << 63], data_offsets=[0, 0])), r"is not a list"),
    "shape that overflows to 2": (
        file_of(one(shape=[3, 0x5555555555555556]), EIGHT),  # 2**64 + 2
        r"8 bytes of data, expected \d+ for F32",
    ),
    "shape larger than the data": (file_of(one(shape=[3]), EIGHT), r"8 bytes of data, expected 12 for F32 of shape \[3\]"),
    "shape smaller than the data": (file_of(one(shape=[1]), EIGHT), r"8 bytes of data, expected 4 for F32 of shape \[1\]"),
    "offsets not a list": (file_of(one(data_offsets=8), EIGHT), r"data_offsets 8 are not a begin and an end"),
    "three offsets": (file_of(one(data_offsets=[0, 4, 8]), EIGHT), r"are not a begin and an end"),
    "offsets backwards": (file_of(one(data_offsets=[8, 0]), EIGHT), r"data_offsets \[8, 0\] are not"),
    "a negative offset": (file_of(one(data_offsets=[-8, 0]), EIGHT), r"data_offsets \[-8, 0\] are not"),
    "an offset as float": (file_of(one(data_offsets=[0, 8.0]), EIGHT), r"are not a begin and an end"),
    "beyond the file": (file_of(one(), bytes(7)), r"the file is cut short: 7 bytes of data, expected 8"),
    "no data at all": (file_of(one()), r"the file is cut short: 0 bytes of data, expected 8"),
    "more data than tensors": (file_of(one(), bytes(9)), r"goes on after the last tensor: 9 bytes of data, expected 8"),
    "data without tensors": (file_of({}, EIGHT), r"goes on after the last tensor: 8 bytes of data, expected 0"),
    "overlap": (file_of(two(6, 10), bytes(10)), r"tensor 'v' overlaps the one before: it begins at 6, expected 8"),
    "the same bytes twice": (file_of(two(0, 8), EIGHT), r"tensor 'w' overlaps the one before: it begins at 0, expected 8"),
    "a hole": (file_of(two(9, 12), bytes(12)), r"tensor 'v' leaves a hole behind the one before: it begins at 9"),
    "a hole at the start": (file_of(one(data_offsets=[8, 16]), bytes(16)), r"tensor 'w' leaves a hole"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), ATTACKS.values(), ids=ATTACKS.keys())
def test_a_malformed_file_is_refused_with_its_own_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_safetensors(path)
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500 + len(str(path))


def test_the_same_file_unharmed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(two(8, 12), bytes(12)))
    assert list(open_safetensors(path)) == ["v", "w"]


def test_a_header_padded_with_spaces_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(json.dumps(one()).encode() + b"   ", EIGHT))
    assert list(open_safetensors(path)) == ["w"]


def test_rows_that_do_not_end_on_a_byte_are_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"w": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}, bytes(3)))
    with pytest.raises(UnsupportedError, match=r"tensor 'w': rows of F4 do not end on a byte"):
        open_safetensors(path)


def test_a_file_cut_off_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(one(), EIGHT))
    tensor = open_safetensors(path)["w"]
    path.write_bytes(file_of(one(), bytes(4)))
    with pytest.raises(FormatError, match="the file has changed since it was first opened"):
        tensor.load()


def test_a_file_cut_off_between_two_reads_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(one(), EIGHT))
    tensor = open_safetensors(path)["w"]
    tensor.load()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    with pytest.raises(FormatError, match="the file ends 3 bytes early"):
        tensor.load()


@pytest.mark.parametrize("cut", range(0, 80, 7))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    content = file_of(two(8, 12), bytes(12))
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(QuantcliError):
        open_safetensors(path)


def test_a_flipped_byte_gives_tensors_or_an_error_of_ours(tmp_path: Path) -> None:
    content = file_of(two(8, 12) | {"__metadata__": {"format": "pt"}}, bytes(12))
    path = tmp_path / "model.safetensors"
    for position in range(len(content) - 12):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
            try:
                assert sum(tensor.nbytes for tensor in open_safetensors(path).values()) == 12
            except QuantcliError as error:
                assert "\n" not in error.message


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a file, found a directory"):
        open_safetensors(tmp_path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.safetensors: cannot be opened: No such file"):
        open_safetensors(tmp_path / "none.safetensors")
