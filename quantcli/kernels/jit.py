"""JIT compilation of kernels: the only numba options in the project.

`kernel` is for a function called from Python: compiled on first use, cached on disk, run without the GIL.
`inline` is for a helper called only from kernels: LLVM always inlines it. `inline_once` is for a large one with one call.

No fastmath and no FMA contraction anywhere: the order and rounding of every operation is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numba

from quantcli.kernels.compilation import first_call
from quantcli.kernels.kernel_cache import KernelCache

_F = TypeVar("_F", bound=Callable[..., Any])


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
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    dispatcher._cache = KernelCache(function)
    dispatcher._compile_for_args = partial(first_call, dispatcher)
    return dispatcher  # type: ignore[no-any-return]
