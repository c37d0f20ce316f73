"""Chat templates rendered as Hugging Face transformers renders them.

A template is untrusted code. It runs in a sandbox and in a worker process (see `template_worker`), so that an endless loop
or excessive memory use becomes an error message.

The template variables follow transformers 5.24: `apply_chat_template` of its tokenizers, and `render_jinja_template`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from quantcli.core.errors import GenerationError, clipped
from quantcli.core.isolated import worker_command

Message = Mapping[str, Any]
"""A chat message: `role`, `content` (a string, or a list of parts such as `{"type": "text", "text": ...}`), and optional
keys such as `tool_calls`, `tool_call_id`, `name`, `reasoning_content` ..."""

SECONDS: Final = 5
"""The limit on a template's CPU time. Real templates take milliseconds."""

_PATIENCE: Final = 12
"""The limit on wall-clock time, as a multiple of `SECONDS`, for a busy machine."""

_WORKER: Final = "quantcli.runner.text.template_worker:main"
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
"""The keys of messages for the reasoning before an answer, the most common first."""

_CUT: Final = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of a message to be continued, as in transformers."""


class TemplateError(GenerationError):
    """A template is invalid, refuses a conversation, or fails on it."""


class TemplateRenderer:
    """A chat template and the worker process that renders it. It starts at once and runs until `close` or exit.

    Usable as a context manager. Not thread-safe.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._process = _WorkerProcess()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation. `variables` are other template variables: `bos_token`, `enable_thinking` ...

        With `continue_final_message` the prompt ends within the last message, after its content or the field of that name.
        `now` is the time for `strftime_now`.

        Raises:
            TemplateError: if the template is invalid, refuses these messages, or fails.
            GenerationError: if it takes too long or crashes, or if there is nothing to continue.
        """
        said = normalized(messages)
        field = "content" if continue_final_message is True else continue_final_message
        request = {
            "template": self._template,
            "variables": {
                **variables,
                "messages": _with_cut(said, field, self._template) if field else said,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            },
            "now": None if now is None else now.isoformat(),
        }
        text = self._process.ask(request)
        return _cut(text, said[-1][field]) if field else text

    def close(self) -> None:
        """End the process. Another one is started if there is more to render."""
        self._process.close()

    def __enter__(self) -> TemplateRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def normalized(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages without keys that are None, and with reasoning under all the keys that templates use for it."""
    return [_with_reasoning({key: value for key, value in message.items() if value is not None}) for message in messages]


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_cut(messages: list[dict[str, Any]], field: str, template: str) -> list[dict[str, Any]]:
    """The messages with a marker at the end of the last one's field.

    Raises:
        GenerationError: if there is no such field, or no text in it.
    """
    content = messages[-1].get(field) if messages else None
    if content is None:
        raise GenerationError(f"the last message has no {field} to continue")
    same = [key for key in _REASONING if messages[-1].get(key) == content] if field in _REASONING else [field]
    if not any(key in template for key in same):
        raise GenerationError(f"the file's chat template does not support {field} in a message to continue")
    if isinstance(content, str):
        marked: Any = content + _CUT
    else:
        last = _last_text(content)
        marked = [*content[:last], {**content[last], "text": content[last]["text"] + _CUT}, *content[last + 1 :]]
    return [*messages[:-1], {**messages[-1], **dict.fromkeys(same, marked)}]


def _last_text(parts: Sequence[Mapping[str, Any]]) -> int:
    """The index of the last text part."""
    texts = [index for index, part in enumerate(parts) if "text" in part]
    if not texts:
        raise GenerationError("the last message has no text to continue")
    return texts[-1]


def _cut(text: str, content: Any) -> str:
    """The text up to the marker, with trailing white space stripped where the template stripped the marker's own."""
    said = content if isinstance(content, str) else content[_last_text(content)]["text"]
    place = text.rfind(_CUT.strip())
    if place < 0 or said.strip() not in text:
        raise GenerationError("the file's chat template leaves out the message to continue")
    return text[:place] if text.startswith(_CUT, place) else text[:place].rstrip()


class _WorkerProcess:
    """A `template_worker` process, which answers one request at a time."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                worker_command(_WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise GenerationError(f"no process can be started for the chat template: {error}") from None
        self._ready = False
        self.close = weakref.finalize(self, _end, self._process)

    def ask(self, request: Mapping[str, Any]) -> str:
        """The rendered text for a request: see `template_worker.answer`. Raises as `TemplateRenderer.render` does."""
        if not self.close.alive:
            self._start()
        try:
            if not self._ready:
                self._receive()
                self._ready = True
            return self._answer(request)
        except BaseException as error:
            # Unless this was a response, one may still arrive, and would be taken for that to the next request.
            if not (self._ready and isinstance(error, TemplateError)):
                self.close()
            raise

    def _answer(self, request: Mapping[str, Any]) -> str:
        # The time limit starts now, so that it does not include Python's startup.
        patience = SECONDS * (_PATIENCE if hasattr(signal, "setitimer") else 1)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        guard = threading.Timer(patience, expire)
        guard.daemon = True
        guard.start()
        try:
            return self._receive({**request, "seconds": SECONDS})
        except _DiedError as error:
            late = expired.is_set() or error.status == -getattr(signal, "SIGPROF", 0)
            what = f"did not end within {SECONDS} seconds" if late else f"crashed (status {error.status})"
            raise GenerationError(f"the file's chat template {what}") from None
        finally:
            guard.cancel()

    def _receive(self, request: Mapping[str, Any] | None = None) -> str:
        """Send a request, if any, and receive the next response."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            if request is not None:
                self._process.stdin.write(json.dumps(request, default=_plain).encode() + b"\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise _DiedError(self._process.wait())
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(f"the file's chat template {clipped(answer['error'])}")
        return str(answer.get("text", ""))


class _DiedError(GenerationError):
    """The process ended without a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the process for the file's chat template ended (status {status})")
        self.status = status


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        # Buffered data can no longer be written to the ended process.
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _plain(value: Any) -> Any:
    """JSON for other objects: their fields, else their type's name. Templates only test whether there is an image."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic's models
        return value.model_dump()
    if getattr(value, "shape", None) == ():  # NumPy's scalars
        return value.item()
    return f"<{type(value).__name__}>"
