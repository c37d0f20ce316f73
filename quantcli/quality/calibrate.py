"""Conversion with calibration. Layer by layer, the second moments of the inputs of its products are taken from a run of the
model on calibration text, and its tensors are quantized with error feedback.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.convert import Stage, at_once
from quantcli.conversion.encode import (
    Encoder,
    FeedbackEncoder,
    ImportanceEncoder,
    ReferenceEncoder,
    TwoSidedEncoder,
    encoder_for,
)
from quantcli.conversion.job import Job
from quantcli.conversion.plan import PlannedTensor, stacked_matrices
from quantcli.core.block_types import BlockType
from quantcli.core.errors import UnsupportedError, warn
from quantcli.core.listing import listed
from quantcli.formats.gguf.spec import Metadata, layer_number, string, u32
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels import rows
from quantcli.kernels.compilation import compile_ahead
from quantcli.kernels.products.outer_sums import MULTIPLE
from quantcli.kernels.rounding.feedback import has_feedback, quantize_with_feedback
from quantcli.kernels.rounding.moment_factor import factorize
from quantcli.kernels.rounding.row_feedback import factorize_rows
from quantcli.kernels.rounding.stretch import BEST, GOOD, STRETCH, Effort
from quantcli.kernels.threads import use_threads
from quantcli.quality.gradients import Gradients, check_unasked, collect_gradients, is_installed
from quantcli.quality.moment_run import MomentRun
from quantcli.quality.moments import SHRINKING, Factors, Inputs
from quantcli.quality.source_file import SourceFile, identity
from quantcli.quality.stored_moments import Found, StoredMoments
from quantcli.tensors.tensor import Tensor

Floats = NDArray[np.float32]

DAMPING: Final = 0.01
"""Added to the diagonal of a second moment, relative to its mean, as in GPTQ."""

SAMPLED_ROWS: Final = 64
"""The rows of a matrix on which its two roundings are compared."""

_PLACES: Final = 4
"""The rows are taken at so many places."""

_MATRICES: Final = 4
"""The matrices of a stacked tensor that are compared."""

ROW_DAMPING: Final = 32.0
"""The same for the second moment of gradients, times rows by tokens: with few tokens it is noise for the most part.

Measured: matrices of 256 to 768 rows and 48,000 tokens had least divergence by a damping of .03 to .3, those of 640 to
2048 rows and 34,000 tokens by one of 1 to 3. With .03 these had more than without gradients.
"""

_TRIED_TOGETHER: Final = 256
"""The neighbouring rows on which feedback between rows is tried."""

NO_DEVICE: Final = "none"

EFFORTS: Final[Mapping[str, Effort]] = MappingProxyType({"good": GOOD, "best": BEST})


@dataclass(frozen=True)
class RunCost:
    """What a run on calibration tokens takes.

    seconds   about how long the tokens take through the model, without rounding; 0 where all moments are stored
    hidden    bytes of the hidden states of all tokens
    moments   the most bytes of the second moments of one layer. Products of the same input share them
    """

    tokens: int
    layers: int
    seconds: float
    hidden: int
    moments: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a conversion is calibrated.

    texts    names and contents of the calibration texts
    tokens   the most calibration tokens
    quality  a key of `EFFORTS`
    moments  the directory of second moments, read where it has them and written where not
    device   of torch, for gradients; None for the processor where torch and the memory are there; "none" for no gradients
    threads  of the forward pass; None for one per processor
    kept     called for each tensor that keeps the reference's rounding, with the reason
    announce called before the first layer is run, with what the run takes
    begin    called before a layer is run, with a description and the number of chunks. What it returns is called with 1
             after each chunk
    """

    texts: Sequence[tuple[str, str]]
    tokens: int
    quality: str = "best"
    moments: Path | None = None
    device: str | None = NO_DEVICE
    threads: int | None = None
    kept: Callable[[str, str], None] = lambda tensor, reason: None
    announce: Callable[[RunCost], None] = lambda cost: None
    begin: Callable[[str, int], Callable[[int], Any]] = lambda what, chunks: lambda done: None

    @property
    def effort(self) -> Effort:
        """How much rounding tries."""
        return EFFORTS[self.quality]

    @property
    def digest(self) -> str:
        """The SHA-256 of the texts, in hexadecimal digits."""
        return hashlib.sha256("".join(text for _, text in self.texts).encode()).hexdigest()

    def stored(self, file: SourceFile) -> StoredMoments | None:
        """The stored moments of a model; None if none are asked for."""
        if self.moments is None:
            return None
        made_from = {"model": identity(file), "text": self.digest, "number of tokens": str(self.tokens)}
        return StoredMoments(self.moments, made_from)

    def notes(self) -> Metadata:
        """Metadata that say how a file was made."""
        return {
            "quantize.calibration.quality": string(self.quality),
            "quantize.calibration.dataset": string(listed([name for name, _ in self.texts])),
            "quantize.calibration.sha256": string(self.digest),
            "quantize.calibration.tokens": u32(self.tokens),
            "quantize.calibration.gradients": string(self.device or "auto"),
        }


def calibrated_stages(calibration: Calibration, job: Job) -> Iterator[Stage]:
    """The stages of a conversion with calibration: the tensors outside of the layers, each layer, and the output matrix.

    Raises:
        UnsupportedError, ModelError: if the model cannot be run.
        GenerationError: for a text of less than two chunks, or activations that are not finite.
        FormatError: for stored moments that are damaged, or made from something else.
    """
    use_threads(calibration.threads)
    quantized = quantized_names(job)
    if not quantized:
        yield from at_once(job)
        return
    run = moment_run(calibration, job)
    sources = {job.model.tensors[name].type for name in quantized}
    compile_ahead(partial(_call_kernels, _feedback_types(job), sources, calibration.effort))
    calibration.announce(_cost(run, job, quantized))
    gradients = gradients_of(calibration, job, run)
    by_layer: dict[int, list[int]] = defaultdict(list)
    for place, planned in enumerate(job.outputs[0].plan):
        by_layer[run.layers if planned.name == run.output else _layer_of(planned.name, run.layers)].append(place)
    choice = Choice(calibration, job.model.tensors, gradients)
    yield choice.stage(job, by_layer.pop(-1, []), {})
    for layer in range(run.layers + 1):
        yield choice.stage(job, by_layer[layer], run.inputs_of(layer))


def _cost(run: MomentRun, job: Job, quantized: Iterable[str]) -> RunCost:
    moments: dict[int | None, int] = defaultdict(int)
    for tensor in (job.model.tensors[name] for name in quantized):
        moments[layer_number(tensor.name)] += 4 * stacked_matrices(tensor.shape) * tensor.row_length**2
    seconds = 0.0 if run.is_stored else run.seconds()
    return RunCost(run.tokens, run.layers, seconds, 4 * run.tokens * run.model.sizes.width, max(moments.values()))


def moment_run(calibration: Calibration, job: Job) -> MomentRun:
    """The run of a job's model on the calibration tokens.

    Raises:
        As `MomentRun`.
    """
    file, quantized = source_file(job), quantized_names(job)
    stored = calibration.stored(file)
    return MomentRun(
        file, calibration.texts, calibration.tokens, begin=calibration.begin, stored=stored,
        wanted=quantized.__contains__ if stored is None else lambda name: True,
        architecture_file=job.request.architecture_file,
    )  # fmt: skip


def gradients_of(calibration: Calibration, job: Job, run: MomentRun) -> Gradients:
    """The gradients of a job's products, stored or collected; none where they are not asked for, or cannot be had and no
    device was named.

    Raises:
        UnsupportedError: if they cannot be had on the device that was named.
        FormatError: as stored moments.
    """
    stored = calibration.stored(source_file(job))
    found = None if stored is None or calibration.device == NO_DEVICE else stored.read_gradients()
    wanted = _two_sided_names(job)
    if found is not None or calibration.device == NO_DEVICE or not wanted:
        return found or {}
    if calibration.device is None and not is_installed():
        return {}
    try:
        if calibration.device is None:
            tensors = job.model.tensors
            heights = [tensors[name].shape[-2] for name in wanted]
            logits = tensors[run.output].rows * max(map(len, run.chunks))
            check_unasked(sum(tensor.size for tensor in tensors.values()), heights, logits)
        collected = collect_gradients(
            job.model.source.path, run.chunks, run.is_held_out, wanted.__contains__, device=calibration.device or "cpu",
            threads=calibration.threads, architecture_file=job.request.architecture_file, begin=calibration.begin,
        )  # fmt: skip
    except UnsupportedError as error:
        if calibration.device is not None:
            raise
        warn(f"rounded without gradients: {error.message}")
        return {}
    if stored is None:
        return collected
    stored.write_gradients(collected)
    return stored.read_gradients() or {}


def _two_sided_names(job: Job) -> set[str]:
    """The matrices whose rows may be rounded with feedback between them: of a layer, not stacked, of whole blocks."""
    return {
        planned.name
        for output in job.outputs
        for planned in output.plan
        if has_feedback(planned.type) and stacked_matrices(planned.shape) == 1 and planned.shape[-2] % MULTIPLE == 0
        if layer_number(planned.name) is not None
    }


def source_file(job: Job) -> SourceFile:
    """A job's model, to run it."""
    model = job.model
    return SourceFile(model.source.path, {**model.metadata, **model.block_count}, model.tensors)


def _layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to; -1 for none of those that are run."""
    number = layer_number(name)
    return -1 if number is None or number >= layers else number


def quantized_names(job: Job) -> set[str]:
    """The names of the tensors that some output quantizes."""
    return {
        planned.name
        for output in job.outputs
        for planned in output.plan
        if planned.type.is_quantized and planned.type is not planned.source_type
    }


def _feedback_types(job: Job) -> list[BlockType]:
    kinds = {planned.type for output in job.outputs for planned in output.plan if has_feedback(planned.type)}
    return sorted(kinds, key=lambda kind: kind.name)


def _call_kernels(kinds: Sequence[BlockType], sources: set[BlockType], effort: Effort) -> None:
    """Call the kernels of rounding with error feedback, and of the reference's, with which it is compared."""
    rows.call_kernels(sources.union(kinds), {(kind, True) for kind in kinds})
    width = 2 * STRETCH
    x, factor = np.zeros((MULTIPLE, width), np.float32), factorize(np.zeros((width, width), np.float32), DAMPING)
    for kind in kinds:
        quantize_with_feedback(x, kind, factor, effort, np.empty((MULTIPLE, kind.row_bytes(width)), np.uint8))


@dataclass(frozen=True, eq=False)
class Choice:
    """Chooses the encoder of each tensor of a calibrated conversion."""

    calibration: Calibration
    tensors: Mapping[str, Tensor]
    gradients: Gradients = field(default_factory=dict)

    def stage(self, job: Job, places: Sequence[int], found: Found) -> Stage:
        """The stage of some tensors, with the inputs of their products."""
        factors: dict[int, Factors] = {}
        encoders = []
        for output in job.outputs:
            chosen: list[Encoder | None] = [None] * len(output.plan)
            for place in places:
                chosen[place] = self.encoder(output.plan[place], found, factors)
            encoders.append(chosen)
        return Stage(places, encoders)

    def encoder(self, planned: PlannedTensor, found: Found, factors: dict[int, Factors]) -> Encoder | None:
        """The encoder of a tensor: with error feedback where it is better on the inputs that were held out."""
        inputs = inputs_of(planned, found)
        reference = encoder_for(planned, _importance(planned, inputs))
        if not isinstance(reference, ReferenceEncoder | ImportanceEncoder) or not planned.type.is_quantized:
            return reference
        reached = [given for given in inputs if given is not None and given.count]
        if not reached:
            return self._kept(planned, reference, "no calibration tokens reach it")
        if not has_feedback(planned.type):
            return self._kept(planned, reference, f"{planned.type.name} has no error feedback")
        if len(reached) < len(inputs):
            self.calibration.kept(planned.name, "some experts get no calibration tokens, and the moments of all experts")
        if len(inputs) > 1 and any(given.count < SHRINKING for given in reached):
            what = f"some experts get fewer than {SHRINKING} calibration tokens, and mostly the moments of all experts"
            self.calibration.kept(planned.name, what)
        # Products of the same inputs share their factors.
        shared = factors.setdefault(id(reached[0]), Factors(inputs, DAMPING))
        feedback = FeedbackEncoder(planned.type, shared, planned.shape[-2], self.calibration.effort)
        tensor = self.tensors[planned.name]
        if held_out_loss(tensor, planned.type, feedback, inputs) < held_out_loss(tensor, planned.type, reference, inputs):
            return self._two_sided(planned, feedback, inputs) or feedback
        return self._kept(planned, reference, "error feedback is not better on the text held out")

    def _two_sided(
        self, planned: PlannedTensor, columns: FeedbackEncoder, inputs: Sequence[Inputs | None]
    ) -> TwoSidedEncoder | None:
        """The encoder with feedback between rows, too, if there are gradients and it is better on what was held out."""
        found = self.gradients.get(planned.name)
        if found is None or len(inputs) > 1 or inputs[0] is None or not inputs[0].held or found.count < columns.height:
            return None
        count = min(_TRIED_TOGETHER, columns.height)
        held, tensor = inputs[0].held_rows, self.tensors[planned.name]
        damping = ROW_DAMPING * columns.height / found.count
        part = TwoSidedEncoder(columns, lambda: factorize_rows(found.moment[:count, :count], damping))
        signs = found.sketch[:, :count]
        losses = [
            float(np.square(signs @ (held @ errors_of(tensor, planned.type, encoder, [0], count).T).T).sum())
            for encoder in (part, columns)
        ]
        if losses[0] >= losses[1]:
            return None
        return TwoSidedEncoder(columns, lambda: factorize_rows(found.moment, damping))

    def _kept(self, planned: PlannedTensor, reference: Encoder, reason: str) -> Encoder:
        self.calibration.kept(planned.name, f"rounded as llama.cpp does: {reason}")
        return reference


def inputs_of(planned: PlannedTensor, found: Found) -> list[Inputs | None]:
    """The inputs of each of a tensor's stacked matrices; None where there are none."""
    return [found.get((planned.name, matrix)) for matrix in range(stacked_matrices(planned.shape))]


def _importance(planned: PlannedTensor, inputs: Sequence[Inputs | None]) -> Imatrix | None:
    """The importance matrix of one tensor; None where a matrix has no inputs."""
    values = [given.importance for given in inputs if given is not None and given.count]
    if not values or len(values) < len(inputs) or not all(value.any() for value in values):
        return None
    return Imatrix("", (), 0, {planned.name: np.stack(values)})


def held_out_loss(tensor: Tensor, kind: BlockType, encoder: Encoder, inputs: Sequence[Inputs | None]) -> float:
    """The squared error of a tensor's outputs on the inputs held out: on a sample of rows, of its first matrices that have
    such inputs."""
    tried = [(matrix, given.held_rows) for matrix, given in enumerate(inputs) if given is not None and given.held]
    return sum(
        float(np.square(held @ sampled_errors(tensor, matrix, kind, encoder).T).sum()) for matrix, held in tried[:_MATRICES]
    )


def sampled_errors(tensor: Tensor, matrix: int, kind: BlockType, encoder: Encoder) -> Floats:
    """What rounding changes in a sample of the rows of a stacked matrix, float32 (rows, row length)."""
    height = tensor.shape[-2]
    count = min(SAMPLED_ROWS // _PLACES, height)
    firsts = matrix * height + np.linspace(0, height - count, _PLACES).astype(int)
    return errors_of(tensor, kind, encoder, firsts.tolist(), count)


def errors_of(tensor: Tensor, kind: BlockType, encoder: Encoder, firsts: Sequence[int], count: int) -> Floats:
    """What rounding changes in `count` rows from each of `firsts` on, all of one stacked matrix, float32."""
    raw = np.empty((len(firsts) * count, tensor.row_bytes), np.uint8)
    for place, first in enumerate(firsts):
        tensor.read(first, first + count, raw[place * count : (place + 1) * count])
    values, data = rows.dequantize(raw, tensor.type), np.empty((len(raw), kind.row_bytes(tensor.row_length)), np.uint8)
    encoder.encode(values, firsts[0], data)
    errors: Floats = values - rows.dequantize(data, kind)
    return errors
