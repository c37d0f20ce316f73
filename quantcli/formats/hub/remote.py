"""A model of the hub that is read where it is: no file of it is stored.

The small files are fetched whole, into memory where the system has a place for files in it. Of the tensors' files come the
headers, and then the rows that are asked for, in blocks that some threads fetch ahead: a reader in sequence does not wait
for the way to the server and back with each chunk, and one that jumps about does not go that way for each row.
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
"""Bytes of rows that are fetched at once."""

BLOCKS: Final = 32
"""Blocks that are kept, of all files together."""

AHEAD: Final = 4
"""Blocks behind one that is read that are fetched before they are asked for."""

PAGE: Final = 1 << 15
"""Bytes of headers that are fetched at once; a longer header comes in one piece."""

PAGES: Final = 1024

CONNECTIONS: Final = 8
"""Parts that are fetched at once."""

_MEMORY: Final = Path("/dev/shm")
"""Where Linux has files in memory."""

_SPARE: Final = 1 << 26
"""Bytes to leave free there."""


def open_remote(model: HubModel, *, endpoint: str | None = None) -> Checkpoint:
    """Open a model of the hub as `open_checkpoint` does one that is here. Closing it removes the small files.

    The revision is looked up once: all that is read is of the commit it is now.

    Raises:
        HubError: if there is no such model or revision, no access to it, no answer, or a small file arrives damaged; so do
            the tensors when they are read.
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
        # In the end, what is being fetched is broken off and waited for before its place is removed.
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
        folder.fetch_starts()
        directory = Path(place) / model.name
        directory.mkdir()
        list(pool.map(partial(_fetch_whole, client, reader, commit, directory), small))
        checkpoint = read_checkpoint(folder.path, directory, folder)
        return checkpoint.owning(stack.pop_all().close, interrupt=reader.close)


def _small_place(needed: int) -> Path | None:
    """Where to put files of `needed` bytes: in memory if it can be, else where temporary files go."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < needed + _SPARE:
        return None
    return _MEMORY


def _fetch_whole(client: HubClient, reader: RangeReader, commit: str, directory: Path, file: HubFile) -> None:
    web = client.web_file(file, commit, reader)
    if leads_outside(file.name):
        raise HubError(f"{web.label}: a name that leads out of the repository", hint="Download the model and look at it.")
    data = bytearray(web.size)
    reader.read_into(web, memoryview(data), 0)
    path = directory / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if damage := file.damage(path):
        raise HubError(f"{web.label}: arrived damaged: {damage}", hint="Run the command again.")


class _Cache:
    """Blocks of files, each fetched once however many threads ask for it, those that were asked for last kept."""

    def __init__(self, pool: ThreadPoolExecutor, reader: RangeReader, block: int, capacity: int) -> None:
        self.block = block
        self.reader = reader
        self._pool = pool
        self._capacity = capacity
        self._blocks: OrderedDict[tuple[WebFile, int], Future[bytearray]] = OrderedDict()
        self._lock = Lock()

    def get(self, file: WebFile, number: int, ahead: int = 0) -> bytearray:
        """Block `number` of a file; those behind it will soon be wanted."""
        wanted = self._start(file, number)
        for later in range(number + 1, number + 1 + ahead):
            self._start(file, later)
        try:
            return wanted.result()
        except BaseException:
            with self._lock:  # whoever asks again may be luckier
                self._blocks.pop((file, number), None)
            raise

    def start(self, file: WebFile, numbers: Iterable[int]) -> None:
        """Begin to fetch blocks that will be wanted."""
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
    """A file of the hub, read by ranges."""

    def __init__(self, path: Path, file: WebFile, pages: _Cache, blocks: _Cache) -> None:
        self.path = path
        self.size = file.size
        self._file = file
        self._pages = pages
        self._blocks = blocks

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
    """The weights of a repository at a commit."""

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

    def fetch_starts(self) -> None:
        """Begin to fetch where every file begins."""
        for file in self.files.values():
            self.pages.start(file, [0])
