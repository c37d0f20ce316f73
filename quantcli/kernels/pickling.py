"""Kernels as bytes, for another process.

A kernel that a function made has no name to import it by, so its code is pickled, as numba does. What a module has under
its own name is imported. numba would pickle that too, and its intrinsics would lose their options.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.core.serialize import NumbaPickler


class _Pickler(NumbaPickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any, /) -> Any:
        """See `pickle.Pickler`."""
        if isinstance(obj, Dispatcher | _Intrinsic):
            module, name = str(obj.__module__), str(obj.__qualname__)
            if getattr(sys.modules.get(module), name, None) is obj:
                return _imported, (module, name)
            if isinstance(obj, _Intrinsic):
                return _intrinsic, (obj._name, obj._defn, obj._prefer_literal, obj._ctor_kwargs)
        return super().reducer_override(obj)


def packed(value: Any) -> bytes:
    """A kernel, or a value that has kernels, as bytes: `pickle.loads` gives it in any process of this quantcli."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=4).dump(value)
    return buffer.getvalue()


def _imported(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _intrinsic(name: str, define: Callable[..., Any], prefer_literal: bool, options: Mapping[str, Any]) -> Any:
    made = _Intrinsic(name, define, prefer_literal=prefer_literal, **options)
    made._register()
    return made
