"""Conversations to render chat templates with: what messages of all kinds carry, with and without tools and documents."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

NOW: Final = datetime(2026, 3, 9, 7, 5, 4)
"""The time that templates are told."""

SPECIAL: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Special tokens of the templates that are no model's: there is no `sep_token`, `mask_token` or `cls_token`."""

_WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather at a place, in °C or "°F".',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A city"},
                "days": {"type": "integer"},
                "options": {"type": "object", "properties": {"unit": {"type": "string", "enum": ["C", "F"]}}},
            },
            "required": ["place"],
        },
    },
}
_TIME: Final = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content, **more}


def call(name: str, arguments: Any, id_: str) -> dict[str, Any]:
    """A call of a tool, in the notation of OpenAI's interface."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def text(content: str) -> dict[str, str]:
    """A part of a content."""
    return {"type": "text", "text": content}


_USER: Final = message("user", "Hello, how are you?")
_SYSTEM: Final = message("system", "Be brief. ")
_TURNS: Final = [
    _USER,
    message("assistant", "Well, thanks."),
    message("user", "What is 2 < 3 & 'so on'?"),
    message("assistant", "<think>\nEasy.\n</think>\n\nTrue."),
    message("user", "Why?"),
]
_CALLED: Final = [
    message("user", "How warm is it in Zürich?"),
    message(
        "assistant", "", tool_calls=[call("get_weather", {"place": "Zürich", "days": 2, "x": [1.5, None]}, "call00001")]
    ),
    message("tool", '{"temperature": 21}', tool_call_id="call00001", name="get_weather"),
    message("assistant", "It is 21 °C."),
]

CASES: Final[dict[str, dict[str, Any]]] = {
    "user": {"messages": [_USER]},
    "prompt": {"messages": [_USER], "add_generation_prompt": True},
    "system": {"messages": [_SYSTEM, _USER], "add_generation_prompt": True},
    "two systems": {"messages": [_SYSTEM, message("system", "Be kind."), _USER]},
    "turns": {"messages": [_SYSTEM, *_TURNS], "add_generation_prompt": True},
    "answered": {"messages": _TURNS[:4]},
    "assistant first": {"messages": [message("assistant", "Hi!"), _USER, _USER]},
    "no thinking": {"messages": _TURNS, "add_generation_prompt": True, "enable_thinking": False},
    "tools": {"messages": [_SYSTEM, _CALLED[0]], "tools": [_WEATHER, _TIME], "add_generation_prompt": True},
    "no tools": {"messages": [_USER], "tools": [], "documents": [], "add_generation_prompt": True},
    "called": {"messages": _CALLED, "tools": [_WEATHER]},
    "called, as JSON": {
        "messages": [
            _CALLED[0],
            message("assistant", None, tool_calls=[call("get_weather", '{"place": "Z"}', "1"), call("now", "{}", "2")]),
            message("tool", "21", tool_call_id="1"),
            message("tool", "noon", tool_call_id="2"),
        ],
        "tools": [_WEATHER, _TIME],
        "add_generation_prompt": True,
    },
    "reasoning": {
        "messages": [
            _USER,
            message("assistant", "Yes.", reasoning_content="Hm.\n"),
            _USER,
            message("assistant", "No", reasoning="Ah"),
        ]
    },
    "thinking": {"messages": [_USER, message("assistant", "Yes.", thinking="Hm.", name=None)]},
    "parts": {
        "messages": [
            message("system", [text("Look.")]),
            message(
                "user", [{"type": "image"}, text("What is this? "), {"type": "image_url", "image_url": {"url": "a.png"}}]
            ),
            message("assistant", [text("A cat.")]),
        ],
        "add_vision_id": True,
    },
    "documents": {
        "messages": [_USER],
        "documents": [{"title": "A & B", "text": "Line\nline"}, {"text": "no title", "n": 3}],
    },
    "continued": {"messages": [*_TURNS[:3], message("assistant", "It is ")], "continue_final_message": True},
    "continued parts": {
        "messages": [_USER, message("assistant", [text("It"), text(" is")])],
        "continue_final_message": True,
    },
    "continued reasoning": {
        "messages": [_USER, message("assistant", "", reasoning_content="First, ")],
        "continue_final_message": "reasoning_content",
    },
    "unicode": {"messages": [message("user", '日本語 🦙 «é» \u2028\x85\t"quoted"\\ \r\nend ')]},
    "spaces": {"messages": [message("user", "\n  spaced \n\n"), message("assistant", ""), message("user", " ")]},
    "markup": {"messages": [message("user", "{{ 7 * 7 }} {% raw %} <|im_end|> </s> <b>")]},
    "arguments": {
        "messages": [_USER, message("developer", "Stay.")],
        "custom": "Ann",
        "settings": {"depth": 3, "é": [True, None]},
        "names": {"user": "Bob"},
        "reasoning_effort": "high",
        "date_string": "1 May 2025",
        "strict": True,
        "bos_token": "<other>",
    },
    **{
        f"attempt to {what}": {"messages": [_USER], "attempt": what, "only": "sandbox_refusals"}
        for what in ("append", "class", "globals", "update", "namespace", "format", "range", "import", "recursion")
    },
    "failure": {"messages": [_USER], "fail": True, "only": "undefined_values"},
}
"""By name: the arguments of `apply_chat_template`; `only` names the one template that a case is for."""
