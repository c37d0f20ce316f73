"""The cache of machine code on disk: a folder for each version of the kernels, a file for each kernel and its types."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, Final
from uuid import uuid4

import numba
from numba.core import caching
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from quantcli.kernels.old_caches import PREFIX, mark_used, remove_unused

NOWHERE: Final = Path(os.devnull)
"""A path that is no directory: nothing can be read from or written below it."""

ENDING: Final = ".nbc"

WRITING: Final = Lock()
"""Held while a file is written. A process that ends itself takes it first, so that it leaves no partial file."""


def cache_directory() -> Path:
    """The directory of compiled kernels, under `QUANTCLI_CACHE_DIR` or the user's cache directory.

    Its name contains `sources_digest`, since numba does not notice an edited helper in another module. For a user without a
    home directory it is a path below `NOWHERE`, where no file can exist.
    """
    root = os.environ.get("QUANTCLI_CACHE_DIR")
    return (Path(root).absolute() if root else _user_cache() / "quantcli") / f"{PREFIX}{sources_digest()}"


def _user_cache() -> Path:
    variable, folder = _USER_CACHES.get(sys.platform, _USER_CACHES["linux"])
    named = Path(os.environ.get(variable, "")) if variable else Path()
    if named.is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    return home / folder if home.is_absolute() else NOWHERE


_USER_CACHES = {
    "win32": ("LOCALAPPDATA", "AppData/Local"),
    "darwin": ("", "Library/Caches"),
    "linux": ("XDG_CACHE_HOME", ".cache"),
}
"""By platform: the environment variable that names the user's cache directory, and the default below the home directory."""


def keeps_kernels() -> bool:
    """Whether the cache directory is writable, so that kernels compiled now persist to the next run."""
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def kept_kernels() -> list[Path]:
    """The files of compiled kernels in the cache directory."""
    return sorted(cache_directory().glob(f"*{ENDING}"))


@cache
def sources_digest() -> str:
    """A digest of every source file under `kernels/`, of the block types, and of `QUANTCLI_SIMD` (the instruction set)."""
    digest = hashlib.sha256(os.environ.get("QUANTCLI_SIMD", "").encode())
    here = Path(__file__).parent
    for source in (here.parent / "core" / "block_types.py", *sorted(here.rglob("*.py"))):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_directory())

    def get_source_stamp(self) -> str:
        return sources_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        return cls(py_func, py_file)


class _CacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Locator]  # noqa: RUF012 -- numba's own interface: a list it reads and never changes


class _CacheFiles:
    """The files of one kernel, one for each key: its types, the processor, and what is in its closure.

    numba's own files are numbered, and an index file has the number of each key. Two processes that compile different keys
    at the same time choose the same number, and then the index gives the code of the one for the key of the other. Here the
    name of a file has a digest of the key, and the file has the key itself.

    A file begins with the SHA-256 of the rest. One that is damaged, unreadable or owned by another user counts as absent
    and is rewritten if possible. Unpickling it could run arbitrary code.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._stem = stem

    def path(self, key: Any) -> Path:
        """The file of a key."""
        digest = hashlib.sha256(repr((numba.__version__, key)).encode()).hexdigest()[:16]
        return self._folder / f"{self._stem}.{digest}{ENDING}"

    def holds(self, key: Any) -> bool:
        """Whether the file of a key is present and valid."""
        try:
            return bool(_unsealed(self.path(key)))
        except OSError:
            return False

    def load(self, key: Any) -> Any:
        """The compiled code, reduced as numba does, or None."""
        try:
            stored, data = pickle.loads(_unsealed(self.path(key)))
        except OSError:
            return None
        return data if stored == key else None

    def save(self, key: Any, data: Any) -> None:
        """Write compiled code, at once or not at all. Raises OSError where that fails."""
        content = caching.dumps((key, data))
        path = self.path(key)
        partial = path.with_name(f"{path.name}.tmp.{uuid4().hex[:16]}")
        with WRITING:
            try:
                partial.write_bytes(hashlib.sha256(content).digest() + content)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


def _unsealed(path: Path) -> bytes:
    """The verified content of a cache file. Raises OSError if it is damaged or owned by another user (other than root)."""
    with path.open("rb") as file:
        owner = os.fstat(file.fileno()).st_uid
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, "the file is another user's", str(path))
        content = file.read()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise OSError(errno.EIO, "the file is damaged", str(path))
    return content[size:]


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """numba's function cache, with three differences.

    A kernel may have other jitted functions in its closure. numba's own key pickles them with an identifier that is new in
    every process, so such a kernel would be recompiled each time. Here the key has their names and closures instead.

    Several processes may fill it at the same time: see `_CacheFiles`.

    A cache that cannot be read or written costs compile time but never fails the run.
    """

    _impl_class = _CacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CacheFiles(Path(self._cache_path), self._impl.filename_base)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (sig, codegen.magic_tuple(), _identity(self._py_func))

    def holds(self, types: tuple[Any, ...], target_context: Any) -> bool:
        """Whether the on-disk cache has this kernel for arguments of these numba types."""
        return self._cache_file.holds(self._index_key(types, target_context.codegen()))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Compiled code from the disk, or None if no usable code is there."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # code written by another version of llvmlite may fail to load in any way
            return None
        if found is not None:
            mark_used(Path(self._cache_path))
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write compiled code to disk if possible; on an OS error, disable the cache."""
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()
        else:
            remove_unused(Path(self._cache_path))


def _identity(value: Any) -> Any:
    """A cache key for a function or a value in its closure, stable across processes."""
    if isinstance(value, Dispatcher):
        value = value.py_func
    elif isinstance(value, _Intrinsic):
        value = value._defn
    if callable(value) and hasattr(value, "__code__"):
        cells = value.__closure__ or ()
        return (value.__module__, value.__qualname__, *(_identity(cell.cell_contents) for cell in cells))
    return repr(value)
