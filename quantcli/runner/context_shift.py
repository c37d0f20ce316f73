"""Context shift: discards part of a full KV cache, and moves later positions into its place.

As in llama.cpp, RoPE of the moved keys is undone by as many positions, and no token is evaluated again. The moved keys and
values still depend on the discarded tokens, so the output is not that for the shortened text.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantcli.core.errors import UnsupportedError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.cache import Cache, Floats
from quantcli.runner.model import Model
from quantcli.runner.rotary import Rotary


def check_shift(model: Model) -> None:
    """Raises UnsupportedError for a model whose cache cannot be shifted."""
    name = model.sizes.architecture
    if model.learned_positions is not None:
        raise UnsupportedError(f"the context of architecture {name!r} cannot be shifted: learned position embeddings")
    if any(memory.chunked and memory.window for memory in model.sizes.memory):
        raise UnsupportedError(f"the context of architecture {name!r} cannot be shifted: chunked attention")


def shift(model: Model, cache: Cache, keep: int, discard: int) -> None:
    """Discard `discard` tokens after the first `keep`."""
    rotaries = model.positions.rotaries(cache)
    for memory, layer in zip(model.sizes.memory, cache.layers, strict=True):
        back = None
        if rotaries and memory.rotated != "none":
            back = partial(_rotate_back, model, rotaries[memory.window > 0], discard, memory.rotated == "last")
        layer.cut(keep, discard, cache.length, back)
    cache.length -= discard


def _rotate_back(model: Model, rotary: Rotary, count: int, last: bool, keys: Floats) -> None:
    """Apply RoPE by -`count` positions to keys, `(tokens, kv_heads, head size)`: to the first dimensions, or the `last`."""
    size = model.sizes.rope.size
    rotated = np.ascontiguousarray(keys[:, :, -size:]) if last else keys
    # The keys have RoPE scaling's magnitude already.
    cosines, sines = Rotary(rotary.frequencies, 1.0).angles(-count, 1)
    every = len(keys)
    rotate(rotated, np.repeat(cosines, every, axis=0), np.repeat(sines, every, axis=0), model.graph.rope == "adjacent")
    if last:
        keys[:, :, -size:] = rotated
