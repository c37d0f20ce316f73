"""Small files that ask for much memory: one line, and no more memory than the size of the file and 300 MiB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantcli.formats.gguf.arrays import PackedStrings, pack_strings, string_bounds
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.json_text import parse_object
from quantcli.runner.text.tokenizer.vocabulary import MOST_TOKENS

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak memory")

SPARE = 300 << 20

MEASURED = """
import atexit, sys
from pathlib import Path
from quantcli.cli.main import main
def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
atexit.register(tell)
main(sys.argv[1:])
"""


def measured(*words: object) -> tuple[int, str, int]:
    """The exit status of a command in a process of its own, the rest of stderr, and the bytes of memory at most."""
    command = [sys.executable, "-c", MEASURED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    *said, peak = done.stderr.splitlines()
    return done.returncode, "\n".join(said), int(peak) << 10


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.safetensors").write_bytes((golden / "stories260K" / "model.safetensors").read_bytes())
    return place


@pytest.mark.parametrize("value", ["[]", "{}", '{"a":1}', "[[[]]]", '"ab"', "1.5", "[0]"])
def test_many_values_of_a_configuration(model: Path, value: str) -> None:
    config = model / "config.json"
    values = ",".join([value] * ((15 << 20) // (len(value) + 1)))
    config.write_text(f'{{"architectures": ["LlamaForCausalLM"], "x": [{values}]}}')
    status, said, peak = measured(model, "--type", "F16", "--dry-run")
    assert status == 1
    assert said.startswith("error: ")
    assert said.count("error") == 1
    assert peak < config.stat().st_size + SPARE


def test_what_is_refused_is_named(model: Path) -> None:
    (model / "config.json").write_text(f'{{"x": [{",".join(["[]"] * (5 << 20))}]}}')
    status, said, _ = measured(model, "--type", "F16", "--dry-run")
    assert status == 1
    assert said == f"error: {model / 'config.json'}: the file has too many values: they would take 720 MiB of memory"


def test_a_large_tokenizer_is_read() -> None:
    """262,000 tokens with 580,000 merges as pairs (Gemma); 902,000 tokens with scores (XLM-V)."""
    tokens = ",".join(f'"token{index}": {index}' for index in range(262_000))
    merges = ",".join(['["ab", "cd"]'] * 580_000)
    text = f'{{"vocab": {{{tokens}}}, "merges": [{merges}]}}'.encode()
    assert len(parse_object("tokenizer.json", text, "the file")["merges"]) == 580_000
    pieces = ",".join(f'["\u2581token{index}", -{index % 20}.273940086364746]' for index in range(902_000))
    assert len(parse_object("tokenizer.json", f'{{"vocab": [{pieces}]}}'.encode(), "the file")["vocab"]) == 902_000


def vocabulary(path: Path, count: int) -> Path:
    """A file whose vocabulary has so many empty tokens."""
    data = bytes(8 * count)
    metadata: Metadata = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, PackedStrings(data, string_bounds(memoryview(data), count))),
    }
    with GGUFWriter(path, metadata, []):
        pass
    return path


@pytest.mark.parametrize(("count", "status"), [(4_000_000, 1), (MOST_TOKENS + 1, 1), (MOST_TOKENS, 0)])
@pytest.mark.parametrize("command", ["inspect", "tokenize", "convert"])
def test_many_empty_tokens(tmp_path: Path, count: int, status: int, command: str) -> None:
    path = vocabulary(tmp_path / "model.gguf", count)
    words: dict[str, Callable[[], list[object]]] = {
        "inspect": lambda: ["inspect", path],
        "tokenize": lambda: ["tokenize", path, "hello"],
        "convert": lambda: [path, "--type", "F16", "-o", tmp_path / "out.gguf"],
    }
    found, said, peak = measured(*words[command]())
    assert found == (status if command == "tokenize" else 0)
    if found:
        assert said == f"error: tokenizer.ggml.tokens has {count} tokens, at most {MOST_TOKENS} are supported"
    assert peak < path.stat().st_size + SPARE


def test_strings_are_packed_as_in_a_file() -> None:
    packed = pack_strings(["", "a", "ä"])
    assert packed.data == bytes(8) + bytes([1, *bytes(7)]) + b"a" + bytes([2, *bytes(7)]) + "ä".encode()
    assert list(packed) == ["", "a", "ä"]
