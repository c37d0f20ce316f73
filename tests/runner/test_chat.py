"""Chat templates: rendered as transformers renders them, in a sandbox, with errors of one line."""

from __future__ import annotations

import os

import pytest

from quantcli.formats.errors import GenerationError
from quantcli.formats.gguf_reader import open_gguf
from quantcli.formats.gguf_spec import string
from quantcli.runner.chat import chat_prompt
from quantcli.runner.template import render_template
from quantcli.runner.tokenizer import load_tokenizer

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>\nthere"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_conversation_ends_where_the_assistant_speaks():
    assert render_template(CHATML, MESSAGES, SPECIAL) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>\nthere<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_take_their_line_and_loops_can_be_left():
    skip = "  {% if loop.first %}\n{% continue %}\n  {% endif %}\n"
    template = "{% for m in messages %}\n" + skip + "{{ m.role }}\n{% endfor %}\n{{ bos_token }}"
    assert render_template(template, MESSAGES, SPECIAL) == "user\n<s>"


def test_json_is_readable_and_not_escaped_for_pages():
    assert render_template("{{ messages[1] | tojson }}", [{}, {"content": "é<b>"}], SPECIAL) == '{"content": "é<b>"}'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in %}", "is broken in line 1"),
        ("{{ raise_exception('only users') }}", "refuses this conversation: only users"),
        ("{{ messages.nothing.more }}", "failed: .*nothing"),
        ("{{ ''.__class__.__mro__ }}", "failed: .*unsafe"),
        ("{{ messages.append(1) }}", "failed: .*unsafe"),
        ("{% for i in range(99999999) %}x{% endfor %}", "failed: .*[Rr]ange"),
        ("{{ 1 // 0 }}", "failed: .*zero"),
    ],
)
def test_bad_templates_cost_one_line(template, message):
    with pytest.raises(GenerationError, match=message) as caught:
        render_template(template, MESSAGES, SPECIAL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10**10 }}", "more than 512 MiB of memory"),
        ("{% set x = namespace(y='a') %}{% for i in range(99) %}{% set x.y = x.y ~ x.y %}{% endfor %}", "of memory"),
        ("{{ 'a' * 10**8 }}", "a prompt of 100000000 characters"),
    ],
)
def test_templates_that_eat_memory_cost_one_line(template, message):
    if os.name == "nt":
        pytest.skip("there is no limit of memory")
    with pytest.raises(GenerationError, match=message):
        render_template(template, MESSAGES, SPECIAL)


def test_a_template_that_does_not_end_costs_one_line(monkeypatch):
    monkeypatch.setattr("quantcli.runner.template.SECONDS", 1)
    loop = "{% for i in range(99999) %}"
    with pytest.raises(GenerationError, match="did not end within 1 seconds"):
        render_template(loop * 3 + "{% endfor %}" * 3, MESSAGES, SPECIAL)


def test_texts_that_are_no_unicode_reach_a_template_as_they_are():
    assert render_template("{{ messages[0].content }}", [{"role": "user", "content": "é\udcff"}], SPECIAL) == "é\udcff"


def test_the_begin_token_comes_once(stories):
    with open_gguf(stories) as file:
        metadata = dict(file.metadata)
    tokenizer = load_tokenizer(metadata)
    with pytest.raises(GenerationError, match="no chat template"):
        chat_prompt(metadata, tokenizer, MESSAGES)
    for template in ("{{ bos_token }}{{ messages[1].content }}", "{{ messages[1].content }}"):
        metadata["tokenizer.chat_template"] = string(template)
        ids = chat_prompt(metadata, tokenizer, MESSAGES)
        assert ids[0] == tokenizer.bos
        assert ids.count(tokenizer.bos) == 1
