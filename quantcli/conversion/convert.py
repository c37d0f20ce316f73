"""From a checkpoint to GGUF files: open, plan, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

from quantcli.conversion.already_quantized import look_at_weights
from quantcli.conversion.changes import NO_CHANGES, ChangedModel, Changes, change
from quantcli.conversion.locate import locate
from quantcli.conversion.lora import AdapterRequest
from quantcli.conversion.pipeline import Output, kernels_needed, run_pipeline
from quantcli.conversion.plan import DEFAULT_OPTIONS, PlannedTensor, PlanOptions, check_plan, make_plan
from quantcli.conversion.recipes import Recipe, find_recipe
from quantcli.conversion.source import open_source
from quantcli.formats.errors import UsageError
from quantcli.formats.gguf_parts import by_size, part_prefix
from quantcli.formats.gguf_spec import Metadata
from quantcli.formats.gguf_split import SplitWriter
from quantcli.formats.gguf_writer import GGUFWriter, Part, TensorWriter, refuse_overwriting
from quantcli.formats.hub import HubModel
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import compile_kernels, uncompiled


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
        return 8 * sum(tensor.nbytes for tensor in self.plan) / self.parameters

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
    options: PlanOptions = DEFAULT_OPTIONS,
    imatrix: Imatrix | None = None,
    changes: Changes = NO_CHANGES,
    adapters: Sequence[AdapterRequest] = (),
    architecture_file: Path | None = None,
    pre_tokenizer: str | None = None,
    as_reference: bool = False,
    max_part_bytes: int | None = None,
    threads: int | None = None,
    remote: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> list[Conversion]:
    """Turn a checkpoint (or a GGUF file) into a GGUF file for each of `types`, reading it once.

    `model` is a path or, where it is a text and no such path exists, may be a model of the Hugging Face hub, `ORG/NAME` or
    `ORG/NAME@REVISION`, which is downloaded to the hub's cache (`conversion.locate` tells the two apart); with
    `remote` it is not, but read where it is, and so it is with `dry_run` if it is not in the cache.
    `types` are names such as `Q4_K_M`. `output` is a file, or an existing directory; by default the file is
    `MODEL-TYPE.gguf` in the current directory. For several types, `output` is a directory or has `{type}` in its name.
    `options` and `imatrix` guide the plan; `adapters` are merged into a checkpoint, and `changes` made to the model, first.
    `architecture_file` and `pre_tokenizer` say what cannot be recognised in a checkpoint. With `as_reference` the metadata
    are those that llama.cpp's converter writes, also where transformers reads a checkpoint otherwise. With
    `max_part_bytes`, an output is split into parts of so many bytes of tensors at most, named after the file:
    `NAME-00001-of-00003.gguf`.
    `threads` is the number of processors by default.
    With `dry_run` nothing is written and the results say what would be.

    Raises:
        UsageError: for an unknown type, options that contradict each other, `remote` for what is no model of the hub, or an
            output that is the model itself.
        FormatError, ModelError, UnsupportedError: if the model cannot be read, is incomplete or not supported.
        HubError: if the hub does not give the model.
        ValueRangeError: if weights are NaN or infinite.
        OutputError: if an output exists (unless `overwrite`) or cannot be written. No partial file is left.
    """
    started = time.perf_counter()
    recipes = [find_recipe(name) for name in ([types] if isinstance(types, str) else types)]
    located = locate(model, remote=remote, dry_run=dry_run, started=progress.fetching)
    paths = output_paths(located.name, recipes, None if output is None else Path(output))
    with open_source(
        located.place,
        model_id=located.model_id,
        architecture_file=architecture_file,
        pre_tokenizer=pre_tokenizer,
        adapters=adapters,
        as_reference=as_reference,
    ) as source:
        changed = change(source, changes, imatrix)
        if changed.imatrix:
            options = replace(options, importance=changed.imatrix.sizes)
        infos = list(changed.tensors.values())
        threads = working_threads(threads)
        planned = [make_plan(infos, changed.metadata, recipe, options) for recipe in recipes]
        # A dry run of a model of the hub is answered from its headers.
        read = not (dry_run and isinstance(located.place, HubModel))
        plans = [look_at_weights(plan, changed.tensors, threads, read=read) for plan in planned]
        writers = [
            _writer(path, changed.output_metadata(recipe), plan, max_part_bytes, overwrite=overwrite)
            for path, recipe, plan in zip(paths, recipes, plans, strict=True)
        ]
        if not dry_run:
            for plan in plans:
                check_plan(plan, options)
            refuse_overwriting(source.paths, [part.path for writer in writers for part in writer.parts])
            _write(changed, plans, writers, threads, progress)
        seconds = time.perf_counter() - started
        return [
            Conversion(
                parts=writer.parts,
                dry_run=dry_run,
                type=recipe.name,
                architecture=source.architecture,
                source_bytes=source.source_bytes,
                seconds=seconds,
                plan=plan,
            )
            for recipe, writer, plan in zip(recipes, writers, plans, strict=True)
        ]


def _writer(
    path: Path, metadata: Metadata, plan: Sequence[PlannedTensor], max_part_bytes: int | None, *, overwrite: bool
) -> TensorWriter:
    """What writes one output: a file, or the parts of a split model."""
    tensors = [planned.info for planned in plan]
    if max_part_bytes is None:
        return GGUFWriter(path, metadata, tensors, overwrite=overwrite)
    return SplitWriter(part_prefix(path), metadata, by_size(max_part_bytes)(tensors), overwrite=overwrite)


def _write(
    model: ChangedModel,
    plans: Sequence[Sequence[PlannedTensor]],
    writers: Sequence[TensorWriter],
    threads: int,
    progress: Progress,
) -> None:
    """Carry the plans out."""
    with ExitStack() as stack:
        # Room for every file is taken first: a full disk or an existing file shows before any work is done.
        for writer in writers:
            stack.enter_context(writer)
        needed = kernels_needed(plans)
        missing = sorted(kind.name for kind in uncompiled(*needed))
        started = time.perf_counter()
        compiled = progress.compiling(missing) if missing else None
        compile_kernels(*needed)
        if compiled:
            compiled(time.perf_counter() - started)
        outputs = [Output(plan, writer) for plan, writer in zip(plans, writers, strict=True)]
        progress.start(sum(tensor.nbytes for tensor in model.tensors.values()))
        run_pipeline(
            model.tensors,
            outputs,
            model.imatrix,
            threads=threads,
            advance=progress.advance,
            interrupt=model.source.interrupt,
        )


def output_paths(name: str, recipes: Sequence[Recipe], output: Path | None) -> list[Path]:
    """Where each recipe's file of the model called `name` goes: see `convert`.

    Raises:
        UsageError: if several files would go to one path.
    """
    usual = f"{name}-{{type}}.gguf"
    if output is None:
        pattern = usual
    elif output.is_dir():
        pattern = str(output / usual)
    else:
        pattern = str(output)
    paths = [Path(pattern.replace("{type}", recipe.name)) for recipe in recipes]
    if len(set(paths)) < len(paths):
        raise UsageError(
            f"several files would be written to {paths[0]}", hint="give -o a directory, or put {type} into the name"
        )
    return paths


def working_threads(asked: int | None) -> int:
    """How many threads work: those asked for, by default one for each processor."""
    return min(asked or available_processors(), MOST_THREADS)


def available_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
