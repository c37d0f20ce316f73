"""Conversion with calibration. Layer by layer, the calibration tokens go through a layer, the second moments of the inputs
of its products are accumulated, and its tensors are quantized with error feedback.

Memory holds one layer's moments and the hidden states of all calibration tokens. The moments are those of the model before
quantization: collecting them again behind quantized layers gained nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.convert import Stage
from quantcli.conversion.encode import Encoder, FeedbackEncoder, ImportanceEncoder, ReferenceEncoder, encoder_for
from quantcli.conversion.job import Job
from quantcli.conversion.plan import PlannedTensor
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels import rows
from quantcli.kernels.rounding.feedback import Effort, has_feedback
from quantcli.kernels.rounding.moment_factor import MomentFactor, factorize
from quantcli.quality.imatrix import cut_texts
from quantcli.quality.moments import Inputs, MomentCollector
from quantcli.quality.source_file import SourceFile
from quantcli.runner.cache import Cache
from quantcli.runner.load import prepare_model
from quantcli.runner.model import Model
from quantcli.tensors.tensor import Tensor

Floats = NDArray[np.float32]

CONTEXT: Final = 512
"""Tokens of a chunk of calibration text, as llama-imatrix's."""

HELD_OUT: Final = 16
"""One chunk of so many is held out: results are tried on it."""

DAMPING: Final = 0.01
"""Added to the diagonal of a second moment, relative to its mean, as in GPTQ."""

SAMPLED_ROWS: Final = 64
"""The rows of a tensor on which its two roundings are compared."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a conversion is calibrated.

    texts   names and contents of the calibration texts
    tokens  the most calibration tokens
    effort  how many scales are tried
    kept    called for each tensor that keeps the reference's rounding, with the reason
    """

    texts: Sequence[tuple[str, str]]
    tokens: int
    effort: Effort
    kept: Callable[[str, str], None] = lambda tensor, reason: None
    advance: Callable[[int, int], None] = lambda done, layers: None


def calibrated_stages(calibration: Calibration, job: Job) -> Iterator[Stage]:
    """The stages of a conversion with calibration: the tensors outside of the layers, each layer, and the output matrix.

    Raises:
        UnsupportedError, ModelError: if the model cannot be run.
        GenerationError: for a text of less than two chunks, or activations that are not finite.
    """
    run = _Run(calibration, job)
    last = run.names_of_output()
    layers = run.model.sizes.layers
    by_layer: dict[int, list[int]] = defaultdict(list)
    for place, planned in enumerate(job.outputs[0].plan):
        by_layer[layers if planned.name in last else _layer_of(planned.name, layers)].append(place)
    yield run.stage(by_layer.pop(-1, []), {})
    for layer in range(layers):
        run.run_layer(layer)
        calibration.advance(layer + 1, layers)
        yield run.stage(by_layer[layer], run.collector.take())
    run.run_output()
    yield run.stage(by_layer[layers], run.collector.take())


def _layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to; -1 for none of those that are run."""
    parts = name.split(".")
    number = int(parts[1]) if parts[0] == "blk" and parts[1].isdigit() else -1
    return number if number < layers else -1


class _Run:
    """The model, the hidden states of the calibration tokens, and the collector of moments."""

    def __init__(self, calibration: Calibration, job: Job) -> None:
        changed = job.model
        self._calibration, self._job = calibration, job
        file = SourceFile(changed.source.path, {**changed.metadata, **changed.block_count}, changed.tensors)
        quantized = {
            planned.name
            for output in job.outputs
            for planned in output.plan
            if planned.type.is_quantized and planned.type is not planned.source_type
        }
        self.collector = MomentCollector(quantized.__contains__)
        loaded = prepare_model(file, None, self.collector, architecture_file=job.request.architecture_file)
        self.model: Model = loaded.model
        context = min(CONTEXT, self.model.sizes.context or CONTEXT)
        chunks = cut_texts(loaded.tokenizer, calibration.texts, context, max(2, calibration.tokens // context))
        self._cache = Cache(self.model.sizes, context, "f32")
        self._hidden = [self.model.embed(chunk) for chunk in chunks]

    def names_of_output(self) -> set[str]:
        """The names of the output matrix, which is the token embedding where they are tied."""
        return {self.model.output.name}

    def _held_out(self, chunk: int) -> bool:
        return chunk % HELD_OUT == HELD_OUT // 2 or (len(self._hidden) <= HELD_OUT // 2 and chunk == len(self._hidden) - 1)

    @np.errstate(all="ignore")
    def run_layer(self, layer: int) -> None:
        """Send all chunks through a layer."""
        for number, hidden in enumerate(self._hidden):
            self.collector.holding = self._held_out(number)
            self._cache.rewind(0)
            self.model.run_layer(layer, hidden, self._cache)

    @np.errstate(all="ignore")
    def run_output(self) -> None:
        """Collect the inputs of the output matrix."""
        for number, hidden in enumerate(self._hidden):
            self.collector.holding = self._held_out(number)
            self.collector(self.model.output.name, self.model.normed(hidden), None)

    def stage(self, places: Sequence[int], found: Mapping[tuple[str, int], Inputs]) -> Stage:
        """The stage of some tensors, with the inputs of their products."""
        factors: dict[int, MomentFactor] = {}
        encoders = []
        for output in self._job.outputs:
            chosen: list[Encoder | None] = [None] * len(output.plan)
            for place in places:
                planned = output.plan[place]
                matrices = planned.shape[-3] if len(planned.shape) > 2 else 1
                inputs = [found.get((planned.name, matrix)) for matrix in range(matrices)]
                chosen[place] = self._encoder(planned, inputs, factors)
            encoders.append(chosen)
        return Stage(places, encoders)

    def _encoder(
        self, planned: PlannedTensor, inputs: Sequence[Inputs | None], factors: dict[int, MomentFactor]
    ) -> Encoder | None:
        """The encoder of a tensor: with error feedback where it is better on the inputs that were held out."""
        reference = encoder_for(planned, _importance(planned, inputs))
        if not isinstance(reference, ReferenceEncoder | ImportanceEncoder) or not planned.type.is_quantized:
            return reference
        known = [given for given in inputs if given is not None and given.count]
        if len(known) < len(inputs):
            self._calibration.kept(planned.name, "no calibration tokens reach it")
            return reference
        if not has_feedback(planned.type):
            self._calibration.kept(planned.name, f"{planned.type.name} has no error feedback")
            return reference
        for given in known:
            if id(given) not in factors:
                factors[id(given)] = factorize(given.moment, DAMPING)
        feedback = FeedbackEncoder(
            planned.type, [factors[id(given)] for given in known], planned.shape[-2], self._calibration.effort
        )
        tensor = self._job.model.tensors[planned.name]
        if _loss(tensor, feedback, known) < _loss(tensor, reference, known):
            return feedback
        self._calibration.kept(planned.name, "error feedback is not better on the text held out")
        return reference


def _importance(planned: PlannedTensor, inputs: Sequence[Inputs | None]) -> Imatrix | None:
    """The importance matrix of one tensor; None where a matrix has no inputs."""
    values = [given.importance for given in inputs if given is not None and given.count]
    if not values or len(values) < len(inputs) or not all(value.any() for value in values):
        return None
    return Imatrix("", (), 0, {planned.name: np.stack(values)})


def _loss(tensor: Tensor, encoder: Encoder, inputs: Sequence[Inputs]) -> float:
    """The squared error of a tensor's outputs on the inputs held out, on a sample of rows of each of its first matrices."""
    kind, total = encoder.type, 0.0  # type: ignore[attr-defined]
    height = tensor.shape[-2]
    for matrix, given in enumerate(inputs[:4]):
        held = given.held_rows
        for start in np.linspace(0, max(0, height - 16), 4).astype(int) + matrix * height:
            count = min(16, height)
            raw = np.empty((count, tensor.row_bytes), np.uint8)
            tensor.read(int(start), int(start) + count, raw)
            values = rows.dequantize(raw, tensor.type)
            data = np.empty((count, kind.row_bytes(tensor.row_length)), np.uint8)
            encoder.encode(values, int(start), data)
            error = values - rows.dequantize(data, kind)
            total += float(np.square(held @ error.T).sum())
    return total
