"""`quantize imatrix MODEL --text F -o OUT.gguf`: the importance matrix of a model on texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.calibration import FileOrAuto, FileOrAutoType, name_of, named_text
from quantcli.cli.commands import described
from quantcli.cli.imatrix_description import summary
from quantcli.cli.options import PATH, json_option, model_options, overwrite_option
from quantcli.cli.output import chunk_progress, print_json, show
from quantcli.cli.output_paths import OutputPath
from quantcli.cli.running import open_observed, warn_beyond_training
from quantcli.core.errors import FormatError, UsageError, warn
from quantcli.core.listing import listed

if TYPE_CHECKING:
    from quantcli.formats.imatrix_sums import ImatrixSums


@described("imatrix")
@click.argument("model", type=PATH, required=False)
@click.option(
    "-f", "--text", "texts", type=FileOrAutoType(exists=True, dir_okay=False), multiple=True, metavar="F",
    help="Calibration text, UTF-8, or `auto`: the built-in one; repeatable.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputPath(), required=True, metavar="OUT", help="Importance matrix to write.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=16), default=512, show_default=True, metavar="N", help="Tokens per chunk."
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks. Default: all.")
@click.option("--parse-special", is_flag=True, help="Tokenize special tokens in the texts.")
@click.option("--process-output", is_flag=True, help="Collect for output.weight, too.")
@click.option("--save-every", type=click.IntRange(min=1), metavar="N", help="Write OUT after every N chunks.")
@click.option("--resume", is_flag=True, help="Continue from the chunks in OUT, written with the same texts.")
@click.option("--merge", "merged", type=PATH, multiple=True, metavar="FILE", help="Importance matrix to add; repeatable.")
@click.option(
    "--output-format", "layout", type=click.Choice(["gguf", "dat"]), default="gguf", show_default=True,
    help="GGUF, or the older binary layout.",
)  # fmt: skip
@overwrite_option
@model_options
@json_option()
def command(**options: Any) -> None:
    """The importance matrix has the squared input activations of every matrix in the layers, summed over the tokens of the
    texts. --imatrix reads it, and so does llama-quantize. MODEL is a GGUF file, or a checkpoint as it is. Without MODEL and
    --text, the files of --merge are added. A text in a file called auto is given as ./auto.

    \b
    quantize imatrix model-F16.gguf --text calibration.txt -o imatrix.gguf
    quantize imatrix ORG-model/ --text auto -o imatrix.gguf --chunks 100
    quantize imatrix ORG-model/ --text prose.txt --text code.txt -o imatrix.gguf --save-every 20
    quantize imatrix --merge first.gguf --merge second.gguf -o imatrix.gguf
    """
    model, texts, output = options["model"], options["texts"], options["output"]
    if (model is None) != (not texts):
        raise UsageError("MODEL and --text go together", hint="quantize imatrix MODEL --text F -o OUT.gguf")
    if not texts and not options["merged"]:
        raise UsageError("nothing to do", hint="give MODEL and --text, or files to --merge")
    started = time.perf_counter()
    from quantcli.formats.imatrix_sums import merge_sums, read_sums
    from quantcli.formats.output_file import OutputFile, refuse_overwriting

    OutputFile(output, 0, overwrite=options["overwrite"] or options["resume"]).check_target()
    refuse_overwriting([text for text in texts if isinstance(text, Path)], [output], "a text it is made from")

    parts = [(str(path), read_sums(path)) for path in options["merged"]]
    if texts:
        parts.append((str(output), _collected(model, texts, output, options)))
    result = merge_sums(parts)
    _write(output, result, options["layout"])
    if options["as_json"]:
        print_json(_document(result, output, time.perf_counter() - started))
    else:
        show(summary(result, output))


def _collected(model: Path, texts: list[FileOrAuto], output: Path, options: dict[str, Any]) -> ImatrixSums:
    """Run the model on the texts, with a progress bar of chunks on a terminal."""
    from quantcli.quality.imatrix import collect, cut_texts, digest

    before = _interrupted(output, texts, options["context"]) if options["resume"] and output.exists() else None
    named = [named_text(text) for text in texts]
    loaded, collector, identity = open_observed(
        model, output, threads=options["threads"], weights=options["weights"], arch_file=options["arch_file"]
    )
    warn_beyond_training(loaded, options["context"])
    chunks = cut_texts(
        loaded.tokenizer, named, options["context"], options["chunks"], parse_special=options["parse_special"]
    )

    def made_from(sums: ImatrixSums) -> ImatrixSums:
        return replace(sums, made_from={"model": identity, "tokens": digest(chunks[: sums.chunks])})

    if before is not None:
        _check_origin(output, before, made_from(before))
    every = options["save_every"]
    with chunk_progress("collecting", len(chunks)) as bar:

        def advance(done: int, so_far: Callable[[], ImatrixSums]) -> None:
            bar.update(done - bar.n)
            if every and done % every == 0 and done < len(chunks):
                _write(output, made_from(so_far()), options["layout"])

        collected = collect(
            loaded.model, collector, chunks, [name for name, _ in named],
            process_output=options["process_output"], before=before, advance=advance,
        )  # fmt: skip
        return made_from(collected)


def _interrupted(output: Path, texts: list[FileOrAuto], context: int) -> ImatrixSums:
    """The importance matrix that `output` has, of the same texts."""
    from quantcli.formats.imatrix_sums import read_sums

    found = read_sums(output)
    if found.datasets != tuple(map(name_of, texts)) or found.chunk_size != context:
        what = f"collected from {listed(found.datasets)} in chunks of {found.chunk_size}"
        raise FormatError(output, f"{what}: --resume needs the same texts and --ctx")
    return found


def _check_origin(output: Path, before: ImatrixSums, now: ImatrixSums) -> None:
    """Refuse to continue an importance matrix of another model, or of other tokens."""
    for what, expected in now.made_from.items():
        found = before.made_from.get(what)
        if found is None:
            warn(f"{output}: does not say of which {what} it is made; it is continued as if of these")
        elif found != expected:
            told = {"model": "another model", "tokens": "other tokens: the texts or --chunks have changed"}[what]
            raise FormatError(output, f"collected from {told}", hint="leave out --resume, or name another output")


def _write(output: Path, imatrix: ImatrixSums, layout: str) -> None:
    from quantcli.formats.imatrix_sums import write_legacy, write_sums

    (write_sums if layout == "gguf" else write_legacy)(output, imatrix, overwrite=True)


def _document(result: ImatrixSums, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "output": str(output),
        "datasets": list(result.datasets),
        "chunks": result.chunks,
        "chunk_size": result.chunk_size,
        "tokens": result.chunks * result.chunk_size,
        "tensors": len(result.entries),
        "unused_experts": result.unused(),
        "scarce_experts": result.scarce(),
        "seconds": seconds,
    }
