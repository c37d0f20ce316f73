"""`quantize run FILE --prompt TEXT`: generate text on the CPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.main import INTERRUPTED
from quantcli.cli.output import print_json
from quantcli.formats.errors import UsageError

if TYPE_CHECKING:
    from quantcli.runner.generate import Generation
    from quantcli.runner.model import Model
    from quantcli.runner.sampling import SamplingOptions


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="What to continue or answer; - reads stdin.")
@click.option(
    "-n", "--tokens", "limit", type=click.IntRange(min=0), metavar="N",
    help="Tokens to generate at most. Default: until the model ends.",
)  # fmt: skip
@click.option(
    "--temp", "temperature", type=float, default=0.8, show_default=True, metavar="X",
    help="Randomness; 0 always takes the likeliest token.",
)  # fmt: skip
@click.option(
    "--top-k", type=int, default=40, show_default=True, metavar="N", help="Choose among the N likeliest tokens; 0: all.",
)  # fmt: skip
@click.option(
    "--top-p", type=float, default=0.95, show_default=True, metavar="X",
    help="Choose among the likeliest tokens of together this probability.",
)  # fmt: skip
@click.option(
    "--min-p", type=float, default=0.05, show_default=True, metavar="X",
    help="Leave out tokens less likely than this share of the likeliest.",
)  # fmt: skip
@click.option(
    "--repeat-penalty", type=float, default=1.0, show_default=True, metavar="X",
    help="Above 1: make the last 64 tokens less likely.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Make the choices repeatable.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=1), metavar="N",
    help="Tokens of context. Default: as the model was trained, up to 4096.",
)  # fmt: skip
@click.option(
    "--cache-type", default="f16", show_default=True, metavar="T", help="Precision of the context in memory: f16 or f32.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads. Default: one per processor.")
@click.option("--chat", is_flag=True, help="Put the prompt as a user's message, by the file's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: a message that says how to answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    file: Path,
    prompt: str,
    limit: int | None,
    context: int | None,
    cache_type: str,
    threads: int | None,
    chat: bool,
    system: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Generate text from a GGUF file on the CPU.

    The answer goes to stdout as it comes; speeds go to stderr at the end where that is a terminal.

    \b
    quantize run model.gguf --prompt "Once upon a time" -n 100
    quantize run model.gguf --chat --prompt "Why is the sky blue?"
    """
    if system is not None and not chat:
        raise UsageError("--system has no effect without --chat")
    from quantcli.runner.sampling import SamplingOptions

    options = SamplingOptions(**sampling)
    text = _read_prompt(prompt)
    generation, load_seconds = _start(file, text, limit, context, cache_type, threads, chat, system, options)
    try:
        if as_json:
            print_json(_document(generation, "".join(generation), load_seconds))
        else:
            _stream(generation)
            _show_speeds(generation, load_seconds)
    except KeyboardInterrupt:
        if not as_json:
            # The answer so far is the user's; all that is missing is the end of its line.
            click.echo()
        sys.exit(INTERRUPTED)


def _read_prompt(prompt: str) -> str:
    if prompt == "-":
        data = sys.stdin.buffer.read()
        try:
            return data.decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"the prompt on stdin is not UTF-8 (byte {error.start})") from error
    if any("\ud800" <= mark <= "\udfff" for mark in prompt):
        raise UsageError("the prompt is not UTF-8")
    return prompt


def _start(
    file: Path, prompt: str, limit: int | None, context: int | None, cache_type: str, threads: int | None, chat: bool,
    system: str | None, options: SamplingOptions,
) -> tuple[Generation, float]:  # fmt: skip
    """The generation, ready to go, and the seconds it took to get there."""
    begin = time.perf_counter()
    from quantcli.formats.gguf_reader import open_gguf
    from quantcli.kernels.jit import use_threads
    from quantcli.runner.cache import Cache
    from quantcli.runner.chat import chat_prompt
    from quantcli.runner.generate import Generation, context_size
    from quantcli.runner.model import Model
    from quantcli.runner.sampling import Sampler
    from quantcli.runner.tokenizer import load_tokenizer

    use_threads(threads)
    with open_gguf(file) as opened:
        tokenizer = load_tokenizer(opened.metadata)
        if chat:
            messages = [] if system is None else [{"role": "system", "content": system}]
            ids = chat_prompt(opened.metadata, tokenizer, [*messages, {"role": "user", "content": prompt}])
        else:
            ids = tokenizer.encode(prompt, parse_special=True) if prompt else []
        model = Model(opened)
    size = context or context_size(model.sizes.context, len(ids), limit)
    _notify(model, size)
    generation = Generation(model, tokenizer, ids, Cache(model.sizes, size, cache_type), Sampler(options), limit)
    return generation, time.perf_counter() - begin


def _notify(model: Model, context: int) -> None:
    if context > model.sizes.context:
        trained = model.sizes.context
        click.echo(f"warning: a context of {context} tokens is more than the {trained} the model was trained on", err=True)
    if not model.is_compiled:
        click.echo("compiling kernels for this machine (once) ...", err=True)


def _stream(generation: Generation) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    for piece in generation:
        # A terminal that cannot show a character gets a question mark instead of an end to the answer.
        click.echo(piece.encode(encoding, "replace").decode(encoding), nl=False)
    click.echo()


def _document(generation: Generation, text: str, load_seconds: float) -> dict[str, Any]:
    return {
        "prompt_tokens": list(generation.prompt),
        "tokens": generation.tokens,
        "text": text,
        "stopped": generation.stopped,
        "prompt_tokens_per_second": generation.prompt_tokens_per_second,
        "tokens_per_second": generation.tokens_per_second,
        "load_seconds": load_seconds,
    }


def _show_speeds(generation: Generation, load_seconds: float) -> None:
    if generation.stopped == "context":
        size = generation.cache.context
        click.echo(f"warning: stopped because the context of {size} tokens is full; --ctx makes room for more", err=True)
    if sys.stderr.isatty():
        click.echo(
            f"load {load_seconds:.2f} s | "
            f"prompt {len(generation.prompt)} tokens, {generation.prompt_tokens_per_second:.1f}/s | "
            f"answer {len(generation.tokens)} tokens, {generation.tokens_per_second:.1f}/s",
            err=True,
        )
