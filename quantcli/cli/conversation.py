"""`quantize run --chat` at a terminal: reads messages and streams answers until the user leaves."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import click

from quantcli.cli.main import INTERRUPTED, report
from quantcli.cli.running import stream, warn_of_full_context
from quantcli.core.errors import GenerationError

if TYPE_CHECKING:
    from quantcli.runner.text.chat import Conversation
    from quantcli.runner.text.generate import Generation

HELP: Final = '''\
/clear       forget the conversation
/exit        exit, as Ctrl-D does
/help        list the commands
Ctrl-C       stop the answer
""" or \\     a multi-line message: enclosed in """, or each line but the last ending with \\'''

_COMMAND: Final = re.compile(r"/[a-z]+")
_FENCE: Final = '"""'


def converse(conversation: Conversation) -> list[Generation]:
    """Answer messages until the user leaves. Returns all answers."""
    # Ctrl-C stops an answer; SIGTERM stops the program.
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- with it, `input` edits lines and recalls earlier ones
    click.echo("Ctrl-C stops an answer, Ctrl-D exits, /help lists the commands.", err=True)
    answers: list[Generation] = []
    while (message := _next_message()) not in (None, "/exit"):
        if message == "/help":
            click.echo(HELP, err=True)
        elif message == "/clear":
            conversation.clear()
        elif _COMMAND.fullmatch(message or ""):
            click.echo(f"unknown command {message}; /help lists the commands", err=True)
        elif message:
            _answer(conversation, message, answers)
    return answers


def _answer(conversation: Conversation, message: str, answers: list[Generation]) -> None:
    try:
        answer = conversation.ask(message)
        answers.append(answer)
        try:
            stream(answer)
        finally:
            conversation.record(answer)
        warn_of_full_context(answer)
    except KeyboardInterrupt:
        click.echo()
    except GenerationError as error:
        if conversation.messages:
            error.hint = f"{error.hint}; /clear empties the context" if error.hint else "/clear forgets the conversation"
        report(error)
    click.echo()


def _next_message() -> str | None:
    """Read a message of one or several lines; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = _read_line("... " if lines else "> ")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            lines = []
            continue
        if any("\ud800" <= mark <= "\udfff" for mark in line):
            click.echo("error: the line is not UTF-8", err=True)
            continue
        lines.append(line)
        if (message := whole_message(lines)) is not None:
            return message


def whole_message(lines: list[str]) -> str | None:
    """The message in `lines`, or None where it is incomplete."""
    text = "\n".join(lines)
    if text.lstrip().startswith(_FENCE):
        inner = text.strip().removeprefix(_FENCE)
        return inner.removesuffix(_FENCE).strip("\n") if inner.endswith(_FENCE) else None
    if lines[-1].endswith("\\"):
        return None
    return "\n".join(line.removesuffix("\\") for line in lines).strip()


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # Answers go to a file or a pipe, which must not contain the prompt.
    click.echo(prompt, nl=False, err=True)
    return input()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(INTERRUPTED)
