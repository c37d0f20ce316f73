"""The command line `quantize`: dispatches to commands, and turns errors into messages and exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from quantcli import __version__
from quantcli.cli.commands import SECTIONS, SUMMARIES
from quantcli.cli.completions import VARIABLE, complete_files
from quantcli.cli.debugging import DEBUGGING
from quantcli.cli.environment import numba_variables, without_unusable
from quantcli.cli.habits import MODEL_OPTIONS, command_hint, without_model_option
from quantcli.cli.output import say
from quantcli.core.errors import QuantcliError, QuantcliWarning, UsageError, warn

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

WITHOUT_KERNELS: Final = frozenset(
    {"architectures", "clean", "completion", "inspect", "merge", "split", "tokenize", "types"}
)
"""Commands that use no compiled kernels. A command that is not here may use them."""

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells report it."""


class CommandGroup(click.Group):
    """Loads a command's module when it is called. Without a command name, arguments are those of `convert`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, without loading any."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command's module."""
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = import_module(f"quantcli.cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that `--help` loads none of them."""
        longest = max(map(len, SUMMARIES))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{longest}}", summary) for name, summary in commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """If the first word is not a command, it is a model to convert.

        Raises:
            UsageError: if it looks like a misspelt command, and there is no such file.
        """
        if args and args[0] not in SUMMARIES:
            hint = None if ctx.resilient_parsing else command_hint(args[0], list(SUMMARIES))
            if hint:
                raise UsageError(f"{args[0]!r} is neither a command nor a model here", hint=hint)
            args = ["convert", *args]
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options, or files, of which the model to convert is one."""
        return super().shell_complete(ctx, incomplete) or complete_files(ctx, self.params[0], incomplete)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """If the group does not know the first option, as in `quantize --type Q4_0 MODEL`, it is one of `convert`."""
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="MODEL --type TYPE | COMMAND ...",
)
@click.version_option(__version__, "-V", "--version", prog_name="quantize")
def cli() -> None:
    """Convert a language model checkpoint to a quantized GGUF file.

    \b
    quantize ./Llama-3.2-1B --type Q4_K_M     convert and quantize a checkpoint
    quantize Qwen/Qwen3-0.6B --type Q4_K_M    the same from the Hugging Face hub
    quantize inspect model.gguf               metadata, tensor types, tokenizer
    quantize run model.gguf --prompt "Once"   generate text on the CPU

    --type is required. `quantize convert --help` lists the options of the conversion.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit with status 0 (success), 1 (failure), 2 (wrong usage) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if debug:
        arguments = [word for word in arguments if word != "--debug"]
    _open_missing_streams()
    # SIGTERM must clean up as Ctrl-C does: incomplete files are removed.
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        with _shown_warnings():
            if not WITHOUT_KERNELS.intersection(arguments[:1]) and "--help" not in arguments:
                for said in without_unusable(os.environ):
                    warn(said)
            # Outside standalone mode, click returns the status of `ctx.exit`, or the command's return value, None.
            obj = DEBUGGING if debug else None
            status = cli.main(args=arguments, prog_name="quantize", complete_var=VARIABLE, standalone_mode=False, obj=obj)
    except BaseException as error:
        if debug:
            raise
        status = report(_with_hint(error, arguments))
    sys.exit(status or 0)


def _with_hint(error: BaseException, arguments: list[str]) -> BaseException:
    """A known mistake as an error with the line to type; any other error as it is."""
    if isinstance(error, click.NoSuchOption) and error.option_name in MODEL_OPTIONS:
        line = without_model_option(arguments)
        return UsageError(f"no such option: {error.option_name}: the model is an argument here", hint=line)
    return error


def report(error: BaseException) -> int:
    """Write an error to stderr as `error: ...`, its hint and its notes as `hint: ...`. Returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader of stdout has closed the pipe: no message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    message, hint, status = _explained(error)
    say(f"error: {message}", err=True)
    origin = error.__cause__ if isinstance(error, click.Abort) else error  # click raises it for a KeyboardInterrupt
    for line in filter(None, (hint, *getattr(origin, "__notes__", ()))):
        say(f"hint: {line}", err=True)
    return status


@contextmanager
def _shown_warnings() -> Iterator[None]:
    """Show each `QuantcliWarning` once, as one line. Other warnings are handled by Python as usual."""
    said: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            text = _warning_line(str(message), category)
            if text is None:
                others(message, category, *place, **more)
            elif text not in said:
                said.add(text)
                say(f"warning: {text}", err=True)

        warnings.simplefilter("always", QuantcliWarning)
        warnings.showwarning = show
        yield


def _warning_line(message: str, category: type[Warning]) -> str | None:
    """The message of a warning for users: our own, and numba's for invalid environment variables. None for others."""
    if issubclass(category, QuantcliWarning):
        return message
    return message.splitlines()[0] if message.startswith("Environment variable 'NUMBA_") else None


def _explained(error: BaseException) -> tuple[str, str | None, int]:
    """The message, hint and exit status of an error."""
    said: tuple[str, str | None, int]
    match error:
        case KeyboardInterrupt() | click.Abort():
            said = "interrupted", None, INTERRUPTED
        case QuantcliError():
            said = error.message, error.hint, error.exit_status
        case click.UsageError():
            said = error.format_message(), f"{error.ctx.command_path if error.ctx else 'quantize'} --help", error.exit_code
        case click.ClickException():
            said = error.format_message(), None, error.exit_code
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            hint = "free some space, or choose another place with -o" if error.errno == errno.ENOSPC else None
            said = f"{place}{error.strerror or error}", hint, 1
        case MemoryError():
            said = "out of memory", None, 1
        case _:
            said = f"unexpected {type(error).__name__}: {error}", _unexpected_error_hint(), 1
    return said


def _unexpected_error_hint() -> str:
    """The hint for an unexpected error."""
    if set_variables := numba_variables(os.environ):
        return f"the environment has {', '.join(set_variables)}: try without them; --debug shows the traceback"
    return "this is a bug; --debug shows the traceback"


def _open_missing_streams() -> None:
    """Open the null device in place of a closed standard stream, as by `>&-`.

    Python has None for such a stream, and the next file to be opened would get its file descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 -- open until the end


def _raise_interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
