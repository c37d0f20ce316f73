"""`quantize run --chat` with templates of all kinds: what is asked of the model, and whose code runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from changed_file import write_chat
from command_line import run_command

from quantcli.conversion.convert import convert

ONCE = [1, 403, 407, 261, 378]
"""The tokens of "Once upon a time" after the begin token."""

QUOTED = '"Once upon a time"'
EACH = "{{ bos_token }}{% for m in messages %}#{% endfor %}"
AS_A_PROGRAM = (["-m", "quantcli"], ["-P", "-c", "from quantcli.cli.main import main; main()"])


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


@pytest.fixture
def ask(stories, tmp_path, capsys):
    """Answers "Once upon a time" by a template: a function that gives status, the JSON document and stderr."""

    def ask(template: str, *more: str):
        chat = write_chat(stories, tmp_path / "chat.gguf", template)
        status, out, err = run_command(
            capsys, "run", chat, "--chat", "-p", "Once upon a time", "-n", 1, "--temp", 0, "--json", *more
        )
        return status, json.loads(out) if out else None, err

    return ask


@pytest.fixture
def tokens(stories, capsys):
    """The tokens of a text, as `quantize tokenize` tells them."""
    return lambda text: json.loads(run_command(capsys, "tokenize", stories, text, "--json")[1])["tokens"]


GENERATION = (
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
)
TYPED = "{{ m.role }}:{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
NO_TOOLS = "{% if tools is not none and loop.last %}[T{% for t in tools %}{{ t }}{% endfor %}]{% endif %}{{ m.content }}"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (GENERATION, "Once upon a time"),
        ("{{ m.content | tojson(ensure_ascii=False) }}", QUOTED),
        ("{{ m.content | tojson(ensure_ascii=True) }}", QUOTED),
        ("{{ m.content | tojson(separators=(',', ':')) }}", QUOTED),
        ("{{ m.content | tojson(sort_keys=True) }}", QUOTED),
        ("{{ [m.content] | tojson(4) }}", f"[{QUOTED}]"),
        (NO_TOOLS, "Once upon a time"),
        (NO_TOOLS.replace("tools is not none", "tools != none"), "Once upon a time"),
        (NO_TOOLS.replace("tools", "documents"), "Once upon a time"),
        (TYPED, "user:Once upon a time"),
        ("{{ m.content[0].text }}", "Once upon a time"),
        ("{% break %}", None),
    ],
)
def test_the_prompt_is_what_transformers_makes_of_it(ask, tokens, shown, text):
    status, document, err = ask(EACH.replace("#", shown))
    if text is None:
        assert (status, document["prompt_tokens"]) == (0, ONCE[:1])
        assert err == "warning: the file's chat template leaves out the content of the role user"
    else:
        assert (status, document["prompt_tokens"], err) == (0, tokens(text), "")


@pytest.mark.parametrize(
    "shown",
    [
        "{% if m.role != 'system' %}{{ m.content }}{% endif %}",
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}",
    ],
)
def test_a_system_message_is_not_lost(ask, tokens, shown):
    status, document, err = ask(EACH.replace("#", shown), "--system", "Talk about pirates.")
    assert (status, document["prompt_tokens"]) == (0, tokens("Talk about pirates.\nOnce upon a time"))
    said = "the file's chat template does not support a system message: it is prepended to the first user message"
    assert err == f"warning: {said}"


def imported_by_python(folder: Path) -> set[str]:
    """What `python -m` imports before the module that it is to run, and out of reach of that."""
    (folder / "showing.py").write_text("import sys; print(*sys.modules)")
    return set(subprocess.check_output([sys.executable, "-m", "showing"], cwd=folder, text=True).split())


@pytest.mark.parametrize("command", AS_A_PROGRAM, ids=["module", "script"])
def test_no_code_of_the_working_directory_runs(stories, tmp_path, command):
    chat = write_chat(stories, tmp_path / "chat.gguf", EACH.replace("#", "{{ m.content }}"))
    folder = tmp_path / "downloaded"
    folder.mkdir()
    names = sys.stdlib_module_names | {"jinja2", "markupsafe", "click", "numpy", "numba", "tqdm", "formats", "kernels"}
    for name in names - imported_by_python(tmp_path):
        (folder / f"{name}.py").write_text(f"open('executed', 'a').write('{name} '); raise ImportError")
    asked = ["run", str(chat), "--chat", "-p", "Once upon a time", "-n", "1", "--temp", "0", "--json"]
    done = subprocess.run([sys.executable, *command, *asked], cwd=folder, capture_output=True, check=False, timeout=120)
    executed = (folder / "executed").read_text() if (folder / "executed").exists() else ""
    assert (executed, done.returncode) == ("", 0), done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == ONCE


def test_it_runs_as_a_module_where_it_lies(stories, tmp_path):
    """As from a copy that is not installed, with its dependencies elsewhere."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "quantcli", "--version"], cwd=root, capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_python_s_own_variables_do_not_reach_the_template_s_process(ask, tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", str(tmp_path))))
    monkeypatch.setenv("PYTHONHASHSEED", "nonsense")
    monkeypatch.chdir(tmp_path)
    status, document, err = ask(EACH.replace("#", "{{ m.content }}"))
    assert (status, document["prompt_tokens"], err) == (0, ONCE, "")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "is broken in line 1: "),
        ("\n{{ messages | nonsense }}", "is broken in line 2: "),
        ("\n\n{{ messages[0].content.no.more }}", "failed in line 3: "),
        ("{{ 'x' * 70000000 }}", "makes a prompt of 70000000 characters"),
        ("{{ raise_exception('not\ntoday') }}", "refuses this conversation: not today"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests or calls itself too deeply in line 1"),
        ("{{ '\x1b[2J' + 1 }}", "failed in line 1: "),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(ask, template, message):
    status, document, err = ask(template)
    assert (status, document) == (1, None)
    assert err.startswith(f"error: the file's chat template {message}")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


def test_a_system_message_is_a_text(ask):
    assert ask(EACH, "--system", "\udcff")[::2] == (2, "error: the system message is not UTF-8")


@pytest.mark.parametrize("words", [["--chat"], ["--chat", "-p", ""], ["--chat", "-p", " "], [], ["-p", ""]])
def test_no_prompt_is_an_empty_prompt(stories, tmp_path, words):
    chat = write_chat(stories, tmp_path / "chat.gguf")
    command = [sys.executable, "-m", "quantcli", "run", str(chat), *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the prompt is empty\nhint: ")
