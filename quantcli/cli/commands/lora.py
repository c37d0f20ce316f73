"""`quantize lora ADAPTER`: convert a LoRA adapter to a GGUF adapter."""

from __future__ import annotations

from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.options import arch_file_option, json_option, overwrite_option, threads_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.cli.output_paths import OutputPath, made_folder
from quantcli.core.display import binary_size, decimal_count


@described("lora")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--base", metavar="MODEL",
    help="Base model of the adapter (only config.json is read). Default: as the adapter says.",
)  # fmt: skip
@click.option(
    "-t", "--type", "--outtype", "type_", default="F32", show_default=True, metavar="T",
    help="Tensor type: F32, F16, BF16 or Q8_0.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=OutputPath(folder=True), metavar="FILE",
    help="Output file or directory (DIR/). Default: ./ADAPTER-TYPE.gguf.",
)  # fmt: skip
@overwrite_option
@json_option()
@threads_option
@arch_file_option
def command(
    adapter: Path,
    base: str | None,
    type_: str,
    output: str | None,
    overwrite: bool,
    as_json: bool,
    threads: int | None,
    arch_file: Path | None,
) -> None:
    """ADAPTER is a directory saved by peft or mlx-lm. llama.cpp applies the GGUF adapter with `--lora FILE`. To merge the
    adapter into the model instead, use `quantize MODEL --lora ADAPTER`.
    """
    from quantcli.conversion.convert import Progress
    from quantcli.conversion.lora.gguf_adapter import ADAPTER_TYPES, convert_adapter

    announce_compiling()
    known = {name.lower(): name for name in ADAPTER_TYPES}
    with made_folder(output) as path, byte_progress("converting") as bar:
        result = convert_adapter(
            adapter,
            known.get(type_.lower(), type_),
            path,
            base=base,
            architecture_file=arch_file,
            threads=threads,
            overwrite=overwrite,
            progress=Progress(start=bar.reset, advance=bar.update),
        )
    if as_json:
        print_json(result.as_json())
    else:
        what = f"{decimal_count(result.parameters)} parameters, {binary_size(result.output_bytes)}"
        say(f"{result.output}: a {result.architecture} adapter in {result.type}, {what}, in {result.seconds:.1f} s")
