"""A source that changes while it is read: one error, and no output."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantcli.conversion.convert import Progress, convert
from quantcli.conversion.lora.gguf_adapter import convert_adapter
from quantcli.conversion.lora.merge import AdapterRequest
from quantcli.core.errors import FormatError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.shards import by_count
from quantcli.formats.gguf.split import merge_gguf, split_gguf

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS)]

from lora_cases import adapter, pair  # noqa: E402
from tiny_checkpoint import write_adapter  # noqa: E402

Q = "model.layers.0.self_attn.q_proj"


def overwrite(path: Path) -> None:
    """The same size, other bytes at the end, a nanosecond later."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def grow(path: Path) -> None:
    before = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same size and time."""
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(bytes(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


CHANGES = [overwrite, grow, replace, remove]
if os.name == "nt":  # an open file cannot be replaced there
    CHANGES = [overwrite, grow]


class Once:
    """A callback of progress that changes a file: after the first chunk, or with `start` after the last one."""

    def __init__(self, change: Callable[[Path], None], path: Path) -> None:
        self.change, self.path, self.left = change, path, 1

    def start(self, total: int) -> None:
        self.left = total

    def __call__(self, done: int) -> None:
        if 0 < self.left <= done:
            self.change(self.path)
        self.left -= done


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden / "stories260K", tmp_path / "model", copy_function=shutil.copyfile)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", [{}, {"max_shard_bytes": 200_000}])
def test_a_checkpoint(model: Path, tmp_path: Path, change: Callable[[Path], None], how: dict[str, int]) -> None:
    (tmp_path / "out").mkdir()
    weights = model / "model.safetensors"
    progress = Progress(advance=Once(change, weights))
    with pytest.raises(FormatError, match="the file has changed while it was read") as caught:
        convert(model, ("F16", "F32"), tmp_path / "out", progress=progress, threads=1, **how)  # type: ignore[arg-type]
    assert caught.value.path == str(weights)
    assert caught.value.exit_status == 1
    assert not list((tmp_path / "out").iterdir())


def test_an_adapter(model: Path, tmp_path: Path) -> None:
    place = write_adapter(tmp_path, adapter(pair(Q, 64, 64)))
    for work in (
        lambda progress: convert(
            model, "F16", tmp_path / "out.gguf", adapters=[AdapterRequest(place)], threads=1, progress=progress
        ),
        lambda progress: convert_adapter(place, "F16", tmp_path / "out.gguf", base=model, threads=1, progress=progress),
    ):
        with pytest.raises(FormatError, match=r"adapter_model\.safetensors: the file has changed while it was read"):
            once = Once(overwrite, place / "adapter_model.safetensors")
            work(Progress(start=once.start, advance=once))
        assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_splitting_and_merging(golden: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    source, out = tmp_path / "source.gguf", tmp_path / "out"
    out.mkdir()
    source.write_bytes((golden / "gguf_files" / "every-value.gguf").read_bytes())
    with open_gguf(source) as file:
        split_gguf(file, tmp_path / "part", by_count(2))
    with open_gguf(tmp_path / "part-00001-of-00003.gguf") as file, pytest.raises(FormatError, match="part-00002"):
        merge_gguf(file, out / "whole.gguf", advance=Once(change, tmp_path / "part-00002-of-00003.gguf"))
    with open_gguf(source) as file, pytest.raises(FormatError, match="the file has changed while it was read"):
        split_gguf(file, out / "m", by_count(2), advance=Once(change, source))
    assert not list(out.iterdir())
