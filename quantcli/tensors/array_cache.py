"""An LRU cache of arrays, shared by all threads of a conversion, which work on neighbouring rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Slot:
    """One array, and a lock held while it is computed."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.array: NDArray[Any] | None = None


class ArrayCache:
    """An LRU cache of at most `limit` bytes in all. The last array is kept whatever its size.

    If several threads request the same array, one computes it and the others wait. Unpickled caches are empty.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayCache, (self._limit,)

    def get(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of that key. If it is not cached, `make` computes it; `make` may use the cache too."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.array is None:
                slot.array = make()
            array = slot.array
        self._drop_oldest()
        return array

    def _drop_oldest(self) -> None:
        with self._lock:
            held = sum(slot.array.nbytes for slot in self._slots.values() if slot.array is not None)
            while held > self._limit and len(self._slots) > 1:
                _, slot = self._slots.popitem(last=False)
                held -= 0 if slot.array is None else slot.array.nbytes


class Same:
    """A key by object identity. It holds a weak reference, and equals nothing once the object is gone."""

    def __init__(self, object: Any) -> None:
        self._object = ref(object)
        self._hash = id(object)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        mine = self._object()
        return isinstance(other, Same) and mine is not None and mine is other._object()
