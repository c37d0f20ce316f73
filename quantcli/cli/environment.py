"""Removes numba's environment variables that would break kernels from this process, with a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Final, NamedTuple

_PREFIX: Final = "NUMBA_"
_MOST_THREADS: Final = 1024
_LEVELS: Final = ("0", "1", "2", "3", "max")


class _Rule(NamedTuple):
    """The valid values of a variable, as a test and in words."""

    accepts: Callable[[str], bool]
    expected: str


def _one_of(*values: str) -> _Rule:
    return _Rule(lambda value: value in values, "one of " + ", ".join(values))


_NONE: Final = _Rule(lambda value: not value, "none: kernels detect the CPU and have their own cache directory")
_RULES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        "NUMBA_NUM_THREADS": _Rule(
            lambda value: value.isdecimal() and 0 < int(value[:9]) <= _MOST_THREADS,
            f"a number from 1 to {_MOST_THREADS}",
        ),
        "NUMBA_DISABLE_JIT": _Rule(lambda value: value == "0", "0: kernels only run compiled"),
        "NUMBA_OPT": _one_of(*_LEVELS),
        "NUMBA_CPU_NAME": _NONE,
        "NUMBA_CPU_FEATURES": _NONE,
        "NUMBA_CACHE_LOCATOR_CLASSES": _NONE,
    }
)


def without_unusable(environment: MutableMapping[str, str]) -> Iterator[str]:
    """Remove variables with invalid values from `environment`, and yield a message for each."""
    for name, rule in _RULES.items():
        value = environment.get(name)
        if value is not None and not rule.accepts(value):
            del environment[name]
            yield f"the environment variable {name} is {value[:60]!r}, expected {rule.expected}; it is ignored"


def numba_variables(environment: Mapping[str, str]) -> list[str]:
    """The names of numba's variables, a possible cause of unexpected errors."""
    return sorted(name for name in environment if name.startswith(_PREFIX))
