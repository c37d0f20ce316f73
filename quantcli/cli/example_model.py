"""A tiny model of zeros, to find out which kernels quantizing and running real models of the same types need."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.plan import Override, PlannedTensor, PlanOptions, make_plan, weight_type
from quantcli.conversion.recipes import RECIPES, find_recipe
from quantcli.core.block_types import TYPES, BlockType
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.spec import Metadata, f32, string, u32
from quantcli.tensors.tensor import TensorInfo

_WIDTH: Final = 256
"""A multiple of every block length."""

_LAYERS: Final = 8
"""Enough that every rule of a recipe that counts layers applies to some and not to others."""

_SOURCES: Final = ("BF16", "F16", "F32")
"""The types of checkpoints."""

_PROMPT: Final = 16
"""Tokens of a prompt long enough for the kernels of long prompts."""

_METADATA: Final[Metadata] = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(_LAYERS),
    "llama.context_length": u32(_PROMPT),
    "llama.embedding_length": u32(_WIDTH),
    "llama.feed_forward_length": u32(_WIDTH),
    "llama.attention.head_count": u32(4),
    "llama.attention.head_count_kv": u32(2),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
}


def _source_tensors(source: BlockType, tied: bool) -> list[TensorInfo]:
    width, half = (_WIDTH, _WIDTH), (_WIDTH // 2, _WIDTH)
    matrices = {"attn_q": width, "attn_k": half, "attn_v": half, "attn_output": width}
    matrices |= {"ffn_gate": width, "ffn_up": width, "ffn_down": width}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": width, "output_norm": (_WIDTH,)}
    if not tied:
        shapes["output"] = width
    for layer in range(_LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in matrices.items()}
        shapes |= {f"blk.{layer}.{name}": (_WIDTH,) for name in ("attn_norm", "ffn_norm")}
    return [TensorInfo(f"{name}.weight", shape, source) for name, shape in shapes.items()]


def plans(name: str, importance: bool) -> list[list[PlannedTensor]]:
    """The plans of models of each source type, with tied embeddings and without, for a recipe or a tensor type.

    Without `importance`, tensors are planned without an importance matrix, except those of types that need one.

    Raises:
        UsageError: for an unknown name.
    """
    overrides: Sequence[Override] = ()
    try:
        recipe = find_recipe(name)
    except UsageError as error:
        try:
            overrides = [Override(re.compile(r"blk\..*|token_embd|^output\.weight"), weight_type(name))]
        except UsageError:
            raise error from None
        recipe = RECIPES["F32"]
    made = []
    for source in _SOURCES:
        for tied in (True, False):
            tensors = _source_tensors(TYPES[source], tied)
            values = {tensor.name: tensor.row_length for tensor in tensors} if importance else None
            options = PlanOptions(importance=values, overrides=overrides)
            plan = make_plan(tensors, _METADATA, recipe, options)
            if values is None and any(planned.importance_required for planned in plan):
                return plans(name, importance=True)
            made.append(plan)
    return made


@dataclass(frozen=True)
class _PlannedFile:
    """The runner's `ModelFile` of a plan, with weights of zeros."""

    tensors: Mapping[str, TensorInfo]
    metadata: Metadata
    path: Path = Path("example.gguf")

    def map(self, tensor: TensorInfo, /) -> NDArray[np.uint8]:
        """The rows of a tensor, uint8 `(rows, row_bytes)`, read-only."""
        rows = np.zeros((tensor.rows, tensor.row_bytes), np.uint8)
        rows.flags.writeable = False
        return rows


def use_kernels(names: Sequence[str], importance: bool) -> None:
    """Call every kernel that quantizing to recipes or tensor types, and running the results, needs. It is to be traced.

    With `importance` also those that use an importance matrix.
    """
    from quantcli.kernels.products.few_columns import FEW
    from quantcli.kernels.rounding.exact_grids import GRIDS, lies_on_grid
    from quantcli.kernels.rows import call_kernels
    from quantcli.runner.model import Model

    seen: set[tuple[BlockType, ...]] = set()
    for name in names:
        for plan in [*plans(name, False), *(plans(name, True) if importance else ())]:
            encoded = {(planned.type, planned.importance) for planned in plan if planned.type is not planned.source_type}
            call_kernels({planned.source_type for planned in plan}, encoded)
            for planned in plan:
                if planned.type in GRIDS:
                    lies_on_grid(np.zeros((1, _WIDTH), np.float32), planned.type, planned.source_type)
            tensors = {planned.name: planned.info for planned in plan}
            types = tuple(tensor.type for tensor in tensors.values())
            if types not in seen:
                seen.add(types)
                model = Model(_PlannedFile(tensors, _METADATA))
                for count in (_PROMPT, *FEW):
                    model.call_kernels(count, "f16", every=False)
