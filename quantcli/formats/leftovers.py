"""Hidden temporary files beside a target: their names, their locks, and what a killed run left of them.

Names, with eight random hexadecimal digits:

    .TARGET.1a2b3c4d.part      a file or a directory that is being written, or a directory whose content is no longer needed
    .TARGET.1a2b3c4d.journal   which parts of it are written, where a later run may continue: `written_ranges`
    .PREFIX.1a2b3c4d.old       a directory with the shards of a model that is being replaced, each under its own name

The process that works on one holds an exclusive lock (flock) on it. The system releases the lock when the process ends, so
that an entry without a lock was left by a killed run. Where the system or the file system has no such locks, no entry is
taken for one that was left.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # Windows, which cannot rename an open file either
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS: Final = fcntl is not None
"""Whether this system has locks that end with their process."""

_NAME_SHOWN: Final = 60
"""Characters of the target's name in that of the temporary file: a file name has at most 255 bytes."""
_WRITTEN: Final = "part"
_REPLACED: Final = "old"
_JOURNAL: Final = "journal"
_NAME: Final = re.compile(rf"\.(?P<label>.+)\.[0-9a-f]{{8}}\.(?P<kind>{_WRITTEN}|{_REPLACED}|{_JOURNAL})", re.DOTALL)
_CREATING: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_OPENING: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def label_of(name: str) -> str:
    """The part of a target's name that the name of its temporary file contains."""
    return name[:_NAME_SHOWN]


def create_temporary(target: Path) -> tuple[Path, int]:
    """Create the temporary file of `target` and lock it. Returns its path and its open descriptor.

    Raises:
        OSError: if it cannot be created.
    """
    return _create(target, _WRITTEN, lambda path: os.open(path, _CREATING, 0o666))


def journal_of(temporary: Path) -> Path:
    """The path of the journal of a temporary file."""
    return temporary.with_suffix(f".{_JOURNAL}")


def journals_for(target: Path) -> list[Path]:
    """The journals of temporary files whose names are those for `target`, also of running processes. Sorted by name.

    Raises:
        OSError: if the directory cannot be read.
    """
    found = ((path, _NAME.fullmatch(path.name)) for path in sorted(target.parent.iterdir()))
    return [path for path, name in found if name and name["kind"] == _JOURNAL and name["label"] == label_of(target.name)]


def create_temporary_directory(target: Path) -> tuple[Path, int]:
    """Create the temporary directory of `target` and lock it. Returns its path and its open descriptor, or -1.

    Raises:
        OSError: if it cannot be created.
    """
    return _create(target, _WRITTEN, _make_directory)


class SetAside:
    """The old shards of a model while they are replaced, moved to a directory beside them.

    `restore` moves them back, `discard` removes them. If the process is killed before either, the next run with the same
    target does so (`Leftover.clear`).
    """

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        self._folders: dict[Path, tuple[Path, int]] = {}
        self._moved: list[tuple[Path, Path]] = []

    def move(self, file: Path) -> None:
        """Move a file away from its path, if there is one.

        Raises:
            OSError: if it cannot be moved.
        """
        if not file.exists():
            return
        if file.parent not in self._folders:
            self._folders[file.parent] = _create(file.with_name(self._prefix.name), _REPLACED, _make_directory)
        kept = self._folders[file.parent][0] / file.name
        # First in the list, so that an interrupt between the two lines loses nothing.
        self._moved.append((kept, file))
        file.rename(kept)

    def restore(self) -> None:
        """Move all files back, the first one last, as it was moved away first."""
        for kept, file in reversed(self._moved):
            with suppress(FileNotFoundError):
                kept.replace(file)
        for folder, descriptor in self._folders.values():
            folder.rmdir()
            _close(descriptor)
        self._forget()

    def discard(self) -> None:
        """Remove all files: the new ones are in their places."""
        for folder, descriptor in self._folders.values():
            _remove_replaced(folder)
            _close(descriptor)
        self._forget()

    def _forget(self) -> None:
        self._folders, self._moved = {}, []


@dataclass(frozen=True)
class Leftover:
    """An entry that a killed run left.

    path       the temporary file or directory, or a journal whose temporary file is gone
    nbytes     its size
    restored   the files that `clear` puts back: shards of a model whose replacement was interrupted
    """

    path: Path
    nbytes: int
    restored: tuple[Path, ...] = ()

    def clear(self) -> bool:
        """Remove the entry, and put back the files in it that are to be restored. False if a running process has it now.

        Raises:
            OSError: if the system refuses.
        """
        with _locked(self.path) as free:
            if not free:
                return False
            if not self.path.is_dir():
                self.path.unlink(missing_ok=True)
                journal_of(self.path).unlink(missing_ok=True)
            elif restored := _restored(self.path):
                # The first shard last, so that an interrupt leaves no mixture that can be opened.
                for file in reversed(restored):
                    (self.path / file.name).replace(file)
                self.path.rmdir()
            else:
                _remove_replaced(self.path)
            return True


def find_leftovers(
    directory: Path, wanted: Callable[[str], bool] = lambda label: True, *, resumable: bool = True
) -> list[Leftover]:
    """What killed runs left in a directory, for targets whose label (`label_of`) is `wanted`. Sorted by name.

    Without `resumable` only what no run can continue.

    Raises:
        OSError: if the directory cannot be read.
    """
    found = []
    for path in sorted(directory.iterdir()):
        named = _NAME.fullmatch(path.name)
        if not named or not wanted(named["label"]) or not _is_entry(path, named["kind"], resumable=resumable):
            continue
        with _locked(path) as free:
            if free:
                found.append(_described(path))
    return found


def _is_entry(path: Path, kind: str, *, resumable: bool) -> bool:
    """Whether a path is an entry by itself: a journal belongs to its temporary file, as long as there is one."""
    if kind == _JOURNAL:
        return resumable and not path.with_suffix(f".{_WRITTEN}").exists()
    return resumable or not journal_of(path).exists()


def clear_leftovers(directory: Path, wanted: Callable[[str], bool], *, resumable: bool = True) -> None:
    """Clear what `find_leftovers` finds. What cannot be removed is left: it does no harm."""
    with suppress(OSError):
        for leftover in find_leftovers(directory, wanted, resumable=resumable):
            with suppress(OSError):
                leftover.clear()


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Wait until no other process replaces files in this directory. Without such locks nothing is waited for."""
    descriptor = -1
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(directory, _OPENING)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        _close(descriptor)


def _create(target: Path, kind: str, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create an entry for `target` and lock it."""
    while True:
        path = target.with_name(f".{label_of(target.name)}.{secrets.token_hex(4)}.{kind}")
        descriptor = create(path)
        # Before it is locked, another process may take it for one that was left, and remove it.
        if descriptor < 0 or (lock(descriptor) is not False and path.exists()):
            return path, descriptor
        _close(descriptor)


def _make_directory(path: Path) -> int:
    path.mkdir()
    try:
        return os.open(path, _OPENING) if HAS_LOCKS else -1
    except BaseException:
        path.rmdir()
        raise


def lock(descriptor: int) -> bool | None:
    """Lock a file until it is closed. False if another process has locked it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock an entry, and tell whether it is one that a killed run left."""
    descriptor = -1
    try:
        with suppress(OSError):
            descriptor = os.open(path, _OPENING)
        yield descriptor >= 0 and _is_ours(path, descriptor) and lock(descriptor) is True and path.exists()
    finally:
        _close(descriptor)


def _is_ours(path: Path, descriptor: int) -> bool:
    """Whether an entry is of the sort that its name says."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and path.suffix != f".{_REPLACED}")


def _described(path: Path) -> Leftover:
    if not path.is_dir():
        return Leftover(path, path.stat().st_size)
    return Leftover(path, sum(file.stat().st_size for file in path.iterdir()), tuple(_restored(path)))


def _restored(folder: Path) -> list[Path]:
    """The places of the files in `folder`, in order, if they are to be put back there.

    The first shard is moved away first and published last. So the new model is complete if its place is taken.
    """
    if folder.suffix != f".{_REPLACED}":
        return []
    places = sorted(folder.parent / file.name for file in folder.iterdir())
    return places if places and not places[0].exists() else []


def _remove_replaced(folder: Path) -> None:
    """Remove a directory of replaced files. After the first step no later run puts them back."""
    doomed = folder.with_suffix(f".{_WRITTEN}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
