"""`quantize MODEL --type T`: convert a checkpoint to quantized GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from quantcli.cli.calibration import AUTO, FileOrAuto, FileOrAutoType, announce_calibration, calibration
from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.completions import complete_files, complete_recipes, complete_types
from quantcli.cli.converting import changes, conversion_progress
from quantcli.cli.fidelity import Fidelity, fidelity_options, report, stages_of, with_notes
from quantcli.cli.habits import read_positions
from quantcli.cli.options import arch_file_option, json_option, overwrite_option, threads_option
from quantcli.cli.output import columns, print_json, say, show
from quantcli.cli.output_paths import OutputPath, is_folder, made_folder
from quantcli.cli.target import TargetOptions, target_options
from quantcli.cli.texts import read_text
from quantcli.core.display import binary_size, decimal_count
from quantcli.core.errors import UsageError
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.conversion.convert import Conversion, RequestFields, Stages
    from quantcli.conversion.plan import PlanOptions
    from quantcli.quality.calibrate import Calibration

Value = TypeVar("Value")

Choose = Callable[..., tuple[list[str], "RequestFields"]]
"""Chooses types for a target: `TargetOptions.choose` with its last arguments, `request` and `begin`."""


GROUPS: Final = {
    "Output": ("types", "output", "split_max_size", "overwrite", "resume", "dry_run", "as_json"),
    "Fidelity": ("quality", "texts", "tokens", "moments", "device", "imatrix"),
    "Size": ("target_size", "target_bpw", "target_ram", "ctx", "effort", "save_types"),
    "Types of tensors": (
        "overrides", "tensor_type_file", "output_tensor_type", "token_embedding_type", "pure",
        "leave_output_tensor", "allow_requantize", "no_fallback",
    ),
    "Model": ("remote", "adapters", "override_kv", "prune_layers", "arch_file", "pre_tokenizer", "as_reference"),
}  # fmt: skip
"""The parameters in the sections of `quantize convert --help`."""


@described("convert", usage="MODEL --type T[,T...] [OPTIONS]", groups=GROUPS)
@click.argument("model", shell_complete=complete_files)
@click.argument("positions", nargs=-1, metavar="", shell_complete=complete_recipes)
@click.option(
    "-t", "--type", "types", metavar="T[,T...]", shell_complete=complete_recipes,
    help="Recipe, or several; `quantize types` lists all. Required, or a --target.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=OutputPath(folder=True), metavar="FILE",
    help="Output file or directory (DIR/); {type} is replaced by the recipe. Default: ./MODEL-TYPE.gguf.",
)  # fmt: skip
@click.option("--split-max-size", metavar="SIZE", help="Split into shards of at most SIZE: 2G, 500M.")
@click.option("--remote", is_flag=True, help="Stream tensors from the hub, without downloading the model.")
@overwrite_option
@click.option("--resume", is_flag=True, help="Continue an interrupted run; keep what is written if interrupted.")
@click.option("--dry-run", is_flag=True, help="Show the type of each tensor and why; write nothing.")
@json_option()
@threads_option
@fidelity_options
@target_options
@click.option(
    "--imatrix", type=FileOrAutoType(), metavar="FILE",
    help="Importance matrix (GGUF or .dat), or `auto`: collect one from the built-in text.",
)  # fmt: skip
@click.option("--tensor-type", "overrides", multiple=True, metavar="REGEX=T", help="Type by tensor name; first match wins.")
@click.option("--tensor-type-file", type=click.Path(path_type=Path), metavar="FILE", help="File of REGEX=T entries.")
@click.option("--output-tensor-type", metavar="T", shell_complete=complete_types, help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="T", shell_complete=complete_types, help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="Quantize all tensors to the recipe's base type.")
@click.option("--leave-output-tensor", is_flag=True, help="Do not quantize output.weight.")
@click.option("--allow-requantize", is_flag=True, help="Requantize quantized tensors, with a loss of quality.")
@click.option("--no-fallback", is_flag=True, help="Fail where a fallback type would be used.")
@click.option("--lora", "adapters", multiple=True, metavar="DIR[:SCALE]", help="Merge a LoRA adapter into the checkpoint.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Set metadata; TYPE: int, float, bool, str.")
@click.option("--prune-layers", metavar="L[,L...]", help="Remove these layers, counted from 0.")
@arch_file_option
@click.option("--pre-tokenizer", metavar="NAME", help="Pre-tokenizer, where it is not recognised.")
@click.option("--as-reference", is_flag=True, help="Write what llama.cpp's tools write, including their errors.")
def command(
    model: str,
    positions: Sequence[str],
    types: str | None,
    output: str | None,
    split_max_size: str | None,
    remote: bool,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    threads: int | None,
    imatrix: FileOrAuto | None,
    adapters: Sequence[str],
    override_kv: Sequence[str],
    prune_layers: str | None,
    arch_file: Path | None,
    pre_tokenizer: str | None,
    as_reference: bool,
    **more: Any,
) -> None:
    """MODEL is a Hugging Face directory, a safetensors or PyTorch file, a GGUF file or the first shard of one, or a model
    on the Hugging Face hub: ORG/NAME or ORG/NAME@REVISION. Hub models are downloaded to the hub's cache.

    \b
    quantize ./Llama-3.2-1B --type Q4_K_M
    quantize Qwen/Qwen3-0.6B --type Q4_K_M,Q8_0 -o models/
    quantize model-F16.gguf --type IQ4_XS --imatrix imatrix.gguf
    quantize ./Llama-3.2-1B --type IQ4_XS --imatrix auto
    quantize ./Llama-3.2-1B --type Q4_K_M --quality best
    quantize ./Llama-3.2-1B --target-size 700MB --quality best
    quantize model-F16.gguf model-Q5_K_M.gguf Q5_K_M       as llama-quantize
    quantize ./Llama-3.2-1B --type Q4_K_M --dry-run
    """
    given = read_positions(positions)
    goal, fidelity = TargetOptions.taken_from(more), Fidelity.taken_from(more)
    names = _names(_one(types, given.types, "--type"), required=not goal.given)
    output, threads = _one(output, given.output, "--output"), _one(threads, given.threads, "--threads")
    from quantcli.conversion.convert import RequestFields
    from quantcli.conversion.lora.merge import parse_adapter
    from quantcli.formats.gguf.shards import parse_size
    from quantcli.formats.imatrix import read_imatrix

    request = RequestFields(
        options=_plan_options(**more),
        imatrix=read_imatrix(imatrix) if isinstance(imatrix, Path) else None,
        changes=changes(override_kv, prune_layers),
        adapters=[parse_adapter(text) for text in adapters],
        architecture_file=arch_file,
        pre_tokenizer=pre_tokenizer,
        as_reference=as_reference,
        max_shard_bytes=None if split_max_size is None else parse_size(split_max_size),
        remote=remote, overwrite=overwrite, resume=resume,
    )  # fmt: skip
    feedback = fidelity.calibration(request, threads, imatrix=imatrix is not None, target=goal.given)
    goal.refuse({"--remote": remote, "--imatrix auto": imatrix == AUTO})
    choose = partial(goal.choose, model, names, fidelity.measuring(threads), feedback) if goal.given else None
    flags = {"dry_run": dry_run, "auto": imatrix == AUTO}
    results = _converted(model, names, output, request, threads, feedback=feedback, choose=choose, **flags)
    _report(results, with_importance=imatrix is not None, as_json=as_json)


def _converted(
    model: str,
    names: list[str],
    output: str | None,
    request: RequestFields,
    threads: int | None,
    *,
    dry_run: bool,
    auto: bool,
    feedback: Calibration | None,
    choose: Choose | None,
) -> list[Conversion]:
    """Convert, with progress. With `auto` an importance matrix is collected first. `choose` chooses the types."""
    from quantcli.conversion.convert import at_once, convert

    announce_compiling()
    # A dry run makes no directory. Without one, its result is the same.
    folder = made_folder(None if dry_run and output and is_folder(output) else output)
    kept: dict[str, list[str]] = {}
    with folder as path, conversion_progress("quantizing") as (progress, begin):
        calibrate = calibration(request, threads, partial(begin, "collecting importance")) if auto else None
        stages: Stages = at_once
        if feedback is not None:
            request, stages = with_notes(request, feedback), stages_of(feedback, begin, kept)
        if choose is not None:
            names, request = choose(request, begin)
        results = convert(
            model, names, path, threads=threads, dry_run=dry_run, progress=progress, calibrate=calibrate, stages=stages,
            **request,
        )  # fmt: skip
    if feedback is not None:
        report(feedback, kept, dry_run=dry_run)
    if auto and dry_run:
        announce_calibration()
    return results


def _report(results: Sequence[Conversion], *, with_importance: bool, as_json: bool) -> None:
    """Print the results, and on stderr what is unusual about them."""
    if with_importance:
        _warn_of_missing_importance(results)
    _warn_of_requantization(results)
    _report_lossless(results)
    _report_fallbacks(results)
    if as_json:
        documents = [result.as_json() for result in results]
        print_json(documents[0] if len(results) == 1 else documents)
    else:
        for result in results:
            _show(result)


def _names(types: str | None, *, required: bool) -> list[str]:
    if types is None:
        if not required:
            return []
        raise UsageError("no --type given", hint="a good first choice is --type Q4_K_M; `quantize types` lists all")
    return [name.strip() for name in types.split(",") if name.strip()]


def _one(option: Value | None, argument: Value | None, name: str) -> Value | None:
    """The value of an option that may be given by position instead."""
    if option is not None and argument is not None:
        raise UsageError(f"{name} is given twice: {option} and, by position, {argument}")
    return argument if option is None else option


def _plan_options(
    overrides: Sequence[str],
    tensor_type_file: Path | None,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    *,
    pure: bool,
    leave_output_tensor: bool,
    allow_requantize: bool,
    no_fallback: bool,
) -> PlanOptions:
    from quantcli.conversion.plan import PlanOptions, parse_override, parse_overrides, weight_type

    parsed = [parse_override(text) for text in overrides]
    if tensor_type_file:
        parsed += parse_overrides(read_text(tensor_type_file, "the tensor type file"))
    return PlanOptions(
        overrides=parsed,
        output_tensor_type=weight_type(output_tensor_type) if output_tensor_type else None,
        token_embedding_type=weight_type(token_embedding_type) if token_embedding_type else None,
        pure=pure,
        leave_output_tensor=leave_output_tensor,
        allow_requantize=allow_requantize,
        no_fallback=no_fallback,
    )


def _warn_of_missing_importance(results: Sequence[Conversion]) -> None:
    """Warn of tensors that the given importance matrix has no values for."""
    from quantcli.conversion.plan import without_importance

    for result in results:
        names = [tensor.name for tensor in without_importance(result.plan)]
        if names:
            say(f"{result.type}: the importance matrix has no values for {', '.join(names)}", err=True)


def _warn_of_requantization(results: Sequence[Conversion]) -> None:
    """Warn that requantizing tensors that are quantized in the checkpoint loses quality."""
    from quantcli.conversion.plan import quantized_twice

    for result in results:
        found = quantized_twice(result.plan)
        if found:
            origins = ", ".join(sorted({tensor.origin for tensor in found}))
            what = f"{counted(len(found), 'tensor')} stored as {origins} in the checkpoint"
            say(f"{result.type}: {what}: requantized, with a loss of quality", err=True)


def _report_lossless(results: Sequence[Conversion]) -> None:
    """Report tensors whose weights lie on a type's grid already, so that quantization is lossless."""
    from quantcli.conversion.plan import repacked_exactly

    for result in results:
        found = repacked_exactly(result.plan)
        if found:
            grids = ", ".join(sorted({tensor.type.name for tensor in found}))
            what = f"the weights of {counted(len(found), 'tensor')} already lie on the quantization grid of {grids}"
            say(f"{result.type}: {what} and are repacked without loss", err=True)


def _report_fallbacks(results: Sequence[Conversion]) -> None:
    """Report tensors with a fallback type, because their rows do not divide into the blocks of the wanted one."""
    from quantcli.conversion.plan import substituted

    for result in results:
        for (row, wanted, used), found in substituted(result.plan).items():
            who = f"{counted(len(found), 'tensor')} {'has' if len(found) == 1 else 'have'}"
            extra = sum(tensor.fallback_bytes for tensor in found)
            cost = f"{'-' if extra < 0 else '+'}{binary_size(abs(extra))}"
            why = f"{who} rows of {row:,}, not a multiple of {wanted.block_length}"
            say(f"{result.type}: {why}: {used.name} instead of {wanted.name}, {cost}", err=True)


def _show(result: Conversion) -> None:
    size = f"{binary_size(result.output_bytes)}, {result.bits_per_weight:.2f} bits per weight"
    what = f"{result.type}, {decimal_count(result.parameters)} parameters, {size}"
    if result.output is None:
        table = columns("tensor", "shape", "from", "to", "bytes", "reason", right=("bytes",))
        for tensor in result.plan:
            shape = " x ".join(str(length) for length in reversed(tensor.shape))
            source, target = tensor.source_type.name, tensor.type.name
            table.add_row(tensor.name, shape, source, target, f"{tensor.nbytes:,}", tensor.reason)
        show(table)
        say(f"would write {what}; nothing was written")
    else:
        shards = f", the first of {len(result.shards)} shards" if len(result.shards) > 1 else ""
        say(f"{result.output}{shards}: {what}, in {result.seconds:.1f} s")
