"""Convert a checkpoint to GGUF files: plan a request, execute it, and report the results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from quantcli.conversion.encode import Encoder
from quantcli.conversion.execute import Output, encoders_for, execute, kernels_needed
from quantcli.conversion.job import Calibrate, Job, open_job
from quantcli.conversion.lora.merge import AdapterRequest
from quantcli.conversion.model_changes import Changes
from quantcli.conversion.plan import PlannedTensor, PlanOptions
from quantcli.conversion.request import Request
from quantcli.core.errors import FormatError, HubError, OutputError
from quantcli.formats.imatrix import Imatrix
from quantcli.formats.tensor_writer import Shard
from quantcli.kernels.rows import compile_kernels
from quantcli.tensors.files import expect_unchanged


class RequestFields(TypedDict, total=False):
    """The keyword arguments of `convert` that it passes on: fields of `Request`."""

    label: str
    options: PlanOptions
    imatrix: Imatrix | None
    changes: Changes
    adapters: Sequence[AdapterRequest]
    architecture_file: Path | None
    pre_tokenizer: str | None
    as_reference: bool
    max_shard_bytes: int | None
    remote: bool
    overwrite: bool
    resume: bool


@dataclass(frozen=True)
class Progress:
    """The callbacks of a conversion's progress. The defaults do nothing.

    fetching(total)    called before a model is downloaded, with the total of bytes. Returns a function that is called with
                       the bytes received since the last call.
    start(total)       called before the first chunk of a stage, with the source bytes to convert
    advance(done)      called after each chunk, with the source bytes converted since the last call
    """

    fetching: Callable[[int], Callable[[int], Any]] = lambda total: lambda done: None
    start: Callable[[int], Any] = lambda total: None
    advance: Callable[[int], None] = lambda done: None


SILENT: Final = Progress()

MOST_THREADS: Final = 1024
"""An upper bound on threads, since each has buffers of its own."""


@dataclass(frozen=True)
class Conversion:
    """The result of one output, written or planned by a dry run."""

    shards: Sequence[Shard]
    """The file, or the shards of a split model."""
    dry_run: bool
    """Whether this was a dry run, which writes nothing."""
    type: str
    architecture: str
    source_bytes: int
    seconds: float
    plan: Sequence[PlannedTensor]

    @property
    def output(self) -> Path | None:
        """The file that was written, or the first shard of a split model; None for a dry run."""
        return None if self.dry_run else self.shards[0].path

    @property
    def output_bytes(self) -> int:
        """The size of the file, or of all shards."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        """The number of weights in all tensors."""
        return sum(tensor.info.size for tensor in self.plan)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(tensor.nbytes for tensor in self.plan) / max(1, self.parameters)

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`. Shapes are in GGUF order, the row length first. Only a split model has `parts`."""
        shards = [{"path": str(shard.path), "tensors": shard.tensors, "bytes": shard.file_bytes} for shard in self.shards]
        return {
            "output": None if self.output is None else str(self.output),
            **({"parts": shards} if len(shards) > 1 else {}),
            "type": self.type,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(reversed(tensor.shape)),
                    "source_type": tensor.source_type.name,
                    "type": tensor.type.name,
                    "bytes": tensor.nbytes,
                    "reason": tensor.reason,
                }
                for tensor in self.plan
            ],
        }


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of the tensors of a job, written together.

    only       their places in the plans; None for all tensors
    encoders   for each output the encoder of each tensor of its plan, None where the bytes are copied
    """

    only: Sequence[int] | None
    encoders: Sequence[Sequence[Encoder | None]]


Stages = Callable[[Job], Iterator[Stage]]


def at_once(job: Job) -> Iterator[Stage]:
    """All tensors in one stage, quantized as the reference does."""
    yield Stage(None, [encoders_for(output.plan, job.model.imatrix) for output in job.outputs])


def convert(
    model: str | PathLike[str],
    types: str | Sequence[str],
    output: str | PathLike[str] | None = None,
    *,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
    calibrate: Calibrate | None = None,
    stages: Stages = at_once,
    **more: Unpack[RequestFields],
) -> list[Conversion]:
    """Convert a checkpoint or a GGUF file to a GGUF file for each of `types`, reading the source once.

    `model`, `types`, `output` and further arguments are fields of `conversion.request.Request`. `threads` defaults to the
    number of processors. With `dry_run` nothing is written, and the results describe what would be. `calibrate` and
    `stages` are those of `carry_out`.

    Raises:
        As `carry_out`.
    """
    names = (types,) if isinstance(types, str) else tuple(types)
    request = Request(model=model, types=names, output=None if output is None else Path(output), **more)
    return carry_out(request, threads=threads, dry_run=dry_run, progress=progress, stages=stages, calibrate=calibrate)


def carry_out(
    request: Request,
    *,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
    stages: Stages = at_once,
    calibrate: Calibrate | None = None,
) -> list[Conversion]:
    """Plan a request, and write its outputs unless `dry_run` is set.

    `stages` gives the tensors in parts. Each is written before the next one is asked for, so that what its encoders hold
    is released. `calibrate` collects the importance matrix of the open model, once for all outputs and before any is
    written, for a request without one. A dry run does not call it.

    Raises:
        UsageError: for an unknown type, contradictory options, `remote` for a model that is not on the hub, or an output
            that is the model itself.
        FormatError, ModelError, UnsupportedError: if the model cannot be read, is incomplete or not supported.
        HubError: if the hub does not give the model.
        ValueRangeError: if weights are NaN or infinite, or too large for their type.
        OutputError: if an output exists (unless `overwrite`) or cannot be written, or what an interrupted run left is of
            another request (`resume`). No partial file is left, unless `resume` is set.
    """
    started = time.perf_counter()
    threads = working_threads(threads)
    calibrated = calibrate is not None
    with open_job(request, threads=threads, dry_run=dry_run, calibrated=calibrated, fetching=progress.fetching) as job:
        if calibrate and not dry_run:
            job.check()
            job.check_targets()
            job = job.with_importance(calibrate(job.model.source))  # noqa: PLW2901
        if not dry_run:
            job.check()
            write_outputs(job, threads, progress, stages)
        seconds = time.perf_counter() - started
        return [
            Conversion(
                shards=output.writer.shards,
                dry_run=dry_run,
                type=output.recipe.name,
                architecture=job.model.source.architecture,
                source_bytes=job.model.source.source_bytes,
                seconds=seconds,
                plan=output.plan,
            )
            for output in job.outputs
        ]


def write_outputs(job: Job, threads: int, progress: Progress, stages: Stages) -> None:
    """Write all outputs of a job.

    Raises:
        As `carry_out`.
    """
    model, plans = job.model, [output.plan for output in job.outputs]
    with ExitStack() as stack:
        # Every output is created and allocated first: a full disk or an existing file shows before any work is done.
        for output in job.outputs:
            stack.enter_context(output.writer)
        if job.request.resume:
            stack.enter_context(_continuable())
        for stage in stages(job):
            compile_kernels(*kernels_needed(plans, stage.encoders))
            places = range(len(plans[0])) if stage.only is None else stage.only
            progress.start(sum(model.tensors[plans[0][place].name].nbytes for place in places))
            outputs = [
                Output(output.plan, chosen, output.writer)
                for output, chosen in zip(job.outputs, stage.encoders, strict=True)
            ]
            execute(
                model.tensors, outputs, only=stage.only, threads=threads, advance=progress.advance,
                interrupt=model.source.interrupt,
            )  # fmt: skip
            del stage, outputs  # what the encoders hold
        # Before the outputs appear, on leaving.
        expect_unchanged(model.source.files)
    for output in job.outputs:
        output.writer.forget()


@contextmanager
def _continuable() -> Iterator[None]:
    """Note on what ends a conversion that a later run can continue it."""
    try:
        yield
    except (KeyboardInterrupt, FormatError, HubError, OutputError) as error:
        error.add_note("the same command continues it")
        raise


def working_threads(asked: int | None) -> int:
    """The number of threads: `asked`, or by default one for each processor; at most `MOST_THREADS`."""
    return min(asked or available_processors(), MOST_THREADS)


def available_processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
