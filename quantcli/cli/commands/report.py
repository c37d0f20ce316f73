"""`quantize report FILE... -o report.html`: what each file costs, as a page."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantcli import __version__
from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.evaluating import check_base, evaluate_files, named_texts
from quantcli.cli.evaluations import Request
from quantcli.cli.evaluations import document as evaluation_document
from quantcli.cli.gguf_description import describe, file_type_name
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.options import PATH, arch_file_option, json_option, overwrite_option, text_files_option, threads_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.cli.output_paths import OutputPath
from quantcli.core.display import binary_size
from quantcli.core.errors import UsageError
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.formats.gguf.reader import GGUFFile
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.report.content import Report, ReportFile


@described("report")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=OutputPath(), required=True, metavar="OUT", help="Page to write, such as report.html.")
@click.option("--base", type=PATH, metavar="FILE", help="Base model, such as F16: show divergences and errors from it.")
@text_files_option("Text file, UTF-8; - reads stdin; repeatable.", required=False)
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks per text. Default: all.")
@overwrite_option
@arch_file_option
@threads_option
@json_option()
def command(
    files: tuple[Path, ...],
    output: Path,
    base: Path | None,
    texts: tuple[Path, ...],
    context: int,
    chunks: int | None,
    overwrite: bool,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """The page shows size against divergence from the base (without one, perplexity), each text, the position in the
    context, the types and errors of tensors by layer, bytes by role, and how each figure was made. It is one file that
    loads nothing, under 500 kB. All figures are also written as JSON, to a file of the same name with the suffix .json.

    Without --text, nothing is evaluated. Without --base, there are no divergences and no errors.

    \b
    quantize report model-Q4_K_M.gguf model-Q8_0.gguf --base model-F16.gguf --text wiki.test.raw -o report.html
    quantize report model-*.gguf -o types.html
    """
    started = time.perf_counter()
    targets = _check_targets(output, [*files, *([] if base is None else [base]), *texts], overwrite=overwrite)
    contents = named_texts(texts)
    if base is not None and not texts:
        check_base(files, base)
    results = []
    if texts:
        results = evaluate_files(
            files, contents, base, context=context, chunks=chunks, threads=threads, arch_file=arch_file
        )
    request = Request(files, texts, base, context)
    made = _report(request, results, _origin(request, results, chunks, output), threads)
    from quantcli.quality.report.document import document
    from quantcli.quality.report.page import render

    evaluated = evaluation_document(results, request, time.perf_counter() - started) if results else None
    facts = {"version": __version__} | document(made) | {"evaluation": evaluated}
    written = (render(made), json.dumps(facts, allow_nan=False) + "\n")
    sizes = _write(targets, [text.encode() for text in written], overwrite=overwrite)
    if as_json:
        print_json({"output": str(targets[0]), "json": str(targets[1]), "bytes": sizes[0], "files": len(files)})
    else:
        say(f"{targets[0]}: {counted(len(files), 'file')}, {binary_size(sizes[0])}; figures in {targets[1]}")


def _check_targets(output: Path, sources: Sequence[Path], *, overwrite: bool) -> tuple[Path, Path]:
    """The paths of the page and of the JSON document, which can be written."""
    from quantcli.formats.output_file import OutputFile, refuse_overwriting

    if output.suffix == ".json":
        raise UsageError(f"-o {output}: this is the page, and the JSON document is beside it", hint="-o report.html")
    targets = (output, output.with_suffix(".json"))
    for target in targets:
        OutputFile(target, 0, overwrite=overwrite).check_target()
    refuse_overwriting(sources, targets, "a file it is made from")
    return targets


def _report(
    request: Request, results: Sequence[TextEvaluation], origin: Sequence[tuple[str, str]], threads: int | None
) -> Report:
    """Read the headers and, with a base, compare the weights."""
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.report.content import Report, ReportText
    from quantcli.quality.report.files import labels, read_file

    paths = [*request.files, *([] if request.base is None else [request.base])]
    with ExitStack() as stack:
        opened = [stack.enter_context(open_gguf(path)) for path in paths]
        report_truncation(*paths)
        found = [
            read_file(file, label, file_type_name(file), list(describe(file)))
            for file, label in zip(opened, labels(paths), strict=True)
        ]
        base = None if request.base is None else found.pop()
        if base is not None:
            found = _with_errors(found, opened, threads)
    named = [ReportText(_text_name(text), result) for text, result in zip(request.texts, results, strict=False)]
    title = (base or found[0]).title
    return Report(title, tuple(found), base, tuple(named), request.context, tuple(origin))


def _with_errors(files: Sequence[ReportFile], opened: Sequence[GGUFFile], threads: int | None) -> list[ReportFile]:
    """The files with the errors of their tensors against the last opened file, with a progress bar on a terminal."""
    from dataclasses import replace

    from quantcli.conversion.convert import working_threads
    from quantcli.quality.tensor_errors import compare_tensors

    announce_compiling()
    base = opened[-1]
    total = len(files) * sum(tensor.nbytes for tensor in base.tensors.values())
    compared = []
    with byte_progress("comparing", total) as bar:
        for file, other in zip(files, opened, strict=False):
            errors = compare_tensors(
                base.tensors, other.tensors, threads=working_threads(threads), advance=bar.update
            ).errors
            compared.append(replace(file, errors={error.name: error for error in errors}))
    return compared


def _text_name(text: Path) -> str:
    return "stdin" if str(text) == "-" else text.name


def _origin(
    request: Request, results: Sequence[TextEvaluation], chunks: int | None, output: Path
) -> list[tuple[str, str]]:
    """How the figures were made."""
    words = ["quantize", "report", *map(str, request.files)]
    words += [] if request.base is None else ["--base", str(request.base)]
    words += [word for text in request.texts for word in ("--text", str(text))]
    words += ["--ctx", str(request.context), *([] if chunks is None else ["--chunks", str(chunks)])] if results else []
    words += ["-o", str(output)]
    origin = [("Program", f"quantcli {__version__}"), ("Command", shlex.join(words))]
    for text, result in zip(request.texts, results, strict=True):
        found = result.evaluations[0]
        scored = f"{counted(found.tokens, 'scored token')} in {counted(found.chunks, 'chunk')} of {request.context} tokens"
        origin.append(("Text", f"{text}: {scored}"))
    if results:
        how = "of the right token over the second half of each chunk, as llama-perplexity computes it"
        origin.append(("Perplexity", f"exp of the mean of -log p {how}"))
    if results and request.base is not None:
        how = "the mean over the same positions of sum(p_base * log(p_base / p)), in nats"
        origin.append(("KL divergence", f"from {request.base}: {how}"))
    if results:
        how = "treat positions as independent; intervals are 1.96 standard errors on each side"
        origin.append(("Standard errors", how))
    if request.base is not None:
        how = "RMSE of the dequantized weights divided by the root mean square of the base's"
        origin.append(("Relative error", f"{how}, as in quantize compare"))
    origin.append(("Figures", f"all of them as JSON: {output.with_suffix('.json').name}, beside this page"))
    return origin


def _write(targets: Sequence[Path], contents: Sequence[bytes], *, overwrite: bool) -> list[int]:
    """Write files that each appear whole, when there is room for all. Gives their sizes."""
    from quantcli.formats.output_file import OutputFile

    with ExitStack() as stack:
        for target, content in zip(targets, contents, strict=True):
            file = stack.enter_context(OutputFile(target, len(content), overwrite=overwrite))
            file.write_at(memoryview(content), 0)
    return [len(content) for content in contents]
