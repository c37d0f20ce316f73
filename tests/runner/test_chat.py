"""Chat templates: rendered as transformers renders them, in a sandbox, with errors of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from quantcli.core.errors import GenerationError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, boolean, string, u32
from quantcli.runner.text import template as template_module
from quantcli.runner.text.chat import ChatTemplate, chat_prompt
from quantcli.runner.text.template import TemplateRenderer
from quantcli.runner.text.tokenizer import load_tokenizer

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>\nthere"}]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


def render(template: str, messages=MESSAGES, **variables) -> str:
    with TemplateRenderer(template) as renderer:
        return renderer.render(messages, bos_token="<s>", eos_token="</s>", **variables)


@pytest.fixture
def workers(monkeypatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started from now on."""
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(template_module.subprocess, "Popen", Watched)
    return started


@pytest.fixture
def chat_template(stories):
    """Makes the chat template of a file: from its text, or from other metadata."""
    with open_gguf(stories) as file:
        metadata = dict(file.metadata)

    def make(text=None, **more):
        named = {} if text is None else {"tokenizer.chat_template": string(text)}
        changed = {**metadata, **named, **more}
        return ChatTemplate(changed, load_tokenizer(changed))

    return make


def test_a_conversation_ends_where_the_assistant_speaks():
    assert render(CHATML, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>\nthere<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in %}", "is broken in line 1: "),
        ("a\n\n{{ messages | nonsense }}", "is broken in line 3: No filter named 'nonsense'"),
        (
            "a\n{% for m in messages %}\n{% generation %}\n{% break %}{% endgeneration %}{% endfor %}",
            "is broken in line 4: ",
        ),
        ("{{ raise_exception('only users') }}", "refuses this conversation: only users"),
        ("{{ raise_exception('only\nusers ' * 999) }}", "refuses this conversation: only users.*\\.\\.\\.$"),
        ("\n{{ messages.nothing.more }}", "failed in line 2: .*nothing"),
        ("{{ ''.__class__.__mro__ }}", "failed in line 1: .*unsafe"),
        ("{{ messages.append(1) }}", "failed in line 1: .*unsafe"),
        ("{{ namespace(_x=1) }}", "failed in line 1: .*underscore"),
        ("{{ dict.__class__.mro() }}", "failed in line 1: .*unsafe"),
        ("{% for i in range(99999999) %}x{% endfor %}", "failed in line 1: .*[Rr]ange"),
        ("a\n{% if 1 %}{{ 1 // 0 }}{% endif %}", "failed in line 2: .*zero"),
        ("\n{% macro f(n) %}\n{{ f(n) }}{% endmacro %}{{ f(1) }}", "calls itself too deeply in line 3"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nests or calls itself too deeply"),
        ("{% if 1 %}" * 200 + "{% endif %}" * 200, "is broken in line 1: .*"),
        ("{{ messages[0] | tojson(indent='x' * 3, nonsense=1) }}", "failed in line 1: .*nonsense"),
        ("{{ strftime_now(1) }}", "failed in line 1: "),
        ("{% include 'x' %}", "failed in line 1: "),
        ("\udcff{% if %}", "is broken in line 1"),
    ],
)
def test_bad_templates_cost_one_line(template, message):
    with pytest.raises(GenerationError, match=message) as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10**10 }}", "more than 512 MiB of memory"),
        ("{% set x = namespace(y='a') %}{% for i in range(99) %}{% set x.y = x.y ~ x.y %}{% endfor %}", "of memory"),
        ("{{ 'a' * 10**8 }}", "a prompt of 100000000 characters"),
        ("{{ '\u4e00' * (2**26 - 1) }}", "more than 512 MiB of memory"),
    ],
)
def test_templates_that_eat_memory_cost_one_line(template, message):
    if os.name == "nt":
        pytest.skip("there is no limit of memory")
    with pytest.raises(GenerationError, match=message):
        render(template)


@pytest.mark.parametrize("template", [ENDLESS, "{{ 10**(10**8 * endless) }}"])
def test_a_template_that_does_not_end_costs_one_line(monkeypatch, template):
    monkeypatch.setattr(template_module, "SECONDS", 1)
    with TemplateRenderer("{% if endless %}" + template + "{% endif %}x") as renderer:
        with pytest.raises(GenerationError, match="did not end within 1 seconds"):
            renderer.render(MESSAGES, endless=True)
        assert renderer.render(MESSAGES) == "x"


def test_the_time_a_busy_machine_takes_is_not_the_template_s(monkeypatch, workers):
    if not hasattr(signal, "setitimer"):
        pytest.skip("there is no clock of a process")
    monkeypatch.setattr(template_module, "SECONDS", 1)
    with TemplateRenderer("{% for i in range(60000) %}{% endfor %}x") as renderer:
        renderer.render(MESSAGES)
        (process,) = workers
        os.kill(process.pid, signal.SIGSTOP)
        later = f"import os, time; time.sleep(2); os.kill({process.pid}, {signal.SIGCONT.value})"
        begin = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", later]):
            assert renderer.render(MESSAGES) == "x"
        assert time.monotonic() - begin > 1


def test_one_process_renders_all_and_ends_with_what_started_it(workers):
    with TemplateRenderer("{{ messages | length }}") as renderer:
        assert renderer.render(MESSAGES) == "2"
        assert renderer.render(MESSAGES * 2) == "4"
        (process,) = workers
        assert process.poll() is None
    assert process.poll() is not None
    renderer = TemplateRenderer("")
    _, process = workers
    assert process.poll() is None
    del renderer
    assert process.poll() is not None


def test_after_an_interrupt_no_answer_is_taken_for_another():
    if os.name == "nt":
        pytest.skip("a process cannot interrupt itself")
    slow = "{% for i in range(9999 * loops) %}{% for j in range(999) %}{% endfor %}{% endfor %}"
    with TemplateRenderer(slow + "{{ word }}") as renderer:
        assert renderer.render([], loops=0, word="a") == "a"
        interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            renderer.render([], loops=1, word="b")
        interrupt.join()
        assert renderer.render([], loops=0, word="c") == "c"


def test_texts_that_are_no_unicode_reach_a_template_as_they_are():
    text = "é\udcff\0\u2028"
    assert render("{{ messages[0].content }}\udcfe", [{"role": "user", "content": text}]) == text + "\udcfe"


def test_objects_are_their_fields_or_a_word():
    @dataclass
    class Call:
        name: str

    messages = [{"role": "user", "content": [{"type": "image", "image": object()}], "calls": (Call("f"),), "none": None}]
    assert render("{{ messages[0].content }} {{ messages[0].calls }} {{ messages[0].none is defined }}", messages) == (
        "[{'type': 'image', 'image': '<object>'}] [{'name': 'f'}] False"
    )


def test_what_is_to_be_continued_has_to_be_there():
    answer = [*MESSAGES, {"role": "assistant", "content": " Yes, "}]
    for shown, end in (("m.content", "| Yes, "), ("m.content | trim", "|Yes,")):
        text = render("{% for m in messages %}{{ " + shown + " }}|{% endfor %}", answer, continue_final_message=True)
        assert text.endswith(end)
    for template, field, message in (
        ("{{ messages[0].content }}", True, "leaves out the message"),
        ("{{ messages }}", "content", "does not support content"),
        ("{{ messages.reasoning_content }}", "reasoning_content", "has no reasoning_content"),
    ):
        with pytest.raises(GenerationError, match=message):
            render(template, answer, continue_final_message=field)
    with pytest.raises(GenerationError, match="no text to continue"):
        render("{{ messages[0].content }}", [{"role": "user", "content": [{"type": "image"}]}], continue_final_message=True)


def test_the_begin_token_comes_once(chat_template, stories):
    with open_gguf(stories) as file:
        metadata = dict(file.metadata)
    tokenizer = load_tokenizer(metadata)
    with pytest.raises(GenerationError, match="no chat template"):
        chat_prompt(metadata, tokenizer, MESSAGES)
    for text in ("{{ bos_token }}{{ messages[1].content }}", "{{ messages[1].content }}"):
        metadata["tokenizer.chat_template"] = string(text)
        with pytest.warns(match="system"):
            ids = chat_prompt(metadata, tokenizer, MESSAGES)
        assert ids[0] == tokenizer.bos
        assert ids.count(tokenizer.bos) == 1


@pytest.mark.parametrize(
    ("written", "add_bos", "add_eos", "expected"),
    [
        ("{{ bos_token }}", True, False, [1]),
        ("", True, False, [1]),
        ("{{ bos_token }}", False, False, [1]),
        ("", False, False, []),
        ("{{ bos_token * 2 }}", False, False, [1, 1]),
        ("{{ bos_token * 2 }}", True, False, [1, 1]),  # as llama.cpp, which takes one away
        ("{{ bos_token }}", True, True, [1]),
    ],
)
@pytest.mark.parametrize("end", ["", "{{ eos_token }}"])
def test_ends_are_doubled_only_where_a_template_doubles_them(chat_template, written, add_bos, add_eos, expected, end):
    flags = {"tokenizer.ggml.add_bos_token": boolean(add_bos), "tokenizer.ggml.add_eos_token": boolean(add_eos)}
    template = chat_template(written + "{{ messages[0].content }}" + end, **flags)
    word = template.tokenizer.encode("Once", add_special=False)
    ids = template.encode(template.render([{"role": "user", "content": "Once"}]))
    assert ids == [*expected, *word, *([2] if add_eos or end else [])]


def test_special_tokens_are_those_the_file_names(chat_template):
    text = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token is defined }}|{{ messages[0].content }}"
    user = MESSAGES[1:]
    assert chat_template(text).render(user) == "<s>|</s>|<unk>|False|Hi <b>\nthere"
    named = chat_template(text, **{"tokenizer.ggml.padding_token_id": u32(0)})
    assert "|True|" in named.render(user)


@pytest.mark.parametrize(
    ("templates", "tools", "expected"),
    [
        ({"": "plain", ".tool_use": "tools", ".default": "named"}, None, "plain"),
        ({"": "plain", ".tool_use": "tools"}, [{"name": "f"}], "tools"),
        ({".default": "named", ".tool_use": "tools"}, None, "named"),
        ({"": "plain"}, [{"name": "f"}], "plain"),
    ],
)
def test_of_several_templates_the_default_is_taken(chat_template, templates, tools, expected):
    named = {
        f"tokenizer.chat_template{name}": string(f"{text}: {{{{ messages[0].content }}}}")
        for name, text in templates.items()
    }
    assert chat_template(**named).render(MESSAGES[1:], tools) == f"{expected}: Hi <b>\nthere"


def test_templates_that_cannot_be_meant_are_refused(chat_template):
    names = array(ValueType.STRING, ["tool_use", "rag"])
    named = {f"tokenizer.chat_template.{name}": string("x") for name in names.value}
    with pytest.raises(GenerationError, match="no default chat template, only 'tool_use', 'rag'"):
        chat_template(**{"tokenizer.chat_templates": names}, **named)
    with pytest.raises(GenerationError, match=r"'tokenizer.chat_template' is of type UINT32, expected STRING"):
        chat_template(**{"tokenizer.chat_template": u32(1)})
