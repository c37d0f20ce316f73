"""Maps the LoRA pairs of an adapter to GGUF, with the transforms of the weights that they are added to.

A weight's update is `b @ a`. A transform of the weight's rows applies to the rows of `b`. Stacking applies to both. A
transpose exchanges them. Source: `LoraTorchTensor` of `convert_lora_to_gguf.py` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.mapping import Match, Scope, blaming, make_tensor, match_adapter
from quantcli.architectures.schema import Declaration
from quantcli.architectures.transforms import GATHERS, TRANSFORMS, as_float32, transpose
from quantcli.core.errors import UnsupportedError
from quantcli.formats.adapters import LowRank
from quantcli.tensors.tensor import Tensor
from quantcli.tensors.transposed import Transposed


def map_adapter(declaration: Declaration, adapter: Mapping[str, LowRank | Tensor], scope: Scope) -> list[LowRank | Tensor]:
    """See `Architecture.adapted`."""
    whole: list[LowRank | Tensor] = []
    pairs: list[LowRank | Tensor] = []
    for match, sources in match_adapter(declaration, adapter, scope):
        tensors = [source for source in sources if isinstance(source, Tensor)]
        if not tensors:
            pairs.append(_made(match, [_upright(source) for source in sources if isinstance(source, LowRank)]))
        elif len(tensors) == len(sources):
            whole.append(as_float32(make_tensor(match, tensors)))
        else:
            whole_one = tensors[0].name
            raise UnsupportedError(f"{match.name} is made of {whole_one}, which the adapter has in full, and of LoRA pairs")
    return whole + pairs


def _made(match: Match, sources: Sequence[LowRank]) -> LowRank:
    gather = match.row.gather
    pair = sources[0] if gather is None else _known(_GATHERS, gather, match.name)(sources)
    for call in match.row.transforms:
        with blaming(match.name, call):
            pair = _known(_TRANSFORMS, call.name, match.name)(pair, *call.evaluate(match.scope))
    return replace(pair, name=match.name)


def _known(table: Mapping[str, Callable[..., LowRank]], step: str, name: str) -> Callable[..., LowRank]:
    if step not in table:
        raise UnsupportedError(
            f"{name}: the transform {step} cannot be applied to a LoRA pair",
            hint="Merge the adapter: --lora.",
        )
    return table[step]


def _upright(pair: LowRank) -> LowRank:
    """The pair with `b @ a` in the orientation of the weight, and both matrices in one type."""
    a, b = (_transposed(pair.b), _transposed(pair.a)) if pair.transposed else (pair.a, pair.b)
    if a.type is not b.type:
        a, b = as_float32(a), as_float32(b)
    return _pair(pair, a, b)


def _pair(like: LowRank, a: Tensor, b: Tensor) -> LowRank:
    return replace(like, shape=(*b.shape[:-1], a.shape[-1]), type=a.type, a=a, b=b, transposed=False)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.source if isinstance(tensor, Transposed) else transpose(tensor)


# --- the vocabulary -------------------------------------------------------------------------------------------------------


def _rows(step: Callable[..., Tensor], pair: LowRank, *arguments: Any) -> LowRank:
    """Apply a transform that permutes or drops rows of a matrix."""
    if len(pair.shape) != 2:
        raise UnsupportedError(f"{pair.name}: the rows of stacked LoRA pairs cannot be permuted")
    return _pair(pair, pair.a, step(pair.b, *arguments))


def _along(step: Callable[..., Tensor], pair: LowRank, axis: int, *arguments: Any) -> LowRank:
    """Apply a transform that slices along an axis. Of a stack, it slices matrices, or the rows of each."""
    counted = axis % len(pair.shape)
    a = step(pair.a, counted, *arguments) if counted < len(pair.shape) - 2 else pair.a
    return _pair(pair, a, step(pair.b, counted, *arguments))


def _reshape(pair: LowRank, extents: Sequence[int]) -> LowRank:
    if len(pair.shape) != 2 or len(extents) != 2 or tuple(extents) != pair.shape:
        what = f"a LoRA pair of shape {list(pair.shape)} cannot be reshaped to {list(extents)}"
        raise UnsupportedError(f"{pair.name}: {what}")
    return pair


def _concatenate(pairs: Sequence[LowRank]) -> LowRank:
    """Concatenate the rows of several weights, which is possible only where all have the same `a`."""
    first = pairs[0]
    if any(pair.a.shape != first.a.shape or (pair.a.load() != first.a.load()).any() for pair in pairs[1:]):
        raise UnsupportedError(
            f"{' and '.join(pair.name for pair in pairs)} are concatenated, but have different LoRA pairs",
            hint="Merge the adapter: --lora.",
        )
    return _pair(first, first.a, GATHERS["concatenate"].apply([pair.b for pair in pairs]))


def _stack(pairs: Sequence[LowRank]) -> LowRank:
    stack = GATHERS["stack"].apply
    return _pair(pairs[0], stack([pair.a for pair in pairs]), stack([pair.b for pair in pairs]))


_TRANSFORMS: Final[Mapping[str, Callable[..., LowRank]]] = MappingProxyType(
    {
        **{
            name: partial(_rows, TRANSFORMS[name].apply)
            for name in ("rearrange_rows", "rope_halves", "rope_pairs", "ungroup_rows")
        },
        **{name: partial(_along, TRANSFORMS[name].apply) for name in ("cut", "part")},
        "as_float32": lambda pair: _pair(pair, as_float32(pair.a), as_float32(pair.b)),
        "reshape": _reshape,
        "transpose": lambda pair: _pair(pair, _transposed(pair.b), _transposed(pair.a)),
    }
)
"""The transforms that can be applied to LoRA pairs."""

_GATHERS: Final[Mapping[str, Callable[[Sequence[LowRank]], LowRank]]] = MappingProxyType(
    {"concatenate": _concatenate, "stack": _stack}
)
