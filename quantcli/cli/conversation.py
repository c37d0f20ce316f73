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
from quantcli.cli.output import say
from quantcli.cli.running import stream, warn_of_full_context
from quantcli.core.errors import GenerationError

if TYPE_CHECKING:
    from quantcli.runner.text.chat import Conversation
    from quantcli.runner.text.generate import Generation

HELP: Final = '''\
/clear       forget the conversation
/exit, /bye  exit, as Ctrl-D does
/help, /?    list the commands
Ctrl-C       stop the answer
""" or \\     a multi-line message: enclosed in """, or each line but the last ending with \\
space        in front of a / sends the line to the model'''

_COMMAND: Final = re.compile(r"/[^\s/]*(?=\s|$)")
"""A line that begins like this is a command, known or not. A path such as `/etc/hosts` has another slash."""

_EXITS: Final = ("/exit", "/bye", "/quit")
_HELPS: Final = ("/help", "/?")
_FENCE: Final = '"""'


def converse(conversation: Conversation) -> list[Generation]:
    """Answer messages until the user leaves. Returns all answers."""
    # Ctrl-C stops an answer; SIGTERM stops the program.
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- with it, `input` edits lines and recalls earlier ones
    click.echo("Ctrl-C stops an answer, Ctrl-D exits, /help lists the commands.", err=True)
    answers: list[Generation] = []
    while (message := _next_message()) is not None:
        command = message.rstrip().lower() if _COMMAND.match(message) else None
        if command in _EXITS:
            break
        if command in _HELPS:
            click.echo(HELP, err=True)
        elif command == "/clear":
            conversation.clear()
        elif command is not None:
            say(f"unknown command {message}; /help lists the commands", err=True)
        elif message := message.removeprefix(" "):
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
    """Read a message of one or several lines; None at the end of input.

    It begins with a space if it cannot be a command.
    """
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
            # A space, quotes or a second line tell a message that begins with a slash from a command.
            return message if len(lines) == 1 and line.startswith("/") else f" {message}"


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
