"""`quantize export FILE -o DIR`: write a GGUF file as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.options import file_argument, json_option, threads_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.cli.output_paths import OutputPath
from quantcli.core.display import binary_size, decimal_count


@described("export")
@file_argument
@click.option(
    "-o", "--output", type=OutputPath(folder=True), required=True, metavar="DIR",
    help="The directory, which must not exist yet or be empty.",
)  # fmt: skip
@click.option(
    "-t", "--type", "--outtype", "type_", metavar="T",
    help="F32, F16 or BF16. Default: that of most weights; F16 for quantized ones.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), metavar="DIR|FILE",
    help="Copy the tokenizer from there. Default: it is made from the vocabulary of FILE.",
)  # fmt: skip
@click.option(
    "--split-max-size", metavar="SIZE", help="Maximum tensor data per file: 2G, 500M (powers of 1000). Default: 5G."
)
@json_option()
@threads_option
def command(
    file: Path,
    output: str,
    type_: str | None,
    tokenizer: Path | None,
    split_max_size: str | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """The directory is one that transformers loads: safetensors, config.json, the tokenizer. Names and transforms of
    tensors are undone, quantized tensors are dequantized. From a file in F32, F16 or BF16 the tensors are those of the
    checkpoint that it was made from.

    \b
    quantize export model-BF16.gguf -o model
    quantize export model-Q4_K_M.gguf -o model --type BF16 --tokenizer original/
    """
    from quantcli.conversion.convert import Progress
    from quantcli.conversion.export.export import export
    from quantcli.formats.checkpoint.safetensors_writer import SHARD_BYTES
    from quantcli.formats.gguf.shards import parse_size

    announce_compiling()
    with byte_progress("exporting") as bar:
        result = export(
            file,
            Path(output),
            type_name=None if type_ is None else type_.upper(),
            tokenizer=tokenizer,
            threads=threads,
            shard_bytes=SHARD_BYTES if split_max_size is None else parse_size(split_max_size),
            progress=Progress(start=bar.reset, advance=bar.update),
        )
    if as_json:
        print_json(result.as_json())
    else:
        what = f"{decimal_count(result.parameters)} parameters in {result.type}, {binary_size(result.output_bytes)}"
        say(f"{result.output}: {result.architecture}, {what}, in {result.seconds:.1f} s")
