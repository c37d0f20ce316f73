"""What people type who know other tools: their names for options and commands, and arguments by position."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantcli.core.errors import UsageError

OPTION_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "--ctx": ("-c", "--ctx-size"),
    "--threads": ("-t",),
    "--tokens": ("--n-predict", "--predict"),
    "--output": ("--outfile",),
    "--type": ("--outtype",),
    "--prompt-file": ("--file",),
}
"""Our long option -> its names in llama.cpp. A command takes them too, unless they are options of its own."""

MODEL_OPTIONS: Final = ("-m", "--model")
"""Options for the model in llama.cpp. Here it is an argument."""

_COMMANDS: Final[Mapping[str, str]] = {
    "help": "quantize --help",
    "version": "quantize --version",
    "list": "quantize types",
    "chat": "quantize run FILE --chat",
    "generate": "quantize run FILE --prompt TEXT",
    "perplexity": "quantize eval FILE --text F",
    "show": "quantize inspect FILE",
}
"""Names of commands in other tools -> the line to type."""


def command_hint(word: str, known: Sequence[str]) -> str | None:
    """What to type instead of `word`, if it looks like a command and no such path exists."""
    if not word.isalpha() or Path(word).exists():
        return None
    if line := _COMMANDS.get(word.lower()):
        return line
    from difflib import get_close_matches

    near = get_close_matches(word.lower(), known, n=1, cutoff=0.75)
    return f"did you mean `quantize {near[0]}`?" if near else None


def without_model_option(words: Sequence[str]) -> str | None:
    """The command line without `-m`, the model in its place; None where `words` do not have it."""
    found = next((index for index, word in enumerate(words) if word in MODEL_OPTIONS), None)
    if found is None:
        return None
    return shlex.join(["quantize", *words[:found], *words[found + 1 :]])


@dataclass(frozen=True)
class Positions:
    """What the arguments after the model are."""

    output: str | None = None
    types: str | None = None
    threads: int | None = None


def read_positions(words: Sequence[str]) -> Positions:
    """The arguments after the model: `[OUTPUT] [TYPE[,TYPE...] [THREADS]]`, as in llama-quantize.

    Raises:
        UsageError: for other arguments.
    """
    rest = list(words)
    output = rest.pop(0) if rest and not _are_types(rest[0]) and _is_output(rest[0]) else None
    types = rest.pop(0) if rest and _are_types(rest[0]) else None
    threads = int(rest.pop(0)) if rest and types and rest[0].isdecimal() and int(rest[0]) else None
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}", hint="quantize MODEL --type T -o OUTPUT")
    return Positions(output, types, threads)


def _is_output(word: str) -> bool:
    return word.endswith((".gguf", "/")) or Path(word).is_dir()


def _are_types(words: str) -> bool:
    from quantcli.conversion.recipes import find_recipe

    try:
        return bool([find_recipe(word.strip()) for word in words.split(",") if word.strip()])
    except UsageError:
        return False
