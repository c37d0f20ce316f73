"""Chat: a file's own template turns messages into the prompt its model was trained on.

Templates are programs that came with a download, so they run in jinja2's immutable sandbox, with what Hugging Face
transformers gives a template and nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantcli.formats import vocabulary_spec as spec
from quantcli.formats.errors import GenerationError
from quantcli.formats.gguf_spec import Metadata
from quantcli.runner.tokenizer import Tokenizer

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


def chat_prompt(metadata: Metadata, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, up to where the assistant speaks next.

    Raises:
        GenerationError: if the file has no template, or it fails or refuses these messages.
    """
    if spec.CHAT_TEMPLATE not in metadata:
        raise GenerationError(
            "the file has no chat template", hint="without --chat the prompt is continued as plain text"
        )
    special = {
        f"{role}_token": "" if id_ is None else tokenizer.piece(id_).decode("utf-8", "replace")
        for role, id_ in (("bos", tokenizer.bos), ("eos", tokenizer.eos))
    }
    text = render_template(str(metadata[spec.CHAT_TEMPLATE].value), messages, special)
    ids = tokenizer.encode(text, add_special=True, parse_special=True)
    # Most templates write the begin token themselves, and the vocabulary wants one as well.
    doubled = tokenizer.bos is not None and ids[:2] == [tokenizer.bos] * 2
    return ids[1:] if doubled else ids


def render_template(template: str, messages: Sequence[Message], special: dict[str, str]) -> str:
    """A chat template applied to messages; `special` gives it the texts of `bos_token` and `eos_token`.

    Raises:
        GenerationError: if the template is broken, or refuses these messages.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special)
    except GenerationError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise GenerationError(f"the file's chat template is broken in line {error.lineno}: {error.message}") from error
    except Exception as error:
        # A template is a program: what it does wrong can be any error at all.
        raise GenerationError(f"the file's chat template failed: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise GenerationError(f"the file's chat template refuses this conversation: {message}")


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers does it: readable characters, and no escapes for HTML as in jinja2's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
