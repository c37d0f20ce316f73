"""Read a model from the hub without downloading it.

Side files are downloaded whole, to a file system in memory if there is one. Of weight files the headers are read, and then
the requested rows, in blocks. A few threads prefetch further blocks, so that sequential reads do not wait for the latency
of each block. Random reads of rows within a block need one request.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

from quantcli.core.errors import FormatError, HubError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, read_checkpoint
from quantcli.formats.checkpoint.directory import Folder, leads_outside
from quantcli.formats.checkpoint.weights import weight_files
from quantcli.formats.hub.models import HubClient, HubFile, HubModel, checkpoint_files
from quantcli.formats.hub.ranges import RangeReader, WebFile
from quantcli.tensors.files import DataFile

BLOCK: Final = 1 << 22
"""Bytes of a block of rows, which is one request."""

BLOCKS: Final = 32
"""The number of cached blocks, of all files together."""

AHEAD: Final = 4
"""The number of blocks that are prefetched after the one that is read."""

PAGE: Final = 1 << 15
"""Bytes of a page of headers. A longer header is one request."""

PAGES: Final = 1024
"""The number of cached pages, of all files together."""

CONNECTIONS: Final = 8
"""The number of simultaneous requests."""

_MEMORY: Final = Path("/dev/shm")
"""Linux's file system in memory."""

_SPARE: Final = 1 << 26
"""Bytes to leave free in `_MEMORY`."""


def open_remote(model: HubModel, *, endpoint: str | None = None) -> Checkpoint:
    """Open a model of the hub as `open_checkpoint` opens a local one. Closing it removes the side files.

    The revision is resolved once: everything is read from its current commit.

    Raises:
        HubError: if there is no such model or revision, no access to it, no answer, or a side file arrives damaged. Tensors
            raise it too when they are read.
        ModelError, FormatError, UnsupportedError: as `open_checkpoint`.
    """
    client = HubClient.connect(model, endpoint, None)
    with client.explaining():
        commit, files = client.listing()
    names = checkpoint_files(model, files)
    weights = weight_files(names)
    reader = client.range_reader()
    small = [files[name] for name in names if name not in weights]
    with ExitStack() as stack:
        # On closing, requests are aborted and their threads joined before the directory is removed.
        needed = sum(file.size or 0 for file in small)
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="quantcli-", dir=_small_place(needed)))
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch")
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(reader.close)
        folder = RemoteFolder(
            Path(str(model)),
            {name: client.web_file(files[name], commit, reader) for name in weights},
            _Cache(pool, reader, PAGE, PAGES),
            _Cache(pool, reader, BLOCK, BLOCKS),
        )
        folder.prefetch_headers()
        directory = Path(place) / model.name
        directory.mkdir()
        list(pool.map(partial(_fetch_whole, client, reader, commit, directory), small))
        checkpoint = read_checkpoint(folder.path, directory, folder)
        return checkpoint.owning(stack.pop_all().close, interrupt=reader.close)


def _small_place(needed: int) -> Path | None:
    """The parent directory for `needed` bytes of files: in memory if they fit, or None for that of temporary files."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < needed + _SPARE:
        return None
    return _MEMORY


def _fetch_whole(client: HubClient, reader: RangeReader, commit: str, directory: Path, file: HubFile) -> None:
    web = client.web_file(file, commit, reader)
    if leads_outside(file.name):
        raise HubError(f"{web.label}: a name that leads out of the repository", hint="Download the model and check it.")
    data = bytearray(web.size)
    reader.read_into(web, memoryview(data), 0)
    path = directory / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if damage := file.damage(path):
        raise HubError(f"{web.label}: arrived damaged: {damage}", hint="Run the command again.")


class _Cache:
    """An LRU cache of blocks of files. Each block is fetched once, however many threads read it."""

    def __init__(self, pool: ThreadPoolExecutor, reader: RangeReader, block: int, capacity: int) -> None:
        self.block = block
        self.reader = reader
        self._pool = pool
        self._capacity = capacity
        self._blocks: OrderedDict[tuple[WebFile, int], Future[bytearray]] = OrderedDict()
        self._lock = Lock()

    def get(self, file: WebFile, number: int, ahead: int = 0) -> bytearray:
        """Block `number` of a file. The next `ahead` blocks are prefetched."""
        wanted = self._start(file, number)
        for later in range(number + 1, number + 1 + ahead):
            self._start(file, later)
        try:
            return wanted.result()
        except BaseException:
            with self._lock:  # a failed block is fetched again at the next read
                self._blocks.pop((file, number), None)
            raise

    def start(self, file: WebFile, numbers: Iterable[int]) -> None:
        """Prefetch blocks."""
        for number in dict.fromkeys(numbers):
            self._start(file, number)

    def _start(self, file: WebFile, number: int) -> Future[bytearray]:
        if number * self.block >= file.size:
            return _NOTHING
        with self._lock:
            found = self._blocks.get((file, number))
            if found is None:
                found = self._blocks[file, number] = self._pool.submit(self._fetch, file, number)
                if len(self._blocks) > self._capacity:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end((file, number))
            return found

    def _fetch(self, file: WebFile, number: int) -> bytearray:
        start = number * self.block
        data = bytearray(min(self.block, file.size - start))
        self.reader.read_into(file, memoryview(data), start)
        return data


_NOTHING: Final[Future[bytearray]] = Future()
_NOTHING.set_result(bytearray())


class RemoteFile(DataFile):
    """A file of the hub, read by range requests."""

    def __init__(self, path: Path, file: WebFile, pages: _Cache, blocks: _Cache) -> None:
        self.path = path
        self.size = file.size
        self._file = file
        self._pages = pages
        self._blocks = blocks

    @property
    def identity(self) -> str:
        """Its size, and its URL with the commit."""
        return f"{self.size} {self._file.url}"

    def read_into(self, out: memoryview, position: int) -> None:
        """See `DataFile.read_into`."""
        self._read(self._blocks, out, position, AHEAD)

    def expect(self, positions: Iterable[int]) -> None:
        """See `DataFile.expect`."""
        self._pages.start(self._file, (position // PAGE for position in positions))

    def _read_small(self, out: memoryview, position: int) -> None:
        if len(out) <= PAGE:
            self._read(self._pages, out, position, 0)
        else:
            self._pages.reader.read_into(self._file, out, position)

    def _read(self, cache: _Cache, out: memoryview, position: int, ahead: int) -> None:
        if position + len(out) > self.size:
            what = f"the file ends {position + len(out) - self.size} bytes early"
            raise FormatError(self.path, what, offset=position)
        while out:
            number, start = divmod(position, cache.block)
            part = memoryview(cache.get(self._file, number, ahead))[start : start + len(out)]
            out[: len(part)] = part
            out, position = out[len(part) :], position + len(part)


@dataclass(frozen=True)
class RemoteFolder(Folder):
    """The weight files of a repository at a commit."""

    path: Path
    files: dict[str, WebFile]
    pages: _Cache
    blocks: _Cache

    def names(self) -> list[str]:
        """See `Folder.names`."""
        return sorted(self.files)

    def open(self, name: str) -> DataFile | None:
        """See `Folder.open`."""
        if leads_outside(name):
            raise FormatError(self.path, f"the file name {name!r} leads out of the repository")
        file = self.files.get(name)
        return None if file is None else RemoteFile(self.path / name, file, self.pages, self.blocks)

    def prefetch_headers(self) -> None:
        """Prefetch the first page of every file."""
        for file in self.files.values():
            self.pages.start(file, [0])
