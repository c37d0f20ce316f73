"""Worker processes for untrusted data: isolated from the working directory, limited in time and memory.

    python -I isolated.py MODULE:FUNCTION [PLACES]

Some steps that files ask for have no bound of their own: regular expressions, normalizers that lengthen a text. With `call`
they run in such a process, so that an endless step becomes an error message.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_PACKAGE: Final = Path(__file__).resolve().parents[1]

SECONDS: Final = 30
"""The limit on a call's CPU time."""

MEMORY: Final = 2 << 30
"""Bytes of address space that a call may add to the process, where the operating system can limit that."""

_TOO_MUCH: Final = f"take more than {MEMORY >> 30} GiB of memory"

_PATIENCE: Final = 12
"""The limit on wall-clock time, as a multiple of the CPU time, for a busy machine."""


def worker_command(entry: str) -> list[str]:
    """The command that calls `entry`, a `MODULE:FUNCTION` of this quantcli, in a new process.

    Neither the working directory nor environment variables affect its imports: it searches `sys.path` without that
    directory.
    """
    home = str(_PACKAGE.parent)
    places = [place for place in sys.path if Path(place).is_absolute() and not _is_working_directory(place)]
    # What quantcli needs may lie beside it.
    return [sys.executable, "-I", "-X", "utf8", __file__, entry, *places, home]


def _is_working_directory(place: str) -> bool:
    try:
        return Path(place).samefile(os.curdir)
    except OSError:
        return False


def call(function: Callable[..., _T], *arguments: Any, what: str, seconds: float = SECONDS) -> _T:
    """The result of a module's function, called in another process. Its warnings are issued here.

    Function, arguments and result are pickled. `what` names the file and the steps that may not end, for messages.

    Raises:
        UnsupportedError: if the call takes too much time or memory, or crashes.
    """
    from quantcli.core.errors import UnsupportedError

    request = pickle.dumps((seconds, function, arguments))
    try:
        done = subprocess.run(
            worker_command(f"{__name__}:answer_call"), input=request, capture_output=True, start_new_session=True,
            timeout=seconds * _PATIENCE, check=False,
        )  # fmt: skip
    except OSError as error:
        raise UnsupportedError(f"{what} need another process, and Python cannot be started: {error}") from None
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{what} do not end within {seconds:g} seconds") from None
    if done.returncode > 0:
        raise RuntimeError(f"a process of quantcli failed: {done.stderr.decode(errors='replace')}")
    if done.returncode:
        late = done.returncode == -getattr(signal, "SIGPROF", 0)
        crashed = f"{_TOO_MUCH}, or crash (status {done.returncode})"
        raise UnsupportedError(f"{what} {f'do not end within {seconds:g} seconds' if late else crashed}")
    warned, result, failure = pickle.loads(done.stdout)
    for warning in warned:
        warnings.warn(warning, stacklevel=2)
    if isinstance(failure, MemoryError):
        raise UnsupportedError(f"{what} {_TOO_MUCH}")
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def limit_memory(size: int) -> None:
    """Let this process add `size` bytes to its address space, where the operating system can limit that."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where they cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def limit_time(seconds: float) -> None:
    """Let SIGPROF kill this process after `seconds` of CPU time; 0: never.

    A signal handler that raises would have to wait for the current bytecode instruction.
    """
    if hasattr(signal, "setitimer"):  # not on Windows, where the parent process limits the time
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer_call() -> None:
    """Read a pickled call of `call` on stdin, and write its pickled outcome on stdout."""
    seconds, function, arguments = pickle.load(sys.stdin.buffer)
    limit_memory(MEMORY)
    limit_time(seconds)
    result, failure = None, None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = function(*arguments)
        except Exception as error:
            failure = error
    limit_time(0)
    sys.stdout.buffer.write(pickle.dumps(([entry.message for entry in warned], result, failure)))


def _main(entry: str, *places: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this process
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it may be ignored in the parent process
    sys.path += places
    _load_package()
    module, _, function = entry.partition(":")
    getattr(import_module(module), function)()


def _load_package() -> None:
    """Load this quantcli, whichever `sys.path` has."""
    spec = spec_from_file_location("quantcli", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)])
    assert spec is not None and spec.loader is not None
    sys.modules["quantcli"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    _main(*sys.argv[1:])
