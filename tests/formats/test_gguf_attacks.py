"""Files that are not what they claim to be: each is refused in one line that says what is wrong and where."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command

from quantcli.core.errors import FormatError, QuantcliError, UnsupportedError
from quantcli.formats.gguf.reader import GGUFFile, open_gguf

U8, U32, BOOL, STRING, ARRAY, U64 = 0, 4, 7, 8, 9, 10
F32, Q8_0 = 0, 8
HEADER = 24


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def tensor(name: str | bytes, shape: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def gguf(
    entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, *, version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:  # fmt: skip
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join([*entries, *tensors])
    return header + bytes(-len(header) % 32 + data if data else 0)


def opened(tmp_path: Path, content: bytes) -> GGUFFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return open_gguf(path)


ONE = entry("a", U32, u32(1))

BROKEN = {
    "empty": (b"", "expected a GGUF file, found an empty one", None),
    "other magic": (b"GGML" + bytes(40), "found b'GGML'", 0),
    "header cut short": (b"GGUF\3\0\0\0", "cut short: 8 bytes", None),
    "entries nobody has room for": (gguf(counts=(0, 2**40)), "1099511627776 metadata entries", 8),
    "tensors nobody has room for": (gguf([ONE], counts=(2**63, 1)), "9223372036854775808 tensors", 8),
    "more entries than there are": (gguf([ONE], counts=(0, 2)) + bytes(30), "metadata key 1 is empty", HEADER + 17),
    "key longer than the file": (gguf(counts=(0, 1)) + u64(100) + b"abcdef", "metadata key 0 takes 100 bytes", HEADER + 8),
    "key of 2^63 bytes": (gguf(counts=(0, 1)) + u64(2**63) + b"abcdef", "at most 1073741824 expected", HEADER),
    "empty key": (gguf([entry("", U32, u32(1))]), "metadata key 0 is empty", HEADER),
    "key twice": (gguf([ONE, ONE]), "the metadata key 'a' comes twice", HEADER + 17),
    "unknown value type": (gguf([entry("a", 13, u32(1))]), "unknown value type 13, expected 0 to 12", HEADER + 9),
    "value cut short": (gguf([ONE, entry("b", U64, u32(1))]), "the value of 'b' takes 8 bytes, 4 left", HEADER + 30),
    "string cut short": (gguf([entry("a", STRING, u64(10) + b"abc")]), "takes 10 bytes, 3 left", HEADER + 21),
    "array of unknown type": (gguf([entry("a", ARRAY, u32(99) + u64(1) + u64(1))]), "unknown value type 99", HEADER + 13),
    "array of arrays": (gguf([entry("a", ARRAY, u32(ARRAY) + u64(1) + u32(U8) + u64(0))]), "array of arrays", HEADER + 13),
    "array beyond the file": (gguf([entry("a", ARRAY, u32(U32) + u64(9) + u64(1))]), "takes 36 bytes, 8 left", HEADER + 25),
    "array of 2^61": (gguf([entry("a", ARRAY, u32(U64) + u64(2**61))]), "2305843009213693952 elements", HEADER + 13),
    "strings beyond the file": (gguf([entry("a", ARRAY, u32(STRING) + u64(3) + u64(0))]), "3 strings, 8", HEADER + 25),
    "a string in an array cut short": (
        gguf([entry("a", ARRAY, u32(STRING) + u64(2) + text("x") + u64(9) + b"abc")]), "string 1 of the value of 'a'",
        HEADER + 34,
    ),
    "no room for the next string": (
        gguf([entry("a", ARRAY, u32(STRING) + u64(2) + text("abcdefgh"))]), "string 1 of the value of 'a'", HEADER + 41,
    ),
    "alignment of 0": (gguf([entry("general.alignment", U32, u32(0))]), "general.alignment is 0", None),
    "alignment of 24": (gguf([entry("general.alignment", U32, u32(24))]), "expected a power of two", None),
    "alignment of another type": (gguf([entry("general.alignment", U64, u64(32))]), r"32 \(UINT64\)", None),
    "long tensor name": (gguf([], [tensor("x" * 64, [1])], 4), "has 64 bytes, at most 63", HEADER),
    "tensor name twice": (gguf([], [tensor("a", [1]), tensor("a", [1], F32, 32)], 64), "'a' comes twice", HEADER + 33),
    "five dimensions": (gguf([], [tensor("a", [1] * 5)], 4), "5 dimensions, at most 4", HEADER + 9),
    "dimension of 2^63": (gguf([], [tensor("a", [2**63])], 4), "a dimension of 9223372036854775808", HEADER + 9),
    "unknown tensor type": (gguf([], [tensor("a", [1], 1000)], 4), "the unknown type 1000", HEADER + 21),
    "removed tensor type cut short": (gguf([], [tensor("a", [32], 31)], 17), "cut short: tensor 'a' ends at", HEADER),
    "two files joined": (gguf([ONE], [tensor("a", [1])], 4) + gguf([ONE]), "several concatenated GGUF files", 100),
    "two files joined at the alignment": (
        gguf([ONE], [tensor("a", [1])], 32) + gguf([ONE]), "several concatenated GGUF files", 128,
    ),
    "two headers joined": (gguf([ONE] * 0) + gguf([ONE]), "several concatenated GGUF files", 24),
    "nothing of sizes beyond 2^63": (gguf([], [tensor("a", [2**62, 0, 4])], 4), "more weights than can be", HEADER + 9),
    "rows that are no blocks": (gguf([], [tensor("a", [33], Q8_0)], 64), "rows of 33, not divisible", HEADER + 9),
    "a quantized scalar": (gguf([], [tensor("a", [], Q8_0)], 64), "rows of 1, not divisible", HEADER + 9),
    "offset off the alignment": (gguf([], [tensor("a", [1], F32, 4)], 64), "starts at 4 of the data, not a", HEADER),
    "data cut short": (gguf([], [tensor("a", [16, 2])], 127), "tensor 'a' ends at byte 224, the file at 223", HEADER),
    "no data": (gguf([], [tensor("a", [1])]), "cut short", HEADER),
    "more weights than 2^64": (gguf([], [tensor("a", [2**62] * 4)], 4), "more weights than can be", HEADER + 9),
    "offset beyond 2^63": (gguf([], [tensor("a", [1], F32, 2**64 - 32)], 4), "the file is cut short", HEADER),
    "overlap": (
        gguf([], [tensor("a", [1], F32, 32), tensor("b", [16])], 64), "the tensors 'b' and 'a' overlap", HEADER
    ),
    "description cut short": (gguf([], [tensor("a", [1])])[:-1], "the offset takes 8 bytes, 7 left", HEADER + 25),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_path_and_the_byte(tmp_path: Path, name: str) -> None:
    content, message, offset = BROKEN[name]
    with pytest.raises(FormatError, match=message) as caught:
        opened(tmp_path, content)
    assert caught.value.path == str(tmp_path / "model.gguf")
    assert caught.value.message.startswith(caught.value.path)
    assert "\n" not in caught.value.message
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian GGUF"),
        (gguf(version=1), "GGUF version 1, expected little-endian version 2 or 3"),
        (gguf(version=4), "GGUF version 4"),
        (gguf(version=0), "GGUF version 0"),
    ],
)
def test_a_version_that_is_not_read_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        opened(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "found", "hint"),
    [
        (struct.pack("<Q", 30) + b'{"__metadata__":{}}' + bytes(30), "a safetensors file", "quantize convert"),
        (b"PK\x03\x04" + bytes(30), "PyTorch checkpoint", "quantize convert"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", "git lfs pull"),
        (b"<!doctype html><html>" + bytes(30), "a web page", "download"),
        (b"tjgg" + bytes(30), "before GGUF", "convert the original model"),
    ],
)
def test_what_people_take_for_gguf_is_named_with_a_way_on(tmp_path: Path, content: bytes, found: str, hint: str) -> None:
    with pytest.raises(FormatError, match=found) as caught:
        opened(tmp_path, content)
    assert hint in (caught.value.hint or "")


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape(str(tmp_path / "none.gguf"))):
        open_gguf(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="expected a GGUF file, found a directory") as caught:
        open_gguf(tmp_path)
    assert "with --dry-run it shows the tensors" in (caught.value.hint or "")


def test_a_shard_of_a_split_model_is_refused_unless_allowed(tmp_path: Path) -> None:
    u16 = 2
    content = gguf([entry("split.no", u16, b"\1\0"), entry("split.count", u16, b"\3\0")])
    with pytest.raises(UnsupportedError, match="shard 2 of 3 of a split model, expected the first one"):
        opened(tmp_path, content)
    with open_gguf(tmp_path / "model.gguf", allow_shard=True) as file:
        assert file.split == (2, 3)


def test_what_is_odd_but_sound_is_read(tmp_path: Path) -> None:
    # Version 2, a scalar, a tensor without weights, an order of data that is not that of the names, alignment 8, a gap.
    tensors = [tensor("late", [2], F32, 64), tensor("scalar", [], F32, 8), tensor("nothing", [0, 3]), tensor("", [1])]
    header = gguf([entry("general.alignment", U32, u32(8))], tensors, version=2)
    start = -(-len(header) // 8) * 8
    data = np.arange(18, dtype="<f4")
    with opened(tmp_path, header.ljust(start, b"\0") + data.tobytes()) as file:
        assert (file.version, file.alignment, file.data_offset) == (2, 8, start)
        assert file.tensors["late"].load().tolist() == [16.0, 17.0]
        assert file.tensors["scalar"].load() == 2.0
        assert file.tensors["nothing"].shape == (3, 0)
        assert file.tensors["nothing"].load().shape == (3, 0)
        assert file.map(file.tensors["nothing"]).shape == (3, 0)
        assert file.tensors[""].load().tolist() == [0.0]


def test_every_cut_of_a_sound_file_is_refused(golden: Path, tmp_path: Path) -> None:
    content = (golden / "gguf_files" / "every-value.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    for length in [*range(0, 1312, 3), *range(1312, len(content) - 32, 97)]:
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            open_gguf(path)


def test_a_flipped_byte_gives_a_file_or_an_error_of_the_tree(golden: Path, tmp_path: Path) -> None:
    content = (golden / "gguf_files" / "every-value.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    refused = 0
    for position in range(0, 1312, 3):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            open_gguf(path).close()
        except QuantcliError:
            refused += 1
    assert refused > 130


def test_no_memory_is_taken_for_a_lie(tmp_path: Path) -> None:
    lies = ["array of 2^61", "entries nobody has room for", "key of 2^63 bytes", "strings beyond the file"]
    tracemalloc.start()
    try:
        for name in lies:
            with pytest.raises(FormatError):
                opened(tmp_path, BROKEN[name][0])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_truth_is_any_byte_but_0_as_in_gguf_cpp(tmp_path: Path) -> None:
    entries = [entry(name, BOOL, bytes([byte])) for name, byte in (("a", 0), ("b", 1), ("c", 2), ("d", 255))]
    values = entry("e", ARRAY, u32(BOOL) + u64(4) + bytes([0, 1, 2, 255]))
    with opened(tmp_path, gguf([*entries, values])) as file:
        assert [file.get(name) for name in "abcd"] == [False, True, True, True]
        assert file.metadata["e"].elements() == [False, True, True, True]
        assert file.get("e").view(np.uint8).tolist() == [0, 1, 1, 1]


REMOVED = {"Q4_2": 4, "Q4_3": 5, "Q4_0_4_4": 31, "Q4_0_4_8": 32, "Q4_0_8_8": 33, "IQ4_NL_4_4": 36, "IQ4_NL_8_8": 38}


@pytest.mark.parametrize("name", REMOVED)
def test_a_type_that_ggml_has_removed_is_shown_by_its_name_and_not_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = gguf(
        [entry("general.architecture", STRING, text("llama")), ONE],
        [tensor("output_norm.weight", [8]), tensor("blk.0.attn_q.weight", [32, 2], REMOVED[name], 32)],
        32 + 48,
    )
    with opened(tmp_path, content) as file:
        stored = file.tensors["blk.0.attn_q.weight"]
        assert stored.type.name == name
        for read in (stored.load, lambda: file.map(stored)):
            with pytest.raises(UnsupportedError, match=f"attn_q.weight' has the type {name}, which ggml has removed"):
                read()
    path = tmp_path / "model.gguf"
    for words in (["inspect", path], ["inspect", path, "--tensors"], ["inspect", path, "--json"]):
        status, out, err = run_command(capsys, *words)
        assert (status, name in out, err) == (0, True, "")
    for words in (["run", path, "-p", "a"], [path, "--type", "Q8_0", "-o", tmp_path / "out.gguf"]):
        status, out, err = run_command(capsys, *words)
        assert (status, out, err.startswith("error: "), "is a bug" in err) == (1, "", True, False)
    status, out, err = run_command(capsys, path, "--type", "COPY", "-o", tmp_path / "out.gguf")
    assert (status, name in err) == (1, True)
    assert not (tmp_path / "out.gguf").exists()


def test_shards_joined_by_cat_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [
        gguf(
            [
                entry("split.no", 2, bytes([number, 0])), entry("split.count", 2, b"\2\0"),
                entry("split.tensors.count", 5, u32(2)),
            ],
            [tensor(f"t{number}", [8])], 32,
        )
        for number in range(2)
    ]  # fmt: skip
    path = tmp_path / "model.gguf"
    path.write_bytes(b"".join(shards))
    for command in (["inspect", path], ["run", path, "-p", "a"], ["tokenize", path, "a"], ["merge", path, "-o", "x"]):
        status, out, err = run_command(capsys, *command)
        assert (status, out) == (1, "")
        assert "several concatenated GGUF files" in err
        assert "quantize merge" in err
