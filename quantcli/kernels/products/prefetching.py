"""Software prefetch of weights."""

from __future__ import annotations

from typing import Any, Final

from quantcli.kernels.jit import inline
from quantcli.kernels.simd import CACHE_LINE, prefetch

AHEAD: Final = 4096
"""The distance in bytes at which products of a few columns prefetch. A row is read once, and the hardware prefetcher stops
at a page boundary. Weights from a mapped file were multiplied half as fast again as without prefetch. Distances of 1024 and
8192 were slower, and so was prefetching into L2 only."""


@inline
def prefetch_bytes(weights: Any, place: Any, count: Any) -> None:
    """Prefetch `count` bytes from byte `place` on."""
    for line in range(0, count, CACHE_LINE):
        prefetch(weights, place + line)
