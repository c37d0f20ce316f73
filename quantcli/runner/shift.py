"""A full context made room in: a part of the past is forgotten, and what comes after it moves there.

As llama.cpp does it: the keys that move are turned back by as many positions, and nothing is read again. What moved still
knows of what was forgotten, so answers after a shift are not those of the shorter text.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantcli.formats.errors import UnsupportedError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.cache import Cache, Floats
from quantcli.runner.model import Model
from quantcli.runner.rotary import Rotary


def check_shift(model: Model) -> None:
    """Raises UnsupportedError for a model whose past cannot move."""
    name = model.sizes.architecture
    if model.learned_positions is not None:
        raise UnsupportedError(f"the context of architecture {name!r} cannot be shifted: it learned its positions")
    if any(layer.chunked and layer.window for layer in model.sizes.layer):
        raise UnsupportedError(f"the context of architecture {name!r} cannot be shifted: it is seen in chunks")


def shift(model: Model, cache: Cache, keep: int, discard: int) -> None:
    """Forget `discard` tokens after the first `keep`."""
    rotaries = model.positions.rotaries(cache)
    for sizes, layer in zip(model.sizes.layer, cache.layers, strict=True):
        turn = None
        if rotaries and sizes.turns:
            turn = partial(_turn_back, model, rotaries[sizes.window > 0], discard)
        layer.cut(keep, discard, cache.length, turn)
    cache.length -= discard


def _turn_back(model: Model, rotary: Rotary, count: int, keys: Floats) -> None:
    """Turn keys, `(tokens, kv_heads, size)`, to where they would be `count` positions before."""
    part = keys
    if model.sizes.latent is not None:
        part = np.ascontiguousarray(keys[:, :, -model.sizes.rope_size :])
    # What a scaling multiplied keys by stays.
    cosines, sines = Rotary(rotary.frequencies, 1.0).angles(-count, 1)
    every = len(keys)
    rotate(part, np.repeat(cosines, every, axis=0), np.repeat(sines, every, axis=0), model.graph.rope == "adjacent")
    if part is not keys:
        keys[:, :, -model.sizes.rope_size :] = part
