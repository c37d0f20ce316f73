"""The worker process that renders chat templates. It imports only the standard library, jinja2 and `quantcli.core`.

A template is untrusted code. It runs in jinja2's immutable sandbox, with the environment of Hugging Face transformers
(`transformers.utils.chat_template_utils`): the tags `break`, `continue` and `generation`, the filter `tojson`, and the
functions `raise_exception`, `strftime_now`, `dict` and `namespace`.

`quantcli.core.isolated` starts the process: the working directory and environment variables do not affect its imports.

Requests are JSON, one per line on stdin. Responses are JSON, one per line on stdout. The first response says that the
process is ready. See `answer`.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NoReturn

from quantcli.core.isolated import limit_memory, limit_time

MEMORY: Final = 1 << 29
"""Bytes of address space that templates may add to the process, where the operating system can limit that."""

_TOO_BIG: Final = f"takes more than {MEMORY >> 20} MiB of memory"

LONGEST_PROMPT: Final = 1 << 26
"""The largest number of characters in a prompt."""

_TEMPLATE_FILES: Final = ("<template>", "<unknown>")
"""The file names that jinja2 gives a template from a string, in tracebacks."""


def main() -> None:
    """Answer requests until there are no more."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        _send({"error": f"cannot be rendered without jinja2: {_line(error)}"})
        return
    limit_memory(MEMORY)
    _send({})
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
        except MemoryError:
            _send({"error": _TOO_BIG})
        else:
            _send(answer(**request))


def answer(template: str, variables: dict[str, Any], seconds: float, now: str | None) -> dict[str, str]:
    """Render a template: `{"text": ...}`, or `{"error": one line}`.

    The process is killed where rendering takes more than `seconds` of CPU time. `now` is the time for `strftime_now` in
    ISO 8601; None: the current time.
    """
    limit_time(seconds)
    try:
        text = _compiled(template, now).render(variables)
    except Exception as error:
        # A template is a program and may raise any exception.
        return {"error": _explained(error, template)}
    finally:
        limit_time(0)
    return {"text": text} if len(text) <= LONGEST_PROMPT else {"error": f"makes a prompt of {len(text)} characters"}


def _explained(error: Exception, template: str) -> str:
    """A one-line error message, which continues "the file's chat template ..."."""
    from jinja2 import TemplateSyntaxError

    match error:
        case _RefusedError():
            return f"refuses this conversation: {_line(error)}"
        case TemplateSyntaxError():
            return f"is broken in line {error.lineno}: {_line(error.message)}"
        case SyntaxError():
            return f"is broken{_place(_source_line(template, error.lineno))}: {error.msg}"
        case MemoryError():
            return _TOO_BIG
        case RecursionError():
            return f"nests or calls itself too deeply{_place(_error_line(error))}"
    return f"failed{_place(_error_line(error))}: {_line(error)}"


def _send(document: dict[str, str]) -> None:
    try:
        data = json.dumps(document).encode()
    except MemoryError:
        data = json.dumps({"error": _TOO_BIG}).encode()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


@lru_cache(maxsize=4)
def _compiled(template: str, now: str | None) -> Any:
    return _environment(now).from_string(template)


def _environment(now: str | None = None) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`: marks the assistant's tokens for training. Here it renders its body.

        The body has a scope of its own, as that of `call`.
        """

        tags = {"generation"}  # noqa: RUF012 -- jinja2's name for it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

        def _shown(self, caller: Callable[[], str]) -> str:
            return caller()

    class Dict:
        """`dict(...)` and `dict.fromkeys(...)`, without access to the class."""

        def __call__(self, *positional: Any, **named: Any) -> dict[Any, Any]:
            return dict(*positional, **named)

        def fromkeys(self, *positional: Any) -> dict[Any, Any]:
            return dict.fromkeys(*positional)

    class Namespace(jinja2.utils.Namespace):
        """`namespace(...)`, without names that begin with an underscore."""

        # Any keyword is allowed, `self` too.
        def __init__(*positional: Any, **named: Any) -> None:
            values = dict(*positional[1:], **named)
            for name in values:
                _check_attribute(name)
            jinja2.utils.Namespace.__init__(positional[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_attribute(name)
            super().__setitem__(name, value)

    def strftime_now(format: str) -> str:
        time = datetime.now() if now is None else datetime.fromisoformat(now)
        return time.strftime(format)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` without jinja2's HTML escapes, and by default without ASCII escapes."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _RefusedError(Exception):
    """Raised by `raise_exception` in a template."""


def _refuse(message: Any) -> NoReturn:
    raise _RefusedError(message)


def _check_attribute(name: Any) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attributes with an underscore in front, such as {name!r}")


def _error_line(error: BaseException) -> int | None:
    """The line of the template that raised an error, or None."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename in _TEMPLATE_FILES]
    return lines[-1] if lines else None


def _source_line(template: str, line: int | None) -> int | None:
    """The line of the template for a line of the Python code compiled from it."""
    source = _environment().compile(template, raw=True)
    table = re.search(r"^debug_info = '(.*)'$", source, re.MULTILINE)
    pairs = [pair.partition("=") for pair in table[1].split("&")] if table and table[1] else []
    before = [int(ours) for ours, _, theirs in pairs if int(theirs) <= (line or 0)]
    return before[-1] if before else None


def _place(line: int | None) -> str:
    return "" if line is None else f" in line {line}"


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
