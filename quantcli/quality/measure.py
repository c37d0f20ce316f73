"""Measures the sensitivities of all tensors of a model, layer by layer, together with the calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from quantcli.conversion.encode import encoder_for
from quantcli.conversion.job import Job
from quantcli.conversion.plan import PlannedTensor
from quantcli.conversion.recipes import Recipe
from quantcli.core.block_types import SUPER_BLOCK, TYPES, BlockType
from quantcli.formats.gguf.spec import layer_number
from quantcli.kernels.rounding.feedback import has_feedback
from quantcli.kernels.rows import compile_kernels
from quantcli.kernels.threads import use_threads
from quantcli.quality.calibrate import Calibration, Choice, inputs_of, moment_run, source_file
from quantcli.quality.moments import Factors
from quantcli.quality.sensitivity import Probe, Sensitivity, completed, output_error
from quantcli.quality.sensitivity_file import read_sensitivities, sensitivity_path, write_sensitivities
from quantcli.quality.stored_moments import Found

OUTSIDE: Final = ("token_embd.weight", "output.weight")
"""The tensors outside of the layers whose types are chosen."""

LONG_ROWS: Final = (
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
"""The candidates where the rows divide into super-blocks."""

SHORT_ROWS: Final = ("Q4_0", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0")
"""The candidates for other rows."""

PROBES: Final = (("Q2_K", "Q4_K"), ("Q4_0", "Q5_1"))
"""The types whose divergence is measured, for long and for short rows."""

SINGLE_PROBES: Final = (("Q3_K",), ("Q4_0",))
"""Those where one type is measured."""


@dataclass(frozen=True)
class Sampling:
    """How much is measured.

    tokens   the calibration tokens on which predictions are compared
    probes   the types that are measured, for long and for short rows
    every    one layer of so many is measured, and the others are interpolated
    """

    tokens: int
    probes: tuple[tuple[str, ...], tuple[str, ...]] = PROBES
    every: int = 1


SAMPLINGS: Final[Mapping[str, Sampling]] = {
    "low": Sampling(512, SINGLE_PROBES, every=2),
    "normal": Sampling(1536),
    "high": Sampling(4096),
}
"""By the name that `--effort` takes."""

NORMAL: Final = "normal"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How sensitivities are measured.

    calibration   the calibration
    rounds        whether tensors are rounded with error feedback as the calibration says; else as the reference does
    sampling      how much is measured
    announce      called before the first measurement with its cost
    """

    calibration: Calibration
    rounds: bool = True
    sampling: Sampling = SAMPLINGS[NORMAL]
    announce: Callable[[Cost], None] = lambda cost: None


@dataclass(frozen=True)
class Cost:
    """The cost of what is still to measure.

    tensors       tensors whose divergence is measured
    probes        types that are measured in all
    tokens        tokens of each measurement
    passes        the tokens that go through the whole model for that, in all
    calibration   the calibration tokens, which go through the whole model once
    """

    tensors: int
    probes: int
    tokens: int
    passes: int
    calibration: int


def measured(job: Job, measurement: Measurement, threads: int) -> dict[str, Sensitivity]:
    """The sensitivities of the tensors whose types may be chosen, by name, from the cache as far as possible.

    Raises:
        UnsupportedError, ModelError: if the model cannot be run.
        GenerationError: for a text of less than two chunks, or activations that are not finite.
    """
    wanted = [planned for planned in job.outputs[0].plan if is_chosen(planned)]
    calibration = measurement.calibration
    rounding = calibration.quality if measurement.rounds else None
    settings = calibration.digest, calibration.tokens, rounding, measurement.sampling
    path = sensitivity_path(job, settings)
    found = read_sensitivities(path)
    if todo := [planned for planned in wanted if planned.name not in found]:
        use_threads(threads)
        _Measuring(job, measurement, threads, found, lambda: write_sensitivities(path, found)).run(todo)
    return completed({planned.name: found[planned.name] for planned in wanted})


def is_chosen(planned: PlannedTensor) -> bool:
    """Whether the type of a tensor may be chosen: it is quantized, and no option has decided its type."""
    changes = planned.type.is_quantized and planned.type is not planned.source_type
    inside = layer_number(planned.name) is not None or planned.name in OUTSIDE
    return changes and inside and planned.rule not in ("keep", "option", "override")


def candidates_of(planned: PlannedTensor, recipe: Recipe, *, rounds: bool) -> list[BlockType]:
    """The types that a tensor may have. None needs importance values that are missing. With `rounds`, all support error
    feedback."""
    names = LONG_ROWS if planned.shape[-1] % SUPER_BLOCK == 0 else SHORT_ROWS
    kinds = [TYPES[name] for name in names if planned.shape[-1] % TYPES[name].block_length == 0]
    if not planned.importance:
        kinds = [kind for kind in kinds if kind not in recipe.importance_required]
    return [kind for kind in kinds if not rounds or has_feedback(kind)]


class _Measuring:
    """A calibration run that measures tensors, and puts the results into `found`."""

    def __init__(
        self, job: Job, measurement: Measurement, threads: int, found: dict[str, Sensitivity], save: Callable[[], None]
    ) -> None:
        self._job, self._measurement, self._found, self._save = job, measurement, found, save
        calibration = replace(measurement.calibration, kept=lambda name, why: None)
        self._choice = Choice(calibration, job.model.tensors)
        self._run = run = moment_run(calibration, job)
        places = range(len(run.chunks))
        by_use = sorted(places, key=lambda place: not run.is_held_out(place))
        probed = by_use[: max(1, measurement.sampling.tokens // len(run.chunks[0]))]
        self._chunks = [run.chunks[place] for place in probed]
        self._threads = threads

    def run(self, todo: Sequence[PlannedTensor]) -> None:
        """Measure tensors."""
        run = self._run
        self._measurement.announce(self._cost(todo))
        kinds = {(kind, planned.importance) for planned in todo for kind in self._candidates(planned)}
        compile_kernels({kind for kind, _ in kinds}, kinds)
        probe = Probe(run.model, source_file(self._job), self._chunks, self._threads)
        by_layer: dict[int, list[PlannedTensor]] = defaultdict(list)
        for planned in todo:
            layer = layer_number(planned.name)
            by_layer[run.layers if layer is None else layer].append(planned)
        for layer, tensors in sorted(by_layer.items()):
            inputs = run.inputs_of(layer)
            probe.advance_to(layer)
            factors: dict[int, Factors] = {}
            where = f"layer {layer + 1}" if layer < run.layers else "the output"
            advance = self._measurement.calibration.begin(f"tensors of {where}", len(tensors))
            for planned in tensors:
                self._found[planned.name] = self._sensitivity(planned, inputs, factors, probe)
                advance(1)
            self._save()

    def _cost(self, todo: Sequence[PlannedTensor]) -> Cost:
        layers = self._run.layers
        probed = [planned for planned in todo if self._probes(planned)]
        tokens = sum(map(len, self._chunks))
        shares = [
            len(self._probes(planned)) * (layers - (layer_number(planned.name) or 0)) / max(1, layers)
            for planned in probed
        ]
        types = max((len(self._probes(planned)) for planned in probed), default=0)
        return Cost(len(probed), types, tokens, round(tokens * sum(shares)), self._run.tokens)

    def _candidates(self, planned: PlannedTensor) -> list[BlockType]:
        return candidates_of(planned, self._job.recipes[0], rounds=self._measurement.rounds)

    def _probes(self, planned: PlannedTensor) -> list[BlockType]:
        """The types whose divergence is measured for a tensor; none in a layer that is interpolated."""
        sampling, layer = self._measurement.sampling, layer_number(planned.name)
        if layer is not None and layer % sampling.every and layer != self._run.layers - 1:
            return []
        names = sampling.probes[0 if planned.shape[-1] % SUPER_BLOCK == 0 else 1]
        return [kind for kind in self._candidates(planned) if kind.name in names]

    def _sensitivity(
        self, planned: PlannedTensor, found: Found, factors: dict[int, Factors], probe: Probe
    ) -> Sensitivity:
        tensor = self._job.model.tensors[planned.name]
        inputs = inputs_of(planned, found)
        errors, divergences, probes = {}, {}, self._probes(planned)
        for kind in self._candidates(planned):
            typed = replace(planned, type=kind, wanted=kind, exact=False)
            if self._measurement.rounds:
                encoder = self._choice.encoder(typed, found, factors)
            else:
                encoder = encoder_for(typed, self._job.model.imatrix)
            assert encoder is not None
            errors[kind.name] = output_error(tensor, encoder, kind, inputs)
            if kind in probes:
                divergences[kind.name] = probe.divergence(tensor, encoder, kind)
        return Sensitivity(errors, divergences)
