"""Models in several files: the bytes are gguf-split's, reading gives the whole, and a failure leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError, OutputError, UnsupportedError, UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import MAX_SHARDS, by_count, by_size, parse_size, shard_path, shard_prefix
from quantcli.formats.gguf.spec import Metadata, i32, string, u16, u32
from quantcli.formats.gguf.split import SplitWriter, merge_gguf, split_gguf
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

METADATA: Metadata = {"general.architecture": string("llama")}
TENSORS = [TensorInfo(f"blk.{index}.weight", (2, 8), TYPES["F32"]) for index in range(5)]
DATA = np.arange(80, dtype="<f4").reshape(5, 16)


def write_shards(prefix: Path, tensors_in_shard: int = 2, *, overwrite: bool = False) -> SplitWriter:
    with SplitWriter(prefix, METADATA, by_count(tensors_in_shard)(TENSORS), overwrite=overwrite) as writer:
        for index, data in enumerate(DATA):
            writer.write(index, 32, data[8:])
            writer.write(index, 0, data[:8])
    return writer


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- the bytes of gguf-split ----------------------------------------------------------------------------------------------


def test_splitting_by_count_gives_the_reference_s_bytes(golden: Path, tmp_path: Path) -> None:
    shards = golden / "gguf_files" / "parts"
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as source:
        written = split_gguf(source, tmp_path / "every-value", by_count(2))
    assert contents(tmp_path) == {path.name: path.read_bytes() for path in shards.glob("every-value-*")}
    assert [(shard.path.name, shard.file_bytes) for shard in written] == [
        (name, len(data)) for name, data in sorted(contents(tmp_path).items())
    ]


def test_merging_gives_the_reference_s_bytes(golden: Path, tmp_path: Path) -> None:
    shards = golden / "gguf_files" / "parts"
    with open_gguf(shards / "every-value-00001-of-00003.gguf") as source:
        size = merge_gguf(source, tmp_path / "merged.gguf")
    data = (tmp_path / "merged.gguf").read_bytes()
    assert data == (shards / "merged.gguf").read_bytes()
    assert size == len(data)


def test_splitting_by_size_gives_the_reference_s_bytes(shared: Path, tmp_path: Path) -> None:
    with open_gguf(shared / "golden" / "llama-8x256.bf16.gguf") as source:
        split_gguf(source, tmp_path / "model", by_size(2_000_000))
    digests = [hashlib.sha256(data).hexdigest() for _, data in sorted(contents(tmp_path).items())]
    # gguf-split --split-max-size 2M, built from the source in llama-cpp-python 0.3.36.
    assert digests == [
        "3bf34573a74e01e071913f9ac2208e372e385e7d2ae62d9b1b6454daa5991ff4",
        "ca48fc2aa9b8097947b9f300e9ecd090a557d4e505778914e03fdb205567c08f",
        "f01e2e23c0064e2b4ec16e8833e159bc8b1a8abaa27bd73a7813e865f665be46",
        "50a5b29a7b6b2174c7e7e2800c67a74221e573917120cac848ae7eb58e334328",
        "d026144eb8c6144dd2d7e30c2fa4d44ab3c7da326bd234eaffcb642291d242da",
        "c0c8a91d856b8e6b29513cf542e0129fe839c9ead59c7fb893e703ca4281f328",
        "285cd9eedf9264e9f2783f106c04b6c8bc2e1efb4807e6e41f4cb261d0f2f8c8",
    ]


def test_splitting_shards_otherwise_is_splitting_the_merged_model(tmp_path: Path) -> None:
    write_shards(tmp_path / "model")
    with open_gguf(tmp_path / "model-00001-of-00003.gguf") as source:
        merge_gguf(source, tmp_path / "whole.gguf")
        split_gguf(source, tmp_path / "a", by_count(3))
    with open_gguf(tmp_path / "whole.gguf") as source:
        assert source.split == (1, 0)
        split_gguf(source, tmp_path / "b", by_count(3))
    for number in (1, 2):
        assert shard_path(tmp_path / "a", number, 2).read_bytes() == shard_path(tmp_path / "b", number, 2).read_bytes()


def test_the_writer_s_shards_are_those_of_the_whole_file_split(tmp_path: Path) -> None:
    write_shards(tmp_path / "a")
    with GGUFWriter(tmp_path / "whole.gguf", METADATA, TENSORS) as writer:
        for index, data in enumerate(DATA):
            writer.write(index, 0, data)
    with open_gguf(tmp_path / "whole.gguf") as source:
        split_gguf(source, tmp_path / "b", by_count(2))
    for number in (1, 2, 3):
        assert shard_path(tmp_path / "a", number, 3).read_bytes() == shard_path(tmp_path / "b", number, 3).read_bytes()


# --- which tensors go where -----------------------------------------------------------------------------------------------


def sizes(limit: int, *rows: int) -> list[list[int]]:
    """The shards that tensors of so many rows of 32 bytes fall into."""
    tensors = [TensorInfo(str(index), (count, 8), TYPES["F32"]) for index, count in enumerate(rows)]
    return [[info.shape[0] for info in shard] for shard in by_size(limit)(tensors)]


def test_a_shard_is_filled_up_to_the_size() -> None:
    assert sizes(96, 1, 1, 1, 1) == [[1, 1, 1], [1]]
    assert sizes(95, 1, 1, 1, 1) == [[1, 1], [1, 1]]
    assert sizes(10**9, 1, 2) == [[1, 2]]
    assert sizes(64) == [[]]


def test_a_tensor_too_large_gets_a_shard_of_its_own_unless_it_is_the_first() -> None:
    assert sizes(64, 1, 9, 1) == [[1], [9], [1]]
    with pytest.raises(UsageError, match=r"first tensor, '0', has 288 bytes, more than a shard may have \(64\)"):
        sizes(64, 9, 1)


def test_tensors_count_with_their_padding() -> None:
    tensors = [TensorInfo(name, (1,), TYPES["F32"]) for name in "abc"]
    assert [len(shard) for shard in by_size(64)(tensors)] == [2, 1]


def test_no_more_shards_than_can_be_counted() -> None:
    with pytest.raises(UsageError, match="65536 shards needed"):
        SplitWriter(Path("model"), {}, [[]] * (MAX_SHARDS + 1))


@pytest.mark.parametrize(("text", "count"), [("2G", 2 * 10**9), ("500M", 5 * 10**8), ("7k", 7000), ("1234", 1234)])
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "M", "0", "0M", "-1M", "1.5G", "2GiB", "1 M", "٣M"])
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_names_of_shards() -> None:
    assert shard_path(Path("a/model.v2"), 3, 12) == Path("a/model.v2-00003-of-00012.gguf")
    assert shard_prefix(Path("a/model.v2-00003-of-00012.gguf")) == Path("a/model.v2")
    assert shard_prefix(Path("a/model.gguf")) == Path("a/model")
    assert shard_prefix(Path("a/model")) == Path("a/model")


# --- read as one ----------------------------------------------------------------------------------------------------------


def test_the_first_shard_stands_for_the_model(golden: Path) -> None:
    shards = golden / "gguf_files" / "parts"
    first = shards / "every-value-00001-of-00003.gguf"
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as whole, open_gguf(first) as file:
        assert list(file.tensors) == list(whole.tensors)
        assert list(file.metadata)[: len(whole.metadata)] == list(whole.metadata)
        assert (file.path, file.split) == (first, (1, 3))
        assert list(file.paths) == [shard_path(shards / "every-value", number, 3) for number in (1, 2, 3)]
        assert file.file_bytes == sum(path.stat().st_size for path in file.paths)
        for name, tensor in whole.tensors.items():
            assert file.map(tensor).tobytes() == whole.map(tensor).tobytes() == file.tensors[name].load().tobytes()


def test_views_outlive_closing(golden: Path) -> None:
    file = open_gguf(golden / "gguf_files" / "parts" / "every-value-00001-of-00003.gguf")
    views = [file.map(tensor) for tensor in file.tensors.values()]
    expected = [tensor.load().tobytes() for tensor in file.tensors.values()]
    file.close()
    assert [view.tobytes() for view in views] == expected


def test_a_later_shard_is_refused_with_the_first_one_s_name(golden: Path) -> None:
    shards = golden / "gguf_files" / "parts"
    with pytest.raises(UnsupportedError, match="shard 2 of 3 of a split model, expected the first one") as caught:
        open_gguf(shards / "every-value-00002-of-00003.gguf")
    assert str(shards / "every-value-00001-of-00003.gguf") in str(caught.value.hint)
    with open_gguf(shards / "every-value-00002-of-00003.gguf", allow_shard=True) as file:
        assert (file.split, len(file.tensors), len(file.paths)) == ((2, 3), 2, 1)


def copied(golden: Path, directory: Path) -> list[Path]:
    return [Path(shutil.copy(path, directory)) for path in sorted((golden / "gguf_files" / "parts").glob("every-value-*"))]


def test_missing_shards_are_named(golden: Path, tmp_path: Path) -> None:
    first, second, third = copied(golden, tmp_path)
    third.unlink()
    with pytest.raises(FormatError, match=f"shards of the model are missing: {third.name}$"):
        open_gguf(first)
    second.unlink()
    with pytest.raises(FormatError, match=f"missing: {second.name} and 1 more$"):
        open_gguf(first)


def test_a_renamed_first_shard_is_refused(golden: Path, tmp_path: Path) -> None:
    first = copied(golden, tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"the first of 3 shards .* called model-00001-of-00003\.gguf"):
        open_gguf(first)


def test_shards_in_the_wrong_place_are_refused(golden: Path, tmp_path: Path) -> None:
    first, second, third = copied(golden, tmp_path)
    shutil.copy(third, second)
    with pytest.raises(FormatError, match=f"{second.name}: expected shard 2 of 3, found 3 of 3"):
        open_gguf(first)


def test_a_shard_that_is_damaged_is_named(golden: Path, tmp_path: Path) -> None:
    first, second, _ = copied(golden, tmp_path)
    second.write_bytes(second.read_bytes()[:-64])
    with pytest.raises(FormatError, match=f"{second.name}: the file is cut short"):
        open_gguf(first)


def lone_shard(path: Path, number: int, count: int, total: int, names: list[str]) -> None:
    keys: Metadata = {"split.no": u16(number), "split.count": u16(count), "split.tensors.count": i32(total)}
    with GGUFWriter(path, keys, [TensorInfo(name, (2,), TYPES["F32"]) for name in names]) as writer:
        for index in range(len(names)):
            writer.write(index, 0, b"\0" * 8)


def test_shards_that_disagree_about_tensors_are_refused(tmp_path: Path) -> None:
    lone_shard(tmp_path / "m-00001-of-00002.gguf", 0, 2, 3, ["a", "b"])
    lone_shard(tmp_path / "m-00002-of-00002.gguf", 1, 2, 3, ["b"])
    with pytest.raises(FormatError, match=r"m-00002.*tensor 'b' is in m-00001-of-00002\.gguf too"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")
    lone_shard(tmp_path / "n-00001-of-00002.gguf", 0, 2, 3, ["a"])
    lone_shard(tmp_path / "n-00002-of-00002.gguf", 1, 2, 3, ["b"])
    with pytest.raises(FormatError, match=r"split\.tensors\.count is 3, and the 2 shards have 2 tensors"):
        open_gguf(tmp_path / "n-00001-of-00002.gguf")


def test_a_whole_model_is_not_merged(golden: Path, tmp_path: Path) -> None:
    for name in ("every-value.gguf", "parts/merged.gguf"):
        with (
            open_gguf(golden / "gguf_files" / name) as source,
            pytest.raises(FormatError, match="expected the first shard of a split model, found a whole one"),
        ):
            merge_gguf(source, tmp_path / "out.gguf")
    assert not contents(tmp_path)


def test_a_first_shard_without_tensors_is_read(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "model", METADATA, [[], TENSORS]) as writer:
        for index, data in enumerate(DATA):
            writer.write(index, 0, data)
    with open_gguf(tmp_path / "model-00001-of-00002.gguf") as file:
        assert [tensor.load().ravel().tolist() for tensor in file.tensors.values()] == DATA.tolist()


def test_shards_of_the_gguf_package_are_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="writes the shards")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    for index, data in enumerate(DATA):
        writer.add_tensor(f"t{index}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "model-00001-of-00003.gguf") as file:
        assert file.architecture == "llama"
        assert [tensor.load().tolist() for tensor in file.tensors.values()] == DATA.tolist()


def test_the_alignment_of_the_model_is_kept_where_it_is_said(tmp_path: Path) -> None:
    metadata: Metadata = {"general.alignment": u32(128)}
    with SplitWriter(tmp_path / "model", metadata, by_count(2)(TENSORS)) as writer:
        for index, data in enumerate(DATA):
            writer.write(index, 0, data)
    with open_gguf(tmp_path / "model-00001-of-00003.gguf") as file:
        merge_gguf(file, tmp_path / "merged.gguf")
        assert [tensor.load().ravel().tolist() for tensor in file.tensors.values()] == DATA.tolist()
    with open_gguf(tmp_path / "merged.gguf") as file:
        assert file.alignment == 128
        assert [tensor.load().ravel().tolist() for tensor in file.tensors.values()] == DATA.tolist()


# --- all shards or none ---------------------------------------------------------------------------------------------------


def test_shards_appear_only_when_all_are_complete(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "model", METADATA, by_count(2)(TENSORS)) as writer:
        for index, data in enumerate(DATA):
            writer.write(index, 0, data)
        assert all(name.startswith(".") for name in contents(tmp_path))
    assert sorted(contents(tmp_path)) == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert [shard.file_bytes for shard in writer.shards] == [len(data) for _, data in sorted(contents(tmp_path).items())]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), SplitWriter(tmp_path / "model", METADATA, by_count(2)(TENSORS)) as writer:
        writer.write(0, 0, DATA[0])
        raise error
    assert not contents(tmp_path)


def test_a_tensor_not_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 of 64 bytes"), SplitWriter(tmp_path / "m", METADATA, [TENSORS]) as writer:
        writer.write(0, 0, DATA[0])
    assert not contents(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_existing_shard_stops_all(tmp_path: Path, number: int) -> None:
    old = shard_path(tmp_path / "model", number, 3)
    old.write_bytes(b"old")
    with pytest.raises(OutputError, match=f"{old.name}: the file exists"):
        write_shards(tmp_path / "model")
    assert contents(tmp_path) == {old.name: b"old"}
    write_shards(tmp_path / "model", overwrite=True)
    assert len(contents(tmp_path)) == 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_shard_that_appears_meanwhile_stops_all(tmp_path: Path, number: int) -> None:
    late = shard_path(tmp_path / "model", number, 3)
    with (
        pytest.raises(OutputError, match=f"{late.name}: the file exists"),
        SplitWriter(tmp_path / "model", METADATA, by_count(2)(TENSORS)) as writer,
    ):
        for index, data in enumerate(DATA):
            writer.write(index, 0, data)
        late.write_bytes(b"somebody else's")
    assert contents(tmp_path) == {late.name: b"somebody else's"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def reserve(descriptor: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", reserve, raising=False)
    with pytest.raises(OutputError, match=r"model-00003-of-00003\.gguf: no space left on the disk"):
        write_shards(tmp_path / "model")
    assert not contents(tmp_path)


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    shards = [shard.path for shard in write_shards(tmp_path / "model").shards]
    before = contents(tmp_path)
    with open_gguf(shards[0]) as source:
        for path in shards:
            with pytest.raises(OutputError, match="would replace the model it is made from"):
                merge_gguf(source, path, overwrite=True)
        with pytest.raises(OutputError, match="would replace the model it is made from"):
            split_gguf(source, tmp_path / "model", by_count(2), overwrite=True)
    assert contents(tmp_path) == before


def test_copies_larger_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "model")
    monkeypatch.setattr("quantcli.formats.gguf.split._COPIED_AT_ONCE", 7)
    copied_bytes: list[int] = []
    with open_gguf(tmp_path / "model-00001-of-00003.gguf") as source:
        merge_gguf(source, tmp_path / "whole.gguf", advance=copied_bytes.append)
    assert sum(copied_bytes) == DATA.nbytes
    with open_gguf(tmp_path / "whole.gguf") as whole:
        loaded = np.concatenate([tensor.load().reshape(1, -1) for tensor in whole.tensors.values()])
        assert np.array_equal(loaded, DATA)


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    tensors = [TensorInfo(name, (1, 1 << 23), TYPES["F32"]) for name in "ab"]
    with GGUFWriter(tmp_path / "large.gguf", METADATA, tensors) as writer:
        for index in range(2):
            for start in range(0, 1 << 25, 1 << 20):
                writer.write(index, start, bytes(1 << 20))
    tracemalloc.start()
    try:
        with open_gguf(tmp_path / "large.gguf") as source:
            shards = split_gguf(source, tmp_path / "large", by_count(1))
        with open_gguf(shards[0].path) as source:
            merge_gguf(source, tmp_path / "merged.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert [shard.file_bytes for shard in shards] == [shard.path.stat().st_size for shard in shards]
