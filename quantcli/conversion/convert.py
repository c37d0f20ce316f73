"""From a checkpoint to GGUF files: a request is planned, carried out, and told about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from quantcli.conversion.changes import Changes
from quantcli.conversion.execute import Output, encoders_for, execute, kernels_needed
from quantcli.conversion.job import Job, open_job
from quantcli.conversion.lora import AdapterRequest
from quantcli.conversion.plan import PlannedTensor, PlanOptions
from quantcli.conversion.request import Request
from quantcli.formats.gguf_writer import Part
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import compile_kernels, uncompiled


class Asked(TypedDict, total=False):
    """What `convert` takes beside a model, types and an output: the fields of `Request`."""

    options: PlanOptions
    imatrix: Imatrix | None
    changes: Changes
    adapters: Sequence[AdapterRequest]
    architecture_file: Path | None
    pre_tokenizer: str | None
    as_reference: bool
    max_part_bytes: int | None
    remote: bool
    overwrite: bool


@dataclass(frozen=True)
class Progress:
    """Where a conversion reports to. The default reports nowhere.

    fetching(total)    called before a model is downloaded, with the bytes there are; returns a function that is called with
                       the bytes that have come since the last call
    compiling(types)   called before kernels are compiled for these types, which happens once per machine; returns a
                       function that is called with the seconds it took
    start(total)       source bytes there are to convert
    advance(done)      source bytes converted since the last call
    """

    fetching: Callable[[int], Callable[[int], Any]] = lambda total: lambda done: None
    compiling: Callable[[Sequence[str]], Callable[[float], None]] = lambda types: lambda seconds: None
    start: Callable[[int], Any] = lambda total: None
    advance: Callable[[int], None] = lambda done: None


SILENT: Final = Progress()

MOST_THREADS: Final = 1024
"""More threads than any machine has a use for; each takes memory."""


@dataclass(frozen=True)
class Conversion:
    """One output of a conversion, or what it would be."""

    parts: Sequence[Part]
    """The file, or those a split model is in."""
    dry_run: bool
    """Whether nothing was written."""
    type: str
    architecture: str
    source_bytes: int
    seconds: float
    plan: Sequence[PlannedTensor]

    @property
    def output(self) -> Path | None:
        """The file that was written, or the first part, which stands for all; None for a dry run."""
        return None if self.dry_run else self.parts[0].path

    @property
    def output_bytes(self) -> int:
        """The size of the file, or of all parts."""
        return sum(part.file_bytes for part in self.parts)

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.info.size for tensor in self.plan)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(tensor.nbytes for tensor in self.plan) / max(1, self.parameters)

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`; shapes are in GGUF order, the row length first. Only a split model has `parts`."""
        parts = [{"path": str(part.path), "tensors": part.tensors, "bytes": part.file_bytes} for part in self.parts]
        return {
            "output": None if self.output is None else str(self.output),
            **({"parts": parts} if len(parts) > 1 else {}),
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


def convert(
    model: str | PathLike[str],
    types: str | Sequence[str],
    output: str | PathLike[str] | None = None,
    *,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
    **more: Unpack[Asked],
) -> list[Conversion]:
    """Turn a checkpoint (or a GGUF file) into a GGUF file for each of `types`, reading it once.

    `model`, `types`, `output` and further arguments are those of `conversion.request.Request`. `threads` is the number of
    processors by default. With `dry_run` nothing is written and the results say what would be.

    Raises:
        As `carry_out`.
    """
    names = (types,) if isinstance(types, str) else tuple(types)
    request = Request(model=model, types=names, output=None if output is None else Path(output), **more)
    return carry_out(request, threads=threads, dry_run=dry_run, progress=progress)


def carry_out(
    request: Request, *, threads: int | None = None, dry_run: bool = False, progress: Progress = SILENT
) -> list[Conversion]:
    """Plan what is asked for, and write it unless `dry_run`.

    Raises:
        UsageError: for an unknown type, options that contradict each other, `remote` for what is no model of the hub, or an
            output that is the model itself.
        FormatError, ModelError, UnsupportedError: if the model cannot be read, is incomplete or not supported.
        HubError: if the hub does not give the model.
        ValueRangeError: if weights are NaN or infinite, or too large for their type.
        OutputError: if an output exists (unless `overwrite`) or cannot be written. No partial file is left.
    """
    started = time.perf_counter()
    threads = working_threads(threads)
    with open_job(request, threads=threads, dry_run=dry_run, fetching=progress.fetching) as job:
        if not dry_run:
            job.check()
            _write(job, threads, progress)
        seconds = time.perf_counter() - started
        return [
            Conversion(
                parts=output.writer.parts,
                dry_run=dry_run,
                type=output.recipe.name,
                architecture=job.model.source.architecture,
                source_bytes=job.model.source.source_bytes,
                seconds=seconds,
                plan=output.plan,
            )
            for output in job.outputs
        ]


def _write(job: Job, threads: int, progress: Progress) -> None:
    """Carry the plans out."""
    model, plans = job.model, [output.plan for output in job.outputs]
    with ExitStack() as stack:
        # Room for every file is taken first: a full disk or an existing file shows before any work is done.
        for output in job.outputs:
            stack.enter_context(output.writer)
        encoders = [encoders_for(plan, model.imatrix) for plan in plans]
        needed = kernels_needed(plans, encoders)
        missing = sorted(kind.name for kind in uncompiled(*needed))
        started = time.perf_counter()
        compiled = progress.compiling(missing) if missing else None
        compile_kernels(*needed)
        if compiled:
            compiled(time.perf_counter() - started)
        outputs = [Output(output.plan, chosen, output.writer) for output, chosen in zip(job.outputs, encoders, strict=True)]
        progress.start(sum(tensor.nbytes for tensor in model.tensors.values()))
        execute(model.tensors, outputs, threads=threads, advance=progress.advance, interrupt=model.source.interrupt)


def working_threads(asked: int | None) -> int:
    """How many threads work: those asked for, by default one for each processor."""
    return min(asked or available_processors(), MOST_THREADS)


def available_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
