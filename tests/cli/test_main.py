"""The contract of every command: one line that says what and where, an exit status, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from quantcli.__main__ import main
from quantcli.cli import commands
from quantcli.cli.commands import run as run_module
from quantcli.runner.text.sampling_options import SamplingOptions

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples" / "storyteller"


def run(*words: str | Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; with `limit`, no file may grow beyond so many bytes."""

    def prepare() -> None:
        if limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=prepare, cwd=ROOT)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr, which are about the error alone."""
    return [line for line in done.stderr.splitlines() if not line.startswith("compil")]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["no-such-model", "--type", "Q4_K_M"], 1, "no-such-model"),
        (["examples/storyteller"], 2, "--type"),
        (["examples/storyteller", "--type", "Q4_KM"], 2, "Q4_KM"),
        (["examples/storyteller", "--type", "Q4_0", "--tensor-type", "attn_v"], 2, "attn_v"),
        (["examples/storyteller", "--type", "Q4_0", "--tensor-type", "nothing=Q8_0"], 2, "nothing"),
        (["examples/storyteller", "--type", "IQ2_XXS"], 2, "importance"),
        (["examples/storyteller", "--typ", "Q4_0"], 2, "--typ"),
        (["--type", "Q4_0", "no-such-model"], 1, "no-such-model"),
        (["tests/golden/README.md", "--type", "Q4_0"], 1, "config.json"),
        (["inspect", "examples/storyteller/model.safetensors"], 1, "safetensors"),
        (["inspect", "no-such-file.gguf"], 1, "no-such-file.gguf"),
        (["run", "no-such-file.gguf", "--prompt", "x"], 1, "no-such-file.gguf"),
        (["tokenize", "no-such-file.gguf", "x"], 1, "no-such-file.gguf"),
        (["inspect"], 2, "FILE"),
    ],
)
def test_an_error_is_one_line_and_a_status(words: Sequence[str], status: int, message: str) -> None:
    done = run(*words)
    lines = said(done)
    assert done.returncode == status, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert not done.stdout


def test_without_arguments_the_help_is_shown() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: quantize")


def test_debug_shows_where_it_happened() -> None:
    done = run("no-such-model", "--type", "Q4_K_M", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_interruption_of_the_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "quantcli.cli.main", Slow("quantcli.cli.main"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="streams are closed as on Unix")
def test_streams_that_a_shell_closed_are_no_bug(tmp_path: Path) -> None:
    def close() -> None:
        os.close(0)
        os.close(1)

    command = [sys.executable, "-m", "quantcli", STORYTELLER, "--type", "F16", "-o", tmp_path / "out.gguf"]
    for words in (command, [*command[:3], "inspect", tmp_path / "out.gguf"]):
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=close, cwd=ROOT)
        assert (done.returncode, said(done)) == (0, [])


def test_convert_is_the_default_command(tmp_path: Path) -> None:
    for words in (["convert", STORYTELLER], [STORYTELLER]):
        done = run(*words, "--type", "Q4_K_M", "-o", tmp_path / "out.gguf", "--overwrite", "--json")
        document = json.loads(done.stdout)
        assert document["output"] == str(tmp_path / "out.gguf")
        assert document["type"] == "Q4_K_M"
        assert document["architecture"] == "llama"
        assert document["output_bytes"] == (tmp_path / "out.gguf").stat().st_size
        assert document["parameters"] == sum(
            int.__mul__(*tensor["shape"]) if len(tensor["shape"]) == 2 else tensor["shape"][0]
            for tensor in document["tensors"]
        )
        embedding = next(tensor for tensor in document["tensors"] if tensor["name"] == "token_embd.weight")
        assert embedding["shape"] == [256, 2048]
        assert (embedding["source_type"], embedding["type"]) == ("BF16", "Q6_K")


def test_several_types_give_a_list(tmp_path: Path) -> None:
    done = run(STORYTELLER, "--type", "Q8_0,F16", "-o", tmp_path, "--json")
    assert [document["type"] for document in json.loads(done.stdout)] == ["Q8_0", "F16"]
    assert {path.name for path in tmp_path.iterdir()} == {"storyteller-Q8_0.gguf", "storyteller-F16.gguf"}


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = run(STORYTELLER, "--type", "Q4_K_M", "--dry-run", "-o", tmp_path / "out.gguf")
    assert "blk.3.ffn_down.weight" in done.stdout
    assert "nothing was written" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="limits are set as on Unix")
def test_a_file_that_cannot_grow_leaves_nothing(tmp_path: Path) -> None:
    done = run(STORYTELLER, "--type", "F16", "-o", tmp_path / "out.gguf", limit=1_000_000)
    assert done.returncode == 1
    assert said(done)[0].startswith(f"error: {tmp_path / 'out.gguf'}: ")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    """A checkpoint of half a billion weights, all zero: a file with a hole, which takes no room and no time to make."""
    config = json.loads((STORYTELLER / "config.json").read_text())
    rows = 1 << 21
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 0, "vocab_size": rows}))
    (folder / "tokenizer.model").write_bytes((STORYTELLER / "tokenizer.model").read_bytes())
    size = rows * 256 * 2
    header = {
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [rows, 256], "data_offsets": [0, size]},
        "model.norm.weight": {"dtype": "BF16", "shape": [256], "data_offsets": [size, size + 512]},
    }
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size + 512)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number: signal.Signals, large_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    command = [sys.executable, "-m", "quantcli", large_model, "--type", "Q4_K_M", "-o", target / "out.gguf"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(target.iterdir()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "error: interrupted"
    assert not output
    assert not list(target.iterdir())


def test_the_help_of_every_command_begins_with_its_summary() -> None:
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(commands.SUMMARIES) == modules
    for name, summary in commands.SUMMARIES.items():
        command = import_module(f"quantcli.cli.commands.{name}").command
        assert command.name == name
        assert command.help.startswith(f"{summary}\n\n")


def test_the_help_lists_every_command_in_one_section() -> None:
    listed = [name for names in commands.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(commands.SUMMARIES)
    text = run("--help").stdout
    for title in commands.SECTIONS:
        assert f"\n{title}:\n" in text
    rows = [line for line in text.splitlines() if line.startswith("  ") and line.split()[0] in listed]
    assert [line.split()[0] for line in rows] == listed
    assert len({line.index(commands.SUMMARIES[line.split()[0]][:8]) for line in rows}) == 1


def test_the_help_of_the_conversion_has_groups_and_examples_and_says_that_a_type_is_needed() -> None:
    text = run("convert", "--help").stdout
    assert text.startswith("Usage: quantize convert MODEL --type T[,T...] [OPTIONS]\n")
    assert "Required, or a --target" in " ".join(text.split())
    titles = ["Output:", "Fidelity:", "Size:", "Types of tensors:", "Model:", "Other options:"]
    assert [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")] == titles
    assert "\n  quantize Qwen/Qwen3-0.6B --type Q4_K_M,Q8_0 -o models/\n" in text
    parameters = import_module("quantcli.cli.commands.convert").command.params[2:]
    options = [name for parameter in parameters for name in parameter.opts]
    assert all(text.count(f" {name} ") >= 1 for name in options if name.startswith("--"))


def test_run_samples_as_the_library_does_where_no_option_says_otherwise() -> None:
    defaults = {parameter.name: parameter.default for parameter in run_module.command.params}
    options = asdict(SamplingOptions())
    assert {name: defaults[name] for name in options} == options
