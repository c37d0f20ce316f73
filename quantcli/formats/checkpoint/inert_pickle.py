"""Read a pickle as data, with an interpreter that cannot call, import or create Python objects.

Python's own unpickler can be restricted to a list of names, but it still allocates what a damaged file asks for, and
recurses into nested objects. Here the standard library only splits the bytes into operations (`pickletools.genops`). These
can build lists, tuples, dictionaries, strings, numbers, and the results of a fixed table of functions of this package.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from typing import Any, Final

from quantcli.core.errors import FormatError, UnsafePickleError

MAX_OPERATIONS: Final = 10_000_000
"""The most operations of a pickle. The state dict of a model with 60,000 tensors has 3 million."""

_HINT: Final = (
    "Only state dicts are read, and nothing in a pickle is executed. Save the weights alone: "
    "`torch.save(model.state_dict(), FILE)`, or better as safetensors."
)


@dataclass(frozen=True, slots=True)
class Constructor:
    """A global that a pickle may call.

    `build` returns plain data for the arguments, in constant time. It raises ValueError or TypeError for invalid arguments.
    """

    build: Callable[..., Any]


def load_pickle(
    path: str | PathLike[str],
    stream: BytesIO,
    known: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    *,
    offset: int = 0,
) -> Any:
    """The object of the pickle at the position of `stream`, which is then at the end of the pickle.

    Args:
        path: the file, for errors.
        stream: the data.
        known: the globals that the pickle may name, `module.name` -> value. Only a `Constructor` may be called.
        persistent: returns data for a persistent id, which refers to something outside the pickle.
        offset: where the stream begins in the file, for errors.

    Raises:
        UnsafePickleError: if it names any other global.
        FormatError: if it is damaged, has an operation that no state dict needs, or has more than `MAX_OPERATIONS`.
    """
    machine = _Machine(known, persistent)
    position = stream.tell()
    try:
        for count, (operation, argument, place) in enumerate(pickletools.genops(stream)):
            position = position if place is None else place
            if operation.name == "STOP":
                return machine.take(1)[0]
            if count >= MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS} operations")
            if operation.name not in _STEPS:
                raise ValueError(f"operation {operation.name}, which no state dict needs")
            _STEPS[operation.name](machine, argument)
    except _UnknownGlobalError as error:
        what = f"the pickle asks for {error}, which no state dict needs"
        raise UnsafePickleError(path, what, offset=offset + position, hint=_HINT) from None
    except (ValueError, TypeError, LookupError) as error:
        what = f"damaged pickle: {(str(error) or type(error).__name__)[:200]}"
        raise FormatError(path, what, offset=offset + position) from None
    raise FormatError(path, "damaged pickle: it has no end", offset=offset + position)


def plain_dict(pairs: Iterable[Sequence[Any]] = ()) -> dict[Any, Any]:
    """A dict of `(key, value)` pairs whose keys are strings, numbers, bytes or None: nested tuples are slow to hash.

    Raises:
        ValueError: for any other key, or an item that is not a pair.
    """
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | float | bytes | None) and not (isinstance(key, int) and key.bit_length() < 64):
            raise ValueError(f"a key of type {type(key).__name__}")
        found[key] = value
    return found


class _UnknownGlobalError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(repr(name if len(name) <= 120 else name[:117] + "..."))


class _Machine:
    """The stack, the marks in it and the memo, with a method for each operation that does more than push its argument."""

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any] | None) -> None:
        self.known = known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.protocol = 0

    def begin(self, protocol: int) -> None:
        self.protocol = protocol

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise ValueError("it takes more from the stack than there is")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def take_marked(self) -> list[Any]:
        if not self.below:
            raise ValueError("it takes what follows a mark, without a mark")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.take_marked()

    def duplicate(self, _: Any) -> None:
        self.push(self.stack[-1])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError(f"it sets items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(_dict_of(items))

    def named(self, module: str, name: str) -> str:
        """`module.name` of a global. Before protocol 3, globals go by the names they had in Python 2."""
        if self.protocol < 3:
            module, name = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
        return f"{module}.{name}"

    def find(self, names: str) -> None:
        name = self.named(*_split_name(names))
        if name not in self.known:
            raise _UnknownGlobalError(name)
        self.push(self.known[name])

    def find_on_stack(self, _: Any) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global without a name")
        self.find(f"{module} {name}")

    def refuse(self, names: str) -> None:
        raise _UnknownGlobalError(self.named(*_split_name(names)))

    def reduce(self, _: Any) -> None:
        callee, arguments = self.take(2)
        if not isinstance(callee, Constructor) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {type(callee).__name__}")
        self.push(callee.build(*arguments))

    def build(self, _: Any) -> None:
        # The attributes of an object. A state dict has one, `_metadata`, which is not needed for its tensors.
        target, _state = self.take(2)
        if type(target) is not dict:
            raise ValueError(f"it sets attributes of a {type(target).__name__}")
        self.push(target)

    def refer(self, _: Any) -> None:
        if self.persistent is None:
            raise ValueError("it refers to something outside")
        self.push(self.persistent(self.take(1)[0]))


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    return plain_dict(zip(items[::2], items[1::2], strict=True))


def _split_name(names: str) -> tuple[str, str]:
    """Module and name of an operation's argument, `module name`."""
    module, _, name = names.partition(" ")
    return module, name


_LITERALS: Final = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8",
)  # fmt: skip
"""Operations that push their argument."""

_STEPS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    "PROTO": _Machine.begin,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.take_marked().clear(),
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_marked())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.take_marked()),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.take_marked()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_dict_of(machine.take_marked())),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.take_marked()),
    "GLOBAL": _Machine.find,
    "INST": _Machine.refuse,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
}
"""Operation -> its implementation. All others are refused: those that create instances of classes, sets, buffers."""
