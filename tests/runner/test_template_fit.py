"""Conversations in the form a template shows in full: nothing a user says is lost in silence."""

from __future__ import annotations

import warnings

import pytest

from quantcli.core.errors import QuantcliWarning
from quantcli.runner.text.template import TemplateRenderer
from quantcli.runner.text.template_fit import fitted

SYSTEM = {"role": "system", "content": "Talk about pirates."}
USER = {"role": "user", "content": "Once upon a time"}
ASSISTANT = {"role": "assistant", "content": "there was"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": "upon a time"}]}


def each(shown: str, condition: str = "") -> str:
    """A template that shows something of every message `m`, or of some."""
    return "{% for m in messages " + condition + " %}{{ m.role }}:" + shown + ";{% endfor %}"


PLAIN = each("{{ m.content }}")
ADDED = each("{{ '' + m.content }}")
PARTS_ONLY = "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}|{% endif %}{% endfor %}"
TYPED = each(PARTS_ONLY)
SELECTED = each("{{ (m.content | selectattr('type', 'equalto', 'text') | list)[0].text }}")
EITHER = each("{% if m.content is string %}{{ m.content }}{% else %}" + PARTS_ONLY + "{% endif %}")
TYPED_USER = each("{% if m.role == 'user' %}" + PARTS_ONLY + "{% else %}{{ m.content + '' }}{% endif %}")
SYSTEM_TEXT = each("{% if m.role == 'system' %}{{ m.content + '' }}{% else %}" + PARTS_ONLY + "{% endif %}")
IGNORES = each("{{ m.content }}", "if m.role != 'system'")
IGNORES_TYPED = each(PARTS_ONLY, "if m.role != 'system'")
REFUSES = each("{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}")
ALTERNATES = each(
    "{% if (m.role == 'user') == (loop.index0 % 2 == 1) %}{{ raise_exception('order') }}{% endif %}{{ m.content | upper }}"
)
ITS_OWN_PLACE = (
    "{% if messages[0].role == 'system' %}<<{{ messages[0].content }}>>{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
)
MOVED = "does not support a system message: it is prepended to the first user message"


def show(template: str, messages) -> tuple[str, list[str]]:
    """What a template shows of messages, and what was warned of."""
    with TemplateRenderer(template) as renderer, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        text = renderer.render(fitted(messages, renderer.render))
    return text, [str(one.message) for one in said]


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (PLAIN, [SYSTEM, USER], "system:Talk about pirates.;user:Once upon a time;"),
        (PLAIN, [PARTS], "user:Once\nupon a time;"),
        (ADDED, [SYSTEM, PARTS], "system:Talk about pirates.;user:Once\nupon a time;"),
        (TYPED, [USER], "user:Once upon a time|;"),
        (TYPED, [SYSTEM, USER, ASSISTANT], "system:Talk about pirates.|;user:Once upon a time|;assistant:there was|;"),
        (TYPED, [PARTS], "user:Once|upon a time|;"),
        (SELECTED, [USER], "user:Once upon a time;"),
        (EITHER, [SYSTEM, PARTS], "system:Talk about pirates.;user:Once|upon a time|;"),
        (EITHER, [USER], "user:Once upon a time;"),
        (TYPED_USER, [SYSTEM, USER, ASSISTANT], "system:Talk about pirates.;user:Once upon a time|;assistant:there was;"),
        (SYSTEM_TEXT, [SYSTEM, USER, ASSISTANT], "system:Talk about pirates.;user:Once upon a time|;assistant:there was|;"),
        (ALTERNATES, [USER, ASSISTANT, USER], "user:ONCE UPON A TIME;assistant:THERE WAS;user:ONCE UPON A TIME;"),
        (ITS_OWN_PLACE, [SYSTEM, USER], "<<Talk about pirates.>>user:Once upon a time;"),
        ("{{ messages | tojson }}", [USER], '[{"role": "user", "content": "Once upon a time"}]'),
        ("{% for c in messages[0].content %}{{ c }}{% endfor %}", [USER], "Once upon a time"),
        (ADDED, [{"role": "user", "content": ("Once", {"type": "text", "text": "upon"})}], "user:Once\nupon;"),
        (PLAIN, [{"role": "user", "content": " \n"}], "user: \n;"),
        (TYPED, [{"role": "user", "content": ""}], "user:;"),
        # What of an answer is shown is the template's business.
        ("{% for m in messages if m.role == 'user' %}{{ m.content }};{% endfor %}", [USER, ASSISTANT], "Once upon a time;"),
    ],
)
def test_a_conversation_has_the_form_its_template_wants(template, messages, text):
    assert show(template, messages) == (text, [])


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (IGNORES, [SYSTEM, USER, ASSISTANT], "user:Talk about pirates.\nOnce upon a time;assistant:there was;"),
        (IGNORES, [SYSTEM, ASSISTANT, USER], "assistant:there was;user:Talk about pirates.\nOnce upon a time;"),
        (REFUSES, [SYSTEM, USER], "user:Talk about pirates.\nOnce upon a time;"),
        (ALTERNATES, [SYSTEM, USER], "user:TALK ABOUT PIRATES.\nONCE UPON A TIME;"),
        (IGNORES_TYPED, [SYSTEM, USER], "user:Talk about pirates.\nOnce upon a time|;"),
        (IGNORES_TYPED, [SYSTEM, PARTS], "user:Talk about pirates.\nOnce|upon a time|;"),
        (IGNORES, [SYSTEM, PARTS], "user:Talk about pirates.\nOnce\nupon a time;"),
        (
            IGNORES_TYPED,
            [SYSTEM, {"role": "user", "content": [{"type": "image"}, *PARTS["content"]]}],
            "user:Talk about pirates.\n|Once|upon a time|;",
        ),
    ],
)
def test_a_system_message_without_a_place_goes_before_the_user_s_and_that_is_said(template, messages, text):
    shown, said = show(template, messages)
    assert shown == text
    assert [MOVED in line for line in said] == [True]


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("nothing", [USER], ["leaves out the content of the role user"]),
        ("nothing", [SYSTEM, USER], ["role system", "role user"]),
        ("{{ messages[-1].content }}", [USER, ASSISTANT, PARTS], ["role user"]),
        (IGNORES, [USER, SYSTEM], ["role system"]),
        (IGNORES, [SYSTEM], ["role system"]),
        (
            PLAIN,
            [{"role": "user", "content": [*PARTS["content"], {"type": "image"}]}],
            ["a content part of type image is left out"],
        ),
    ],
)
def test_what_is_lost_in_every_form_is_said(template, messages, words):
    _, said = show(template, messages)
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_a_template_that_refuses_every_form_gets_what_there_is():
    def refuse(messages):
        with TemplateRenderer("{{ raise_exception('never') }}") as renderer:
            return renderer.render(messages)

    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantcliWarning)
        assert fitted([SYSTEM, USER], refuse) == [SYSTEM, USER]
