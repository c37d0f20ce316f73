"""JIT compilation of kernels and the on-disk cache of machine code: the only numba options in the project.

`kernel` is for a function called from Python: compiled on first use, cached on disk, run without the GIL.
`inline` is for a helper called only from kernels: LLVM always inlines it. `inline_once` is for a large one with one call.

No fastmath and no FMA contraction anywhere: the order and rounding of every operation is part of the result.
"""

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
from typing import Any, TypeVar

import numba
from numba.core import caching
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from quantcli.kernels.old_caches import PREFIX, mark_used, remove_unused

_F = TypeVar("_F", bound=Callable[..., Any])

NOWHERE = Path(os.devnull)
"""A path that is no directory: nothing can be read from or written below it."""

def inline(function: _F) -> _F:
    """A helper that LLVM inlines into every kernel that calls it. Python cannot call it: generating the call wrappers would
    be a quarter of the compile time."""
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(nogil=True, error_model="numpy", **options)(function)  # type: ignore[no-any-return]


def inline_once(function: _F) -> _F:
    """A helper whose body numba copies to the place of each call, before it knows any types: for a large body that a kernel
    calls once, or twice.

    A helper marked `inline` is also optimized and turned into machine code by itself, although only its copies in kernels
    ever run. Here there are only the copies: with five large bodies of Q4_K's quantizer marked so, it compiled in 2.7 s
    instead of 4.4. But numba types and lowers every copy anew: with all its helpers marked so, it took 5.6 s. Such helpers
    should not be nested deeply either, since numba copies the whole body at every level.
    """
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)  # type: ignore[no-any-return]


def kernel(function: _F) -> _F:
    """A serial kernel. It releases the GIL, so a thread pool can run several at once."""
    return _cached(numba.njit(nogil=True, error_model="numpy")(function), function)


def _cached(dispatcher: Any, function: _F) -> _F:
    dispatcher._cache = KernelCache(function)
    return dispatcher  # type: ignore[no-any-return]


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


@cache
def sources_digest() -> str:
    """A digest of every source file under `kernels/`, of the block types, and of `QUANTCLI_SIMD` (the instruction set)."""
    digest = hashlib.sha256(os.environ.get("QUANTCLI_SIMD", "").encode())
    here = Path(__file__).parent
    for source in (here.parent / "core" / "block_types.py", *sorted(here.rglob("*.py"))):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def is_compiled(function: Any) -> bool:
    """Whether a kernel, or every kernel in a plain function's closure, is compiled for at least one signature, in this
    process or in the on-disk cache."""
    if isinstance(getattr(function, "_cache", None), KernelCache):
        return bool(function.signatures) or function._cache.holds_any()
    cells = getattr(function, "__closure__", None) or ()
    return all(is_compiled(cell.cell_contents) for cell in cells)


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


class _CacheFiles(caching.IndexDataCacheFile):  # type: ignore[misc]
    """numba's cache files of one kernel, each prefixed with the SHA-256 of its content.

    A file that is damaged, unreadable or owned by another user counts as absent and is rewritten if possible. Unpickling it
    could run arbitrary code.
    """

    def _load_index(self) -> dict[Any, str]:
        try:
            version, stamp, overloads = pickle.loads(_unsealed(self._index_path))
        except OSError:
            return {}
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        with self._open_for_write(self._index_path) as file:
            file.write(self._dump((self._version, self._source_stamp, overloads)))

    def holds(self, name: str) -> bool:
        """Whether a file of compiled code is present and valid."""
        try:
            return bool(_unsealed(self._data_path(name)))
        except OSError:
            return False

    def _load_data(self, name: str) -> Any:
        return pickle.loads(_unsealed(self._data_path(name)))

    def _dump(self, content: Any) -> bytes:
        data: bytes = super()._dump(content)
        return hashlib.sha256(data).digest() + data


def _unsealed(path: str) -> bytes:
    """The verified content of a cache file. Raises OSError if it is damaged or owned by another user (other than root)."""
    with open(path, "rb") as file:  # noqa: PTH123 -- numba's own interface: a path as a string
        owner = os.fstat(file.fileno()).st_uid
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, "the file is another user's", path)
        content = file.read()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise OSError(errno.EIO, "the file is damaged", path)
    return content[size:]


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """numba's function cache, with two differences.

    A kernel may have other jitted functions in its closure. numba's own key pickles them with an identifier that is new in
    every process, so such a kernel would be recompiled each time. Here the key has their names and closures instead.

    A cache that cannot be read or written costs compile time but never fails the run.
    """

    _impl_class = _CacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CacheFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (sig, codegen.magic_tuple(), _identity(self._py_func))

    def holds_any(self) -> bool:
        """Whether the on-disk cache has this kernel for at least one signature."""
        own = _identity(self._py_func)
        files = self._cache_file
        return any(identity == own and files.holds(name) for (_, _, identity), name in files._load_index().items())

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
