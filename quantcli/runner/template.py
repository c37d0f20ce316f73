"""Chat templates: programs that came with a download, and are run as such.

A template runs in jinja2's immutable sandbox, with what Hugging Face transformers gives a template and nothing more, and in
a process of its own: one that loops for ever or fills the memory costs a line, not the session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

from quantcli.formats.errors import GenerationError

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

SECONDS: Final = 5
"""How long a template may take; real ones take milliseconds."""

MEMORY: Final = 1 << 29
"""Bytes of address space it may take, where the operating system can limit that."""

LONGEST_PROMPT: Final = 1 << 26
"""Characters of a prompt."""


def render_template(template: str, messages: Sequence[Message], special: dict[str, str]) -> str:
    """A chat template applied to messages; `special` gives it the texts of `bos_token` and `eos_token`.

    Raises:
        GenerationError: if the template is broken, refuses these messages, or takes too long or too much memory.
    """
    request = json.dumps({"template": template, "messages": list(messages), "special": special})
    command = [sys.executable, "-c", "from quantcli.runner.template import serve; serve()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    try:
        done = subprocess.run(
            command, input=request.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise GenerationError(f"the file's chat template did not end within {SECONDS} seconds") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise GenerationError(f"the file's chat template crashed (status {done.returncode})") from error
    if "error" in answer:
        raise GenerationError(answer["error"])
    return str(answer["text"])


def serve() -> None:
    """The other process: a request on stdin, the text or an error on stdout, as JSON."""
    request = json.loads(sys.stdin.buffer.read())
    _limit_memory()
    sys.stdout.write(json.dumps(render_here(**request)))


def render_here(template: str, messages: Sequence[Message], special: dict[str, str]) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": one line}`."""
    import jinja2

    try:
        text = _environment().from_string(template).render(messages=messages, add_generation_prompt=True, **special)
    except _RefusedError as error:
        return {"error": f"the file's chat template refuses this conversation: {_line(error)}"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"the file's chat template is broken in line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": f"the file's chat template takes more than {MEMORY >> 20} MiB of memory"}
    except Exception as error:
        # A template is a program: what it does wrong can be any error at all.
        return {"error": f"the file's chat template failed: {_line(error)}"}
    if len(text) > LONGEST_PROMPT:
        return {"error": f"the file's chat template makes a prompt of {len(text)} characters"}
    return {"text": text}


def _environment() -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


class _RefusedError(Exception):
    """The template's own refusal."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers does it: readable characters, and no escapes for HTML as in jinja2's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
