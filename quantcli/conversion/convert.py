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

from quantcli.conversion.output_metadata import quantized_metadata
from quantcli.conversion.pipeline import Output, kernels_needed, run_pipeline
from quantcli.conversion.plan import DEFAULT_OPTIONS, PlannedTensor, PlanOptions, check_plan, make_plan
from quantcli.conversion.recipes import Recipe, find_recipe
from quantcli.conversion.source import Source, open_source
from quantcli.formats.errors import OutputError, UsageError
from quantcli.formats.gguf_writer import GGUFWriter
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels.rows import compile_kernels, uncompiled


@dataclass(frozen=True)
class Progress:
    """Where a conversion reports to. The default reports nowhere.

    compiling(types)   called before kernels are compiled for these types, which happens once per machine; returns a
                       function that is called with the seconds it took
    start(total)       source bytes there are to convert
    advance(done)      source bytes converted since the last call
    """

    compiling: Callable[[Sequence[str]], Callable[[float], None]] = lambda types: lambda seconds: None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[int], None] = lambda done: None


SILENT: Final = Progress()


@dataclass(frozen=True)
class Conversion:
    """One output of a conversion, or what it would be."""

    output: Path | None
    """The file that was written, None for a dry run."""
    type: str
    architecture: str
    source_bytes: int
    output_bytes: int
    """The whole file's size."""
    seconds: float
    plan: Sequence[PlannedTensor]

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.info.size for tensor in self.plan)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(tensor.nbytes for tensor in self.plan) / self.parameters

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`; shapes are in GGUF order, the row length first."""
        return {
            "output": None if self.output is None else str(self.output),
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
    architecture_file: Path | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> list[Conversion]:
    """Turn a checkpoint (or a GGUF file) into a GGUF file for each of `types`, reading it once.

    `types` are names such as `Q4_K_M`. `output` is a file, or an existing directory; by default the file is
    `MODEL-TYPE.gguf` in the current directory. For several types, `output` is a directory or has `{type}` in its name.
    `options` and `imatrix` guide the plan. `threads` is the number of processors by default. With `dry_run` nothing is
    written and the results say what would be.

    Raises:
        UsageError: for an unknown type, options that contradict each other, or an output that is the model itself.
        FormatError, ModelError, UnsupportedError: if the model cannot be read, is incomplete or not supported.
        ValueRangeError: if weights are NaN or infinite.
        OutputError: if an output exists (unless `overwrite`) or cannot be written. No partial file is left.
    """
    started = time.perf_counter()
    recipes = [find_recipe(name) for name in ([types] if isinstance(types, str) else types)]
    paths = output_paths(Path(model), recipes, None if output is None else Path(output))
    if imatrix is not None:
        options = replace(options, importance=imatrix.sizes)
    with open_source(Path(model), architecture_file) as source:
        infos = list(source.tensors.values())
        plans = [make_plan(infos, source.metadata, recipe, options) for recipe in recipes]
        metadata = [quantized_metadata(source.metadata, recipe, imatrix, tensors=infos) for recipe in recipes]
        writers = [
            GGUFWriter(path, header, [planned.info for planned in plan], overwrite=overwrite)
            for path, header, plan in zip(paths, metadata, plans, strict=True)
        ]
        if not dry_run:
            for plan in plans:
                check_plan(plan, options)
            _refuse_overwriting_source(source, paths)
            _write(source, plans, writers, imatrix, threads or available_processors(), progress)
        seconds = time.perf_counter() - started
        return [
            Conversion(
                output=None if dry_run else path,
                type=recipe.name,
                architecture=source.architecture,
                source_bytes=source.source_bytes,
                output_bytes=writer.file_bytes,
                seconds=seconds,
                plan=plan,
            )
            for path, recipe, writer, plan in zip(paths, recipes, writers, plans, strict=True)
        ]


def _write(
    source: Source,
    plans: Sequence[Sequence[PlannedTensor]],
    writers: Sequence[GGUFWriter],
    imatrix: Imatrix | None,
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
        progress.start(sum(tensor.nbytes for tensor in source.tensors.values()))
        run_pipeline(source.tensors, outputs, imatrix, threads=threads, advance=progress.advance)


def output_paths(model: Path, recipes: Sequence[Recipe], output: Path | None) -> list[Path]:
    """Where each recipe's file goes: see `convert`.

    Raises:
        UsageError: if several files would go to one path.
    """
    name = f"{model_name(model)}-{{type}}.gguf"
    if output is None:
        pattern = name
    elif output.is_dir():
        pattern = str(output / name)
    else:
        pattern = str(output)
    paths = [Path(pattern.replace("{type}", recipe.name)) for recipe in recipes]
    if len(set(paths)) < len(paths):
        raise UsageError(
            f"several files would be written to {paths[0]}", hint="give -o a directory, or put {type} into the name"
        )
    return paths


def model_name(model: Path) -> str:
    """What to call the output of a model: its directory's name, or its file's without the ending."""
    if model.is_dir():
        return model.resolve().name
    return model.stem if model.stem != "model" else model.resolve().parent.name


def available_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_overwriting_source(source: Source, paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists() and path.samefile(source.path):
            raise OutputError(f"{path}: the output would replace the model it is made from", hint="choose another -o")
