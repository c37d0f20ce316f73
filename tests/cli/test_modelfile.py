"""`quantize modelfile`: the Go template gives the prompts of the file's chat template, or is not written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.edit import write_edited
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import f32, i32, string, u32
from quantcli.runner.text.chat import ChatTemplate
from quantcli.runner.text.modelfile import find_wrapping
from quantcli.runner.text.tokenizer import load_tokenizer

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "default system": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + CHATML,
    "begin token": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}",
    "no system": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "alternating": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
}
OTHERS = {
    "a date": "{{ strftime_now('%d %B %Y') }}" + CHATML,
    "the last message": CHATML.replace("m.content +", "m.content + ('!' if loop.last else '') +"),
    "answers left out": CHATML.replace("m.content", "('' if m.role == 'assistant' else m.content)"),
    "braces": CHATML.replace("<|im_end|>", "}}<|im_end|>"),
}
TALKS = [
    [("user", "Hello")],
    [("system", "You are a pirate."), ("user", "Hello")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("modelfile") / "model.gguf"
    convert(STORYTELLER, "Q8_0", path)
    return path


def with_metadata(model: Path, target: Path, **fields) -> Path:
    with open_gguf(model) as file:
        changed = {key.replace("__", "."): field for key, field in fields.items()}
        write_edited(file, {**file.metadata, **changed}, target, overwrite=False, advance=lambda done: None)
    return target


def run_go(template: str, talk: list[tuple[str, str]]) -> str:
    """What Ollama makes of a template of this form: `if`, `else`, `range .Messages` and fields alone."""
    shape = re.fullmatch(
        r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}\{\{ range \.Messages \}\}"
        r'\{\{ if eq \.Role "user" \}\}(.*?)\{\{ else if eq \.Role "assistant" \}\}(.*?)\{\{ end \}\}\{\{ end \}\}',
        template, re.DOTALL,
    )  # fmt: skip
    assert shape
    system = "\n\n".join(text for role, text in talk if role == "system")
    shown = shape[1].replace("{{ .System }}", system) if system else shape[2]
    parts = {"user": shape[3], "assistant": shape[4], "system": ""}
    return shown + "".join(parts[role].replace("{{ .Content }}", text) for role, text in talk)


@pytest.mark.filterwarnings("ignore::quantcli.core.errors.QuantcliWarning")
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_go_template_gives_the_prompts_of_the_chat_template(name, model, tmp_path, capsys):
    file = with_metadata(model, tmp_path / "m.gguf", tokenizer__chat_template=string(TEMPLATES[name]))
    status, text, errors = run_command(capsys, "modelfile", file)
    assert (status, errors) == (0, "")
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    with open_gguf(file) as opened:
        chat = ChatTemplate(opened.metadata, load_tokenizer(opened.metadata))
    for talk in TALKS:
        expected = chat.render([{"role": role, "content": words} for role, words in talk])
        assert run_go(template, talk) == expected.removeprefix("<s>")


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_that_is_more_than_texts_around_messages_is_not_written(name, model, tmp_path):
    file = with_metadata(model, tmp_path / "m.gguf", tokenizer__chat_template=string(OTHERS[name]))
    with open_gguf(file) as opened:
        assert find_wrapping(ChatTemplate(opened.metadata, load_tokenizer(opened.metadata))) is None


def test_a_whole_modelfile(model, tmp_path, capsys):
    fields = {
        "tokenizer__chat_template": string(OTHERS["a date"]), "general__sampling__temp": f32(0.6),
        "general__sampling__top_k": i32(20), "general__sampling__penalty_repeat": f32(1.05),
    }  # fmt: skip
    file = with_metadata(model, tmp_path / "m.gguf", **fields)
    words = ("modelfile", file, "-o", tmp_path / "Modelfile", "--system", "Be brief.", "--ctx", 4096)
    assert run_command(capsys, *words)[0] == 0
    assert (tmp_path / "Modelfile").read_text().splitlines() == [
        "FROM ./m.gguf",
        "# The file's chat template cannot be written as a Go template. Ollama takes one of its own if it recognizes the "
        "file's;",
        '# otherwise add one: TEMPLATE """..."""',
        'PARAMETER stop "</s>"',
        "PARAMETER temperature 0.6",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.05",
        "PARAMETER num_ctx 4096",
        'SYSTEM """Be brief."""',
    ]
    assert run_command(capsys, *words)[0] == 1  # it exists


def test_without_a_chat_template_and_as_json(model, capsys):
    status, text, _ = run_command(capsys, "modelfile", model, "--json")
    found = json.loads(text)
    assert (status, found["output"]) == (0, None)
    assert found["modelfile"].startswith(f"FROM {model.resolve()}\n")
    assert "TEMPLATE" not in found["modelfile"]


def test_split_models_are_refused(model, tmp_path, capsys):
    run_command(capsys, "split", model, "-o", tmp_path / "m", "--split-max-tensors", 20)
    first = min(tmp_path.glob("m-*.gguf"))
    status, _, errors = run_command(capsys, "modelfile", first)
    assert (status, errors.splitlines()[0]) == (1, f"error: {first}: Ollama does not import split models")


def test_a_parameter_of_a_wrong_type_is_left_out(model, tmp_path, capsys):
    file = with_metadata(model, tmp_path / "m.gguf", general__sampling__temp=string("hot"), general__x=u32(1))
    assert "temperature" not in run_command(capsys, "modelfile", file)[1]
