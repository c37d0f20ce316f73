"""Write split models, and split and merge GGUF files, byte for byte as llama.cpp's `gguf-split`.

Source: `tools/gguf-split/gguf-split.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from numpy.typing import NDArray

from quantcli.core.errors import FormatError, OutputError, UsageError
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.formats.gguf.shards import (
    COUNT_KEY,
    MAX_SHARDS,
    Partition,
    Shards,
    is_temporary_of,
    merged_metadata,
    shard_metadata,
    shard_path,
    shard_prefix,
)
from quantcli.formats.gguf.spec import Field
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.journal import Subject
from quantcli.formats.leftovers import SetAside, clear_leftovers, exclusive
from quantcli.formats.output_file import refuse_overwriting
from quantcli.formats.tensor_writer import Shard, TensorWriter
from quantcli.tensors.files import expect_unchanged
from quantcli.tensors.tensor import StoredTensor, files_of

_COPIED_AT_ONCE: Final = 1 << 22
"""Bytes of the buffer with which tensors are copied."""


class SplitWriter:
    """Writes a model as shards `PREFIX-00001-of-00003.gguf` ...; a context manager that is used like a `GGUFWriter`.

    `tensors` are the tensors of each shard. `write` takes the index over all shards. On leaving without an exception all
    shards appear at their paths, the first one last. After an exception none does, and no temporary file is left. Shards
    that `overwrite` allows to be replaced are kept then. If the process is killed while it replaces them, the first shard
    is missing, so that no program takes old and new shards for one model. The next run with the same target, or
    `quantize clean`, puts the old ones back. `resume` is that of `OutputFile`.

    Raises:
        UsageError: for more shards than GGUF can count.
        ModelError: for metadata or tensors that GGUF cannot hold.
        OutputError: on entering, or later, if a shard exists (unless `overwrite`) or the disk is full.
        ValueError: on leaving, if some tensor was not written in full.
    """

    def __init__(
        self,
        prefix: Path,
        metadata: Mapping[str, Field],
        tensors: Shards,
        *,
        overwrite: bool = False,
        resume: Subject | None = None,
    ) -> None:
        count, total = len(tensors), sum(map(len, tensors))
        if count > MAX_SHARDS:
            raise UsageError(f"{count} shards needed, but at most {MAX_SHARDS} are possible", hint="allow larger shards")
        self.shards: list[Shard] = []
        self._prefix = prefix
        self._overwrite = overwrite
        self._resumes = resume is not None
        self._writers: list[GGUFWriter] = []
        self._places: list[tuple[GGUFWriter, int]] = []
        for number, own in enumerate(tensors, 1):
            path, keys = shard_path(prefix, number, count), shard_metadata(metadata, number, count, total)
            writer = GGUFWriter(path, keys, own, overwrite=overwrite, resume=resume)
            self.shards += writer.shards
            self._writers.append(writer)
            self._places += ((writer, index) for index in range(len(own)))

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Put `data` at byte `offset` of tensor `index`, counted over all shards. Safe to call from several threads."""
        writer, own_index = self._places[index]
        writer.write(own_index, offset, data)

    def holds_rows(self, index: int, offset: int, count: int) -> bool:
        """See `TensorWriter.holds_rows`."""
        writer, own_index = self._places[index]
        return writer.holds_rows(own_index, offset, count)

    def forget(self) -> None:
        """See `TensorWriter.forget`. What interrupted runs with another division into shards left goes, too."""
        for writer in self._writers:
            writer.forget()
        if self._resumes:
            self._clear_leftovers(resumable=True)

    def _clear_leftovers(self, *, resumable: bool) -> None:
        first = self._writers[0].target
        clear_leftovers(first.parent, partial(is_temporary_of, shard_prefix(first).name), resumable=resumable)

    def __enter__(self) -> Self:
        self._clear_leftovers(resumable=not self._resumes)
        if not self._overwrite and not self._resumes:  # with `resume` existing shards may be those of this run
            self._refuse_incomplete()
        try:
            for writer in self._writers:
                writer.__enter__()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for writer in self._writers:
                    writer.complete()
                self._publish()
        finally:
            self._discard()

    def _refuse_incomplete(self) -> None:
        """Say of shards without the first one that they are no model, before they are refused as existing files."""
        paths = [writer.path for writer in self._writers]
        found = [path for path in paths if path.exists()]
        if found and not paths[0].exists():
            hint = f"{paths[0].name} is missing: a run was interrupted, or shards were moved; --overwrite replaces the rest"
            raise OutputError(f"{found[0]}: the file exists", hint=hint)

    def _publish(self) -> None:
        first = self._writers[0].target
        with exclusive(first.parent):
            aside = SetAside(shard_prefix(first))
            try:
                # The first shard is moved away first and appears last: without it no program opens the others as a model.
                for writer in self._writers:
                    writer.set_aside(aside)
                for writer in reversed(self._writers):
                    writer.publish()
            except BaseException:
                for writer in self._writers:
                    writer.withdraw()
                aside.restore()
                raise
            aside.discard()

    def _discard(self) -> None:
        for writer in self._writers:
            writer.discard()


def split_gguf(
    source: GGUFFile,
    prefix: Path,
    partition: Partition,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Shard]:
    """Split a model into shards with the name prefix `prefix`. `source` may itself be split.

    With `dry_run` nothing is written. `advance` is called with the bytes of tensors copied since the last call.

    Raises:
        UsageError: if the first tensor does not fit into a shard, or there would be too many shards.
        FormatError: if the source can no longer be read.
        OutputError: if a shard exists (unless `overwrite`), is the source, or cannot be written. Nothing is left then.
    """
    tensors = list(source.tensors.values())
    writer = SplitWriter(prefix, source.metadata, partition(tensors), overwrite=overwrite)
    if not dry_run:
        refuse_overwriting(source.paths, [shard.path for shard in writer.shards])
        with writer:
            copy_tensors(tensors, writer, advance)
    return writer.shards


def merge_gguf(
    source: GGUFFile, output: Path, *, overwrite: bool = False, advance: Callable[[int], None] = lambda done: None
) -> int:
    """Merge a split model into one file. Returns its size in bytes. `advance` is that of `split_gguf`.

    Raises:
        FormatError: if the source is not a split model, or can no longer be read.
        OutputError: if the output exists (unless `overwrite`), is a shard, or cannot be written. Nothing is left then.
    """
    if not source.get(COUNT_KEY):
        raise FormatError(source.path, "expected the first shard of a split model, found a whole one")
    tensors = list(source.tensors.values())
    writer = GGUFWriter(output, merged_metadata(source.metadata), tensors, overwrite=overwrite)
    refuse_overwriting(source.paths, [output])
    with writer:
        copy_tensors(tensors, writer, advance)
    return writer.file_bytes


def copy_tensors(tensors: Sequence[StoredTensor], writer: TensorWriter, advance: Callable[[int], None]) -> None:
    """Copy the data of tensors to an open writer of them. `advance` is called with the bytes copied since the last call.

    Raises:
        FormatError: if a source can no longer be read, or has changed meanwhile.
        OutputError: if they cannot be written.
    """
    buffer = memoryview(bytearray(_COPIED_AT_ONCE))
    for index, tensor in enumerate(tensors):
        for done in range(0, tensor.nbytes, len(buffer)):
            piece = buffer[: tensor.nbytes - done]
            tensor.file.read_into(piece, tensor.offset + done)
            writer.write(index, done, piece)
            advance(len(piece))
    expect_unchanged(files_of(tensors))
