"""`quantize modelfile FILE`: the Modelfile of a GGUF file, for Ollama."""

from __future__ import annotations

import os
from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.options import file_argument, json_option, overwrite_option
from quantcli.cli.output import print_json, say
from quantcli.cli.output_paths import OutputPath
from quantcli.core.errors import UnsupportedError


@described("modelfile")
@file_argument
@click.option("-o", "--output", type=OutputPath(), metavar="OUT", help="Write it to OUT. Default: print it.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--ctx", "context", type=click.IntRange(min=1), metavar="N", help="Context length (num_ctx).")
@overwrite_option
@json_option("Print one JSON document: the Modelfile, and where it was written.")
def command(
    file: Path, output: Path | None, system: str | None, context: int | None, overwrite: bool, as_json: bool
) -> None:
    """The chat template is written in Go's template language, if that gives the same prompts: Ollama runs no Jinja, and
    takes one of its own templates only for files whose template it recognizes. Tools are not part of it. Stop strings are
    the end tokens of the vocabulary, and temperature, top-k, top-p ... those of the model's own generation_config.json.

    \b
    quantize modelfile model-Q4_K_M.gguf -o Modelfile
    ollama create my-model -f Modelfile
    """
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.formats.output_file import OutputFile
    from quantcli.runner.text.modelfile import modelfile
    from quantcli.runner.text.tokenizer import load_tokenizer

    with open_gguf(file) as opened:
        if opened.split[1] > 1:
            hint = f"quantize merge {file} -o WHOLE.gguf"
            raise UnsupportedError(f"{file}: Ollama does not import split models", hint=hint)
        if opened.get("general.type") == "adapter":
            hint = "FROM names the base model, and ADAPTER the adapter"
            raise UnsupportedError(f"{file}: an adapter has no Modelfile of its own", hint=hint)
        source = str(file.resolve()) if output is None else _relative(file, output)
        text = modelfile(opened.metadata, load_tokenizer(opened.metadata), source, system=system, context=context)
    if output is not None:
        data = text.encode("utf-8", "surrogateescape")
        with OutputFile(output, len(data), overwrite=overwrite) as written:
            written.write_at(memoryview(data), 0)
    if as_json:
        print_json({"output": None if output is None else str(output), "modelfile": text})
    elif output is None:
        click.echo(text.encode("utf-8", "backslashreplace").decode(), nl=False)
    else:
        say(f"{output}: for `ollama create NAME -f {output}`")


def _relative(file: Path, output: Path) -> str:
    """The path of the file from the directory of the Modelfile, as Ollama reads it."""
    path = os.path.relpath(file.resolve(), output.resolve().parent)
    return path if path.startswith(os.pardir) else os.path.join(os.curdir, path)  # noqa: PTH118
