"""What a writer leaves on the disk: a complete file or nothing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError, OutputError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Field, Metadata, ValueType, array, boolean, f32, i32, string, u32
from quantcli.formats.gguf.writer import GGUFWriter, make_layout
from quantcli.tensors.tensor import TensorInfo

METADATA: Metadata = {"general.architecture": string("llama"), "llama.block_count": u32(1)}
TENSORS = [TensorInfo("a.weight", (4, 8), TYPES["F32"])]
DATA = np.arange(32, dtype="<f4")


def write_all(path: Path, *, overwrite: bool = False) -> None:
    with GGUFWriter(path, METADATA, TENSORS, overwrite=overwrite) as writer:
        writer.write(0, 0, DATA)


def test_the_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with GGUFWriter(path, METADATA, TENSORS) as writer:
        writer.write(0, 64, DATA[16:])
        writer.write(0, 0, DATA[:16])
        assert not path.exists()
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".model.gguf.")
        assert hidden.stat().st_size == writer.file_bytes
    assert list(tmp_path.iterdir()) == [path]
    with open_gguf(path) as file:
        assert file.file_bytes == writer.file_bytes
        assert np.array_equal(file.tensors["a.weight"].load(), DATA.reshape(4, 8))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), GGUFWriter(tmp_path / "model.gguf", METADATA, TENSORS) as writer:
        writer.write(0, 0, DATA)
        raise error
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), GGUFWriter(path, METADATA, TENSORS, overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unfinished_tensor_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"a\.weight: 64 of 128 bytes"),
        GGUFWriter(tmp_path / "model.gguf", METADATA, TENSORS) as writer,
    ):
        writer.write(0, 0, DATA[:16])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("offset", "count"), [(-4, 1), (4, 32), (128, 1)])
def test_bytes_outside_the_tensor_are_refused(tmp_path: Path, offset: int, count: int) -> None:
    with (
        pytest.raises(ValueError, match="of a tensor of 128"),
        GGUFWriter(tmp_path / "model.gguf", METADATA, TENSORS) as writer,
    ):
        writer.write(0, offset, DATA[:count])


def test_an_existing_file_stays_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="the file exists") as caught:
        write_all(path)
    assert "--overwrite" in (caught.value.hint or "")
    assert path.read_bytes() == b"old"
    write_all(path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(OutputError, match="the file exists"), GGUFWriter(path, METADATA, TENSORS) as writer:
        writer.write(0, 0, DATA)
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the directory does not exist"):
        write_all(tmp_path / "none" / "model.gguf")


def test_a_target_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="found a directory"):
        write_all(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="not a regular file"):
        write_all(Path(os.devnull), overwrite=True)


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "disk" / "real.gguf")
    write_all(link)
    assert link.is_symlink()
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["real.gguf"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_all(tmp_path / "model.gguf")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "model.gguf").stat().st_mode) == 0o640


def test_a_long_name_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 122 + ".gguf")
    write_all(path)
    assert path.exists()


def test_a_disk_too_small_shows_at_once(tmp_path: Path) -> None:
    huge = [TensorInfo("a", (1 << 30, 1 << 22), TYPES["F32"])]
    with (
        pytest.raises(OutputError, match=r"no space left on the disk|larger than this file system allows"),
        GGUFWriter(tmp_path / "model.gguf", METADATA, huge),
    ):
        pytest.fail("a file of 16 PiB found room")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, view: memoryview, position: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="no space left") as caught, GGUFWriter(
        tmp_path / "model.gguf", METADATA, TENSORS
    ) as writer:  # fmt: skip
        monkeypatch.setattr(os, "pwrite", full, raising=False)
        writer.write(0, 0, DATA)
    assert str(tmp_path / "model.gguf") in caught.value.message
    assert not list(tmp_path.iterdir())


def test_a_read_only_place_is_named_by_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "a file nobody asked for")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        patched.setattr(os, "unlink", refuse)  # which such a file system does for a file that is not there
        patched.setattr(Path, "unlink", refuse)
        with pytest.raises(OutputError) as caught:
            write_all(tmp_path / "out.gguf")
    assert str(caught.value) == f"{tmp_path / 'out.gguf'}: the file system is read-only"


@pytest.mark.parametrize("missing", ["posix_fallocate", "fstatvfs"])
def test_a_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delattr(os, missing, raising=False)
    write_all(tmp_path / "model.gguf")
    with open_gguf(tmp_path / "model.gguf") as file:
        assert np.array_equal(file.tensors["a.weight"].load().ravel(), DATA)


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    write_all(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").stat().st_size == make_layout(METADATA, TENSORS).file_bytes


def test_writing_without_a_positional_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite", raising=False)
    write_all(tmp_path / "plain.gguf")
    monkeypatch.undo()
    write_all(tmp_path / "model.gguf")
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_threads_write_pieces_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = [TensorInfo(f"t{index}", (64, 100), TYPES["F32"]) for index in range(4)]
    values = np.random.default_rng(1).random((4, 64, 100), np.float32)
    with GGUFWriter(path, METADATA, tensors) as writer:

        def work(first: int) -> None:
            for row in reversed(range(first, 64, 4)):
                for index in range(4):
                    writer.write(index, row * 400, values[index, row])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with open_gguf(path) as file:
        assert all(np.array_equal(file.tensors[f"t{index}"].load(), values[index]) for index in range(4))


def test_a_layout_tells_the_size_before_anything_is_written(tmp_path: Path) -> None:
    layout = make_layout(METADATA, TENSORS)
    write_all(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    assert len(content) == layout.file_bytes
    assert content.startswith(layout.header)
    assert content[layout.offsets[0] :] == DATA.tobytes()


def test_leading_axes_of_one_are_not_written(tmp_path: Path) -> None:
    tensors = [
        TensorInfo("a", (1, 1, 8), TYPES["F32"]),
        TensorInfo("b", (), TYPES["F32"]),
        TensorInfo("c", (3, 1), TYPES["F32"]),
    ]
    with GGUFWriter(tmp_path / "model.gguf", {}, tensors) as writer:
        for index, info in enumerate(tensors):
            writer.write(index, 0, bytes(info.nbytes))
    with open_gguf(tmp_path / "model.gguf") as file:
        assert [tensor.shape for tensor in file.tensors.values()] == [(8,), (1,), (3, 1)]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([TensorInfo("é" * 32, (1,), TYPES["F32"])], "longer than the 63 bytes"),
        ([TensorInfo("a", (1, 1, 1, 1, 1), TYPES["F32"])], "5 dimensions, GGUF allows 4"),
        ([TensorInfo("a", (2, 33), TYPES["Q8_0"])], "rows of 33, not divisible by the Q8_0 block of 32"),
        ([TensorInfo("a", (1,), TYPES["F32"])] * 2, "two tensors are called 'a'"),
    ],
)
def test_tensors_that_gguf_cannot_hold(tensors: list[TensorInfo], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_layout({}, tensors)


@pytest.mark.parametrize(
    "field",
    [
        u32(-1),
        u32(2**32),
        i32(2**31),
        Field(ValueType.UINT8, 1.5),
        Field(ValueType.STRING, 3),
        string("\ud800"),
        array(ValueType.UINT8, [1, 256]),
        array(ValueType.INT32, [0.5]),
        array(ValueType.FLOAT32, [[1.0]]),
        array(ValueType.FLOAT32, ["a"]),
        array(ValueType.STRING, [1]),
        array(ValueType.ARRAY, []),
        Field(ValueType.ARRAY, [1]),
    ],
)
def test_metadata_that_does_not_fit_its_type(field: Field) -> None:
    with pytest.raises(ModelError, match=r"metadata key 'the\.key' cannot be written as"):
        make_layout({"the.key": field}, [])


@pytest.mark.parametrize("field", [u32(24), u32(0), i32(32), string("32"), boolean(True), f32(32)])
def test_an_alignment_that_is_none(field: Field) -> None:
    with pytest.raises(ModelError, match=r"general\.alignment"):
        make_layout({"general.alignment": field}, [])
