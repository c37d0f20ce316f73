"""Reads what a report shows of a file from its header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from quantcli.conversion.plan import PlanOptions, make_plan
from quantcli.conversion.recipes import find_recipe, layer_of
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.quality.report.content import OUTSIDE, ReportFile, ReportTensor
from quantcli.tensors.tensor import TensorInfo

_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}$")
_WITH_IMATRIX: Final = "quantize.imatrix.entries_count"


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of files: what their names have beside a common beginning, or else their whole paths."""
    names = [_SHARD.sub("", path.name.removesuffix(".gguf")) for path in paths]
    if len(set(names)) < len(set(paths)):
        return [str(path) for path in paths]
    start = 0
    if len(names) > 1:
        same = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))
        start = max(names[0].rfind(mark, 0, same) for mark in "-.") + 1
    short = [name[start:] for name in names]
    return short if all(short) else names


def read_file(file: GGUFFile, label: str, recipe: str | None, facts: Sequence[tuple[str, str]]) -> ReportFile:
    """What a report shows of an open file. `recipe` is the name of its file type, `facts` describe its metadata."""
    reasons = reasons_of(file, recipe)
    tensors = tuple(
        ReportTensor(
            name=tensor.name,
            layer=layer_of(tensor.name),
            part=part_of(tensor.name),
            type=tensor.type,
            weights=tensor.size,
            nbytes=tensor.nbytes,
            is_matrix=sum(length > 1 for length in tensor.shape) > 1,
            reason=reasons.get(tensor.name, ""),
        )
        for tensor in file.tensors.values()
    )
    return ReportFile(
        path=str(file.path),
        label=label,
        title=str(file.get("general.name", file.path.name)),
        file_bytes=file.file_bytes,
        parameters=sum(tensor.weights for tensor in tensors),
        recipe=recipe,
        facts=tuple(facts),
        tensors=tensors,
    )


def part_of(name: str) -> str:
    """The name of a tensor within its layer: `attn_q` of `blk.3.attn_q.weight`."""
    part = name.removesuffix(".weight")
    return part.split(".", 2)[-1] if layer_of(name) != OUTSIDE else part


def reasons_of(file: GGUFFile, recipe: str | None) -> Mapping[str, str]:
    """By tensor, why the recipe of the file's type gives it its type. A file does not say this: the recipe is planned again
    for its names and shapes, and a tensor with another type than planned has no reason.
    """
    infos = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
    options = PlanOptions(importance={} if _WITH_IMATRIX in file.metadata else None)
    try:
        plan = make_plan(infos, file.metadata, find_recipe(recipe or ""), options)
    except QuantcliError:  # no recipe, or none for such a model
        return {}
    return {tensor.name: tensor.reason for tensor in plan if tensor.type is file.tensors[tensor.name].type}
