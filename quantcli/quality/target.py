"""Conversion to a given size: the types of tensors are chosen so that predictions diverge least."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from quantcli.conversion.job import Job, OutputPlan, open_job
from quantcli.conversion.plan import Override, PlannedTensor
from quantcli.conversion.request import Request
from quantcli.core.block_types import BlockType
from quantcli.core.display import binary_size
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.spec import DEFAULT_ALIGNMENT, align
from quantcli.quality.allocate import Candidate, allocate
from quantcli.quality.bases import BASES
from quantcli.quality.calibrate import source_file
from quantcli.quality.measure import OUTSIDE, Measurement, candidates_of, is_chosen, measured
from quantcli.quality.sensitivity import Sensitivity
from quantcli.runner.cache import BATCH, full_bytes
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.tensors.tensor import TensorInfo


@dataclass(frozen=True)
class Target:
    """What a file should fit into: one of these.

    size      bytes of the file, or of all shards
    bpw       bits of tensor data per weight
    memory    bytes of memory for the file, the KV cache of `context` tokens in F16, and one batch of activations
    """

    size: int | None = None
    bpw: float | None = None
    memory: int | None = None
    context: int = 0


    @property
    def shown(self) -> str:
        """The target in words."""
        if self.bpw is not None:
            return f"{self.bpw:g} bits per weight"
        return binary_size(self.size or self.memory or 0) + ("" if self.memory is None else " of memory")


@dataclass(frozen=True)
class Allocation:
    """The types that were chosen.

    request      the request with the types as overrides
    chosen       tensor name -> its type, bytes and predicted divergence
    divergence   the sum of the predicted divergences, in nats
    target       the bytes that the file may have
    file_bytes   the bytes that it has
    """

    request: Request
    chosen: Mapping[str, Candidate]
    divergence: float
    target: int
    file_bytes: int

    def types_file(self) -> str:
        """The types as `--tensor-type-file` reads them."""
        return "".join(f"{exact_pattern(name)}={candidate.type.name}\n" for name, candidate in self.chosen.items())


def exact_pattern(name: str) -> str:
    """The regular expression that matches a tensor's name only, for quantcli and for llama-quantize."""
    return "^" + name.replace(".", r"\.") + "$"


def allocated(request: Request, target: Target, measurement: Measurement, *, threads: int) -> Allocation:
    """Choose the types of a request's tensors for a target.

    A type in the request is the recipe of what is not allocated. Without one it is the recipe of the nearest size.

    Raises:
        UsageError: for several types, or a target below the smallest or above the largest useful size.
        FormatError, ModelError, UnsupportedError, HubError: if the model cannot be read or run.
        GenerationError: for a text of less than two chunks, or activations that are not finite.
    """
    if len(request.types) > 1:
        raise UsageError(f"a target is for one file, not for {len(request.types)} types")
    known = replace(request, types=request.types or BASES, output=None)
    with open_job(known, threads=threads) as job:
        kinds = {
            planned.name: candidates_of(planned, job.recipes[0], rounds=measurement.rounds)
            for planned in job.outputs[0].plan
            if is_chosen(planned)
        }
        if not kinds:
            raise UsageError("no tensor is left whose type could be chosen")
        beside = 0 if target.memory is None else _memory_beside(job, target.context)
        output = min(job.outputs, key=lambda output: abs(_file_bytes(output, {}) - _goal(output, target, beside)))
        goal = _goal(output, target, beside)
        _check_bounds(output, target, goal, kinds, beside)
        sensitivities = measured(job, measurement, threads)
        chosen = _fitted(output, goal, kinds, sensitivities)
        types = {name: candidate.type for name, candidate in chosen.items()}
        file_bytes = _file_bytes(output, types)
        label = f"{_bits_per_weight(output, types):.2f}bpw"
    overrides = [
        Override(re.compile(exact_pattern(name)), candidate.type, f"allocated: predicted divergence {candidate.loss:.2g}")
        for name, candidate in chosen.items()
    ]
    options = replace(request.options, overrides=[*request.options.overrides, *overrides])
    made = replace(request, types=(output.recipe.name,), options=options, label=label)
    return Allocation(made, chosen, sum(candidate.loss for candidate in chosen.values()), goal, file_bytes)


def _fitted(
    output: OutputPlan,
    goal: int,
    kinds: Mapping[str, Sequence[BlockType]],
    sensitivities: Mapping[str, Sensitivity],
) -> dict[str, Candidate]:
    """The best types for a file of at most `goal` bytes."""
    shapes, alignment = {planned.name: planned.info for planned in output.plan}, _alignment(output)
    candidates = {
        name: [
            Candidate(kind, _padded(shapes[name], kind, alignment), sensitivities[name].loss(kind.name)) for kind in found
        ]
        for name, found in kinds.items()
    }
    fixed = _file_bytes(output, {}) - sum(_padded(shapes[name], shapes[name].type, alignment) for name in kinds)
    budget = goal - fixed
    while True:
        chosen = allocate(candidates, budget)
        # A split model may have more headers than the recipe's.
        excess = _file_bytes(output, {name: candidate.type for name, candidate in chosen.items()}) - goal
        if excess <= 0:
            return chosen
        budget -= excess


def _check_bounds(
    output: OutputPlan, target: Target, goal: int, kinds: Mapping[str, Sequence[BlockType]], beside: int
) -> None:
    """Refuse a target that no choice of types reaches, or that the largest useful types are below."""
    extremes = [
        {name: pick(found, key=lambda kind: kind.bits_per_weight) for name, found in kinds.items()} for pick in (min, max)
    ]
    least, most = (_file_bytes(output, types) for types in extremes)
    if least <= goal <= most:
        return
    if target.bpw is not None:
        low, high = (f"{_bits_per_weight(output, types):.2f}" for types in extremes)
    else:
        low, high = binary_size(least + beside), binary_size(most + beside)
    side, hint = "above the largest", "for more: --type F16, without a target"
    if goal < least:
        side, hint = "below the smallest", "a smaller model" + ("" if target.memory is None else ", or a smaller --ctx")
    raise UsageError(f"{target.shown} is {side} useful target: from {low} to {high}", hint=hint)


def _goal(output: OutputPlan, target: Target, beside: int) -> int:
    """The bytes that the file may have."""
    if target.bpw is None:
        return (target.size or target.memory or 0) - beside
    data = sum(planned.nbytes for planned in output.plan)
    return _file_bytes(output, {}) - data + int(target.bpw * sum(planned.info.size for planned in output.plan) / 8)


def _file_bytes(output: OutputPlan, types: Mapping[str, BlockType]) -> int:
    """The bytes of an output with other types, of all its shards."""
    return sum(shard.file_bytes for shard in replace(output, plan=_with_types(output, types)).writer.shards)


def _bits_per_weight(output: OutputPlan, types: Mapping[str, BlockType]) -> float:
    plan = _with_types(output, types)
    return 8 * sum(planned.nbytes for planned in plan) / sum(planned.info.size for planned in plan)


def _with_types(output: OutputPlan, types: Mapping[str, BlockType]) -> tuple[PlannedTensor, ...]:
    return tuple(replace(planned, type=types.get(planned.name, planned.type)) for planned in output.plan)


def _alignment(output: OutputPlan) -> int:
    entry = output.metadata.get("general.alignment")
    return DEFAULT_ALIGNMENT if entry is None else int(entry.value)


def _padded(tensor: TensorInfo, kind: BlockType, alignment: int) -> int:
    return align(TensorInfo(tensor.name, tensor.shape, kind).nbytes, alignment)


def _memory_beside(job: Job, context: int) -> int:
    """Bytes of memory beside the file: the KV cache, and the logits and hidden states of one batch."""
    tensors = job.model.tensors
    sizes, _ = read_hyperparameters(source_file(job), job.request.architecture_file)
    vocabulary = tensors[OUTSIDE[0]].rows if OUTSIDE[0] in tensors else 0
    return full_bytes(sizes, context, "f16") + 4 * BATCH * (vocabulary + _STATES * sizes.width)


_STATES: Final = 16
"""Hidden states of a batch that are held at once: about so many vectors of the model's width for each token."""
