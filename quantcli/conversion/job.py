"""A conversion that is planned and not executed yet: the open model and the planned outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from quantcli.conversion.already_quantized import inspect_weights
from quantcli.conversion.locate import locate
from quantcli.conversion.model_changes import ChangedModel, apply_changes
from quantcli.conversion.plan import PlannedTensor, PlanOptions, check_plan, make_plan
from quantcli.conversion.recipes import Recipe, find_recipe
from quantcli.conversion.request import Request
from quantcli.conversion.resuming import subject_of
from quantcli.conversion.source import Source, open_source
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.shards import by_size, shard_prefix
from quantcli.formats.gguf.spec import Metadata
from quantcli.formats.gguf.split import SplitWriter
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.hub.models import HubModel
from quantcli.formats.imatrix import Imatrix
from quantcli.formats.journal import Subject
from quantcli.formats.output_file import OutputFile, refuse_overwriting
from quantcli.formats.tensor_writer import TensorWriter

Calibrate = Callable[[Source], Imatrix]
"""Collects the importance matrix of an open model."""


@dataclass(frozen=True)
class OutputPlan:
    """One output: its path, its metadata, and its tensors in file order. `resume` is that of `OutputFile`."""

    recipe: Recipe
    path: Path
    metadata: Metadata
    plan: tuple[PlannedTensor, ...]
    max_shard_bytes: int | None
    overwrite: bool
    resume: Subject | None = None

    @cached_property
    def writer(self) -> TensorWriter:
        """The writer of one file or of the shards of a split model. No file is opened before the writer is entered."""
        tensors = [planned.info for planned in self.plan]
        if self.max_shard_bytes is None:
            return GGUFWriter(self.path, self.metadata, tensors, overwrite=self.overwrite, resume=self.resume)
        shards = by_size(self.max_shard_bytes)(tensors)
        return SplitWriter(shard_prefix(self.path), self.metadata, shards, overwrite=self.overwrite, resume=self.resume)


@dataclass(frozen=True)
class Job:
    """A request with its model opened and changed, and an output for each of its types.

    recipes, paths   those of the outputs
    threads          how many inspect the weights; `read` says whether their rows may be read
    """

    request: Request
    model: ChangedModel
    outputs: tuple[OutputPlan, ...]
    recipes: tuple[Recipe, ...]
    paths: tuple[Path, ...]
    threads: int
    read: bool

    def with_importance(self, imatrix: Imatrix) -> Job:
        """The job planned again, with an importance matrix in place of the request's.

        Raises:
            ModelError: if it is of another model.
        """
        source, changes = self.model.source, self.request.changes
        model = apply_changes(source, changes, imatrix)
        request = replace(self.request, imatrix=imatrix)
        options = _with_sizes(request.options, model)
        return _planned(request, model, options, self.recipes, self.paths, self.threads, read=self.read)

    def check(self) -> None:
        """Refuse a plan that cannot be executed. A dry run shows such a plan without this check.

        Raises:
            UsageError: if a type needs an importance matrix, or a quantized tensor would be quantized again without
                `allow_requantize`.
            UnsupportedError: if a tensor's type cannot be converted.
            OutputError: if an output would replace the model.
        """
        for output in self.outputs:
            check_plan(output.plan, self.request.options)
        paths = [shard.path for output in self.outputs for shard in output.writer.shards]
        refuse_overwriting(self.model.source.paths, paths)

    def check_targets(self) -> None:
        """Check that the outputs may be written. A long job calls this before it begins; writing checks it again, and then
        knows whether an existing file was written by the run that it resumes.

        Raises:
            OutputError: if an output exists (unless `overwrite`), or its directory does not.
        """
        for output in self.outputs:
            for shard in output.writer.shards:
                OutputFile(shard.path, 0, overwrite=output.overwrite or self.request.resume).check_target()


@contextmanager
def open_job(
    request: Request,
    *,
    threads: int,
    dry_run: bool = False,
    calibrated: bool = False,
    fetching: Callable[[int], Callable[[int], Any]] = lambda total: lambda done: None,
) -> Iterator[Job]:
    """Open the model of a request and plan its outputs. The model's files are closed on leaving.

    With `dry_run` a model of the hub is not downloaded; the plan is made from its headers. `fetching` is called before a
    download: see `formats.hub.models.fetch_model`. With `calibrated` the plan is made as if there were an importance
    matrix, which the caller collects and gives to `Job.with_importance`.

    Raises:
        UsageError: for an unknown type, contradictory options, or `remote` for a model that is not on the hub.
        FormatError, ModelError, UnsupportedError: if the model cannot be read, is incomplete or not supported.
        HubError: if the hub does not give the model.
    """
    recipes = tuple(find_recipe(name) for name in request.types)
    located = locate(request.model, remote=request.remote, dry_run=dry_run, started=fetching)
    labels = [request.label or recipe.name for recipe in recipes]
    paths = tuple(output_paths(located.name, labels, request.output))
    with open_source(
        located.place,
        model_id=located.model_id,
        architecture_file=request.architecture_file,
        pre_tokenizer=request.pre_tokenizer,
        adapters=request.adapters,
        as_reference=request.as_reference,
    ) as source:
        model = apply_changes(source, request.changes, request.imatrix)
        options = _with_sizes(request.options, model)
        if calibrated:
            options = replace(options, calibrated=True)
        # A dry run of a model of the hub reads its headers only. llama.cpp does not look for weights on a grid.
        read = not (dry_run and isinstance(located.place, HubModel)) and not request.as_reference
        yield _planned(request, model, options, recipes, paths, threads, read=read)


def _with_sizes(options: PlanOptions, model: ChangedModel) -> PlanOptions:
    return replace(options, importance=model.imatrix.sizes) if model.imatrix else options


def _planned(
    request: Request,
    model: ChangedModel,
    options: PlanOptions,
    recipes: tuple[Recipe, ...],
    paths: tuple[Path, ...],
    threads: int,
    *,
    read: bool,
) -> Job:
    """The job of an open model. `options` are those of the request, with the importance values that there are."""
    infos = list(model.tensors.values())
    plans = [make_plan(infos, model.metadata, recipe, options) for recipe in recipes]
    outputs = [
        OutputPlan(
            recipe,
            path,
            model.output_metadata(recipe),
            tuple(inspect_weights(plan, model.tensors, threads, read=read)),
            request.max_shard_bytes,
            request.overwrite,
            subject_of(request, model, recipe) if request.resume else None,
        )
        for recipe, path, plan in zip(recipes, paths, plans, strict=True)
    ]
    return Job(request, model, tuple(outputs), recipes, paths, threads, read)


def output_paths(name: str, types: Sequence[str], output: Path | None) -> list[Path]:
    """The output path of each type for the model called `name`: see `Request.output`.

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
    paths = [Path(pattern.replace("{type}", type)) for type in types]
    if len(set(paths)) < len(paths):
        raise UsageError(
            f"several files would be written to {paths[0]}", hint="give -o a directory, or put {type} into the name"
        )
    return paths
