"""`quantize run FILE --prompt TEXT`: generate text on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.main import INTERRUPTED
from quantcli.cli.options import cache_type_option, file_argument, json_option, model_options, sampling_options
from quantcli.cli.output import print_json
from quantcli.cli.running import open_model, show_statistics, stream, warn_beyond_training, warn_of_full_context
from quantcli.cli.texts import checked_text, read_text
from quantcli.core.errors import GenerationError, UsageError
from quantcli.runner.text.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from quantcli.runner.load import LoadedModel
    from quantcli.runner.session import Session
    from quantcli.runner.text.generate import Generation, Limits
    from quantcli.runner.text.sampling import Sampler


@described("run", groups={"Sampling": [field.name for field in fields(SamplingOptions)]})
@file_argument
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; - reads stdin. Default: the input of a pipe.")
@click.option(
    "-f", "--prompt-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="F",
    help="Read the prompt from a file.",
)  # fmt: skip
@click.option(
    "-n", "--tokens", "limit", type=click.IntRange(min=0), metavar="N",
    help="Maximum number of tokens to generate. Default: until an end token.",
)  # fmt: skip
@click.option(
    "--chat", is_flag=True,
    help="Apply the chat template to the prompt. Without a prompt, a terminal starts a chat in any case.",
)  # fmt: skip
@click.option("--system", metavar="TEXT", help="System message, with --chat.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop string: ends the answer; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Continue after an end token.")
@sampling_options
@click.option(
    "--ctx", "context", type=click.IntRange(min=1), metavar="N",
    help="Context size in tokens. Default: the trained context length, up to 4096.",
)  # fmt: skip
@click.option("--context-shift", is_flag=True, help="When the context is full, discard half of it and continue.")
@click.option(
    "--keep", type=click.IntRange(min=-1), metavar="N",
    help="With --context-shift: keep the first N tokens; -1: the prompt. Default: the BOS token.",
)  # fmt: skip
@cache_type_option
@model_options
@json_option()
def command(
    file: Path,
    words: tuple[str, ...],
    prompt: str | None,
    prompt_file: Path | None,
    limit: int | None,
    chat: bool,
    system: str | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    context: int | None,
    context_shift: bool,
    keep: int | None,
    cache_type: str,
    weights: str | None,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """FILE is a GGUF file, a checkpoint (a directory), which runs as it is, or a model of the hub: ORG/NAME[:TYPE], by
    default the file in Q4_K_M, or the address of a file. The text is streamed to stdout. Speeds are printed to stderr at
    the end, if that is a terminal.

    \b
    quantize run model.gguf --prompt "Once upon a time" -n 100
    quantize run Qwen/Qwen3-0.6B-GGUF:Q8_0 --chat --prompt "Why is the sky blue?"
    quantize run model.gguf --chat --prompt "Why is the sky blue?"
    quantize run model.gguf                                  a chat in the terminal
    """
    text = _prompt(_one_prompt(prompt, words), prompt_file)
    if text is None:
        if as_json:
            raise UsageError("no prompt given", hint="--prompt TEXT, or --prompt-file F")
        chat = True
    if chat and text is not None and not text.strip():
        raise GenerationError("the prompt is empty", hint="give a message; a terminal without --prompt starts a chat")
    if system is not None and not chat:
        raise UsageError("--system has no effect without --chat")
    if system is not None:
        checked_text(system, "the system message")
    if keep is not None and not context_shift:
        raise UsageError("--keep has no effect without --context-shift")
    from quantcli.kernels.compilation import running_seconds
    from quantcli.runner.text.generate import Limits
    from quantcli.runner.text.sampling import Sampler
    from quantcli.runner.text.stops import StopStrings

    limits, sampler = Limits(limit, StopStrings(stop).strings, ignore_eos), Sampler(SamplingOptions(**sampling))
    begin = running_seconds()
    loaded = open_model(file, threads=threads, weights=weights, cache_type=cache_type, arch_file=arch_file)
    ids = [] if text is None else _read(loaded, text, chat, system)
    kept = _kept(loaded, keep, len(ids)) if context_shift else None
    session = _session(loaded, len(ids), limit, context, cache_type, kept)
    ready = _Ready(loaded, session, sampler, limits, running_seconds() - begin)
    if text is None:
        _converse(ready, system)
    else:
        _answer(ready, ids, as_json)


@dataclass(frozen=True)
class _Ready:
    """Everything needed to generate an answer, and the seconds it took to load."""

    loaded: LoadedModel
    session: Session
    sampler: Sampler
    limits: Limits
    load_seconds: float


def _one_prompt(prompt: str | None, words: Sequence[str]) -> str | None:
    """The prompt, from the option or by position."""
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}", hint='put the prompt in quotes: --prompt "..."')
    if words and prompt is not None:
        raise UsageError("the prompt is given twice, by --prompt and by position")
    return words[0] if words else prompt


def _prompt(prompt: str | None, file: Path | None) -> str | None:
    """The prompt given by the user; None for a chat at a terminal."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file exclude each other")
    if file is not None:
        return read_text(file, "the prompt")
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return read_text(None, "the prompt")
    return None if prompt is None else checked_text(prompt, "the prompt")


def _read(loaded: LoadedModel, text: str, chat: bool, system: str | None) -> list[int]:
    """The prompt's tokens."""
    if not chat:
        return loaded.tokenizer.encode(text, parse_special=True) if text else []
    from quantcli.runner.text.chat import chat_prompt

    messages = [] if system is None else [{"role": "system", "content": system}]
    return chat_prompt(loaded.metadata, loaded.tokenizer, [*messages, {"role": "user", "content": text}])


def _kept(loaded: LoadedModel, keep: int | None, prompt: int) -> int:
    """How many of the first tokens a context shift keeps."""
    begin = int(loaded.tokenizer.settings.add_bos)
    if keep is None:
        return begin
    return max(prompt, begin) if keep == -1 else keep


def _session(
    loaded: LoadedModel, prompt: int, limit: int | None, context: int | None, cache_type: str, kept: int | None
) -> Session:
    from quantcli.runner.cache import Cache
    from quantcli.runner.session import Session
    from quantcli.runner.text.generate import context_size

    size = context or context_size(loaded.model.sizes.context, prompt, limit)
    warn_beyond_training(loaded, size)
    return Session(loaded.model, Cache(loaded.model.sizes, size, cache_type), kept)


def _answer(ready: _Ready, ids: list[int], as_json: bool) -> None:
    from quantcli.runner.text.generate import Generation

    generation = Generation(ready.session, ready.loaded.tokenizer, ids, ready.sampler, ready.limits)
    try:
        if as_json:
            print_json(_document(ready, generation, "".join(generation)))
            return
        stream(generation)
    except KeyboardInterrupt:
        if as_json:
            raise
        # The partial answer stays on stdout; end its line.
        click.echo()
        sys.exit(INTERRUPTED)
    warn_of_full_context(generation)
    show_statistics(ready.loaded, ready.session.cache, ready.load_seconds, [generation])


def _converse(ready: _Ready, system: str | None) -> None:
    from quantcli.cli.conversation import converse
    from quantcli.runner.text.chat import ChatTemplate, Conversation

    template = ChatTemplate(ready.loaded.metadata, ready.loaded.tokenizer)
    answers = converse(Conversation(template, ready.session, ready.sampler, ready.limits, system))
    show_statistics(ready.loaded, ready.session.cache, ready.load_seconds, answers)


def _document(ready: _Ready, generation: Generation, text: str) -> dict[str, Any]:
    return {
        "prompt_tokens": list(generation.prompt),
        "tokens": generation.tokens,
        "text": text,
        "stopped": generation.stopped,
        "prompt_tokens_per_second": generation.prompt_tokens_per_second,
        "tokens_per_second": generation.tokens_per_second,
        "load_seconds": ready.load_seconds,
        "weights_bytes": ready.loaded.model.weights_bytes,
        "cache_bytes": generation.session.cache.nbytes,
    }
