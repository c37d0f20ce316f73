"""`quantize inspect` on files of the reference, and on files that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from quantcli.cli.commands.inspect import command, document
from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, f32, i32, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

EVERYTHING: Metadata = {
    "general.architecture": string("llama"),
    "general.name": string("Fancy [bold]Name[/bold]"),
    "general.file_type": u32(15),
    "general.license": string("mit"),
    "general.languages": array(ValueType.STRING, ["en", "de"]),
    "llama.context_length": u32(131072),
    "llama.block_count": u32(2),
    "llama.embedding_length": u32(256),
    "llama.attention.head_count": array(ValueType.INT32, [4, 8]),
    "llama.attention.head_count_kv": u32(2),
    "llama.rope.freq_base": f32(1000000),
    "llama.rope.scaling.type": string("yarn"),
    "llama.rope.scaling.factor": f32(1.1),
    "llama.expert_count": u32(8),
    "llama.expert_used_count": u32(2),
    "tokenizer.ggml.model": string("llama"),
    "tokenizer.ggml.tokens": array(ValueType.STRING, ["<unk>", "<s>", "</s>", "\x1b[31m\n", "\udcff", "▁a"] + ["x"] * 94),
    "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0, float("-inf"), 1.5]),
    "tokenizer.ggml.bos_token_id": u32(1),
    "tokenizer.ggml.eos_token_id": u32(2),
    "tokenizer.ggml.eot_token_id": u32(3),
    "tokenizer.ggml.padding_token_id": i32(-1),
    "tokenizer.ggml.add_bos_token": boolean(True),
    "tokenizer.chat_template": string("\n".join(f"{{{{ line {index} }}}}" for index in range(20))),
    "quantize.imatrix.file": string("imatrix.gguf"),
    "quantize.imatrix.chunks_count": i32(128),
    "sampling.temperature": f32(float("nan")),
}
TENSORS = [
    TensorInfo("token_embd.weight", (100, 256), TYPES["Q6_K"]),
    TensorInfo("blk.0.attn_v.weight", (256, 256), TYPES["Q6_K"]),
    TensorInfo("blk.1.attn_v.weight", (256, 256), TYPES["Q4_K"]),
    TensorInfo("blk.0.attn_norm.weight", (256,), TYPES["F32"]),
]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("inspect") / "model.gguf", EVERYTHING, TENSORS)


def written(path: Path, metadata: Metadata, tensors: list[TensorInfo]) -> Path:
    with GGUFWriter(path, metadata, tensors) as writer:
        for index, info in enumerate(tensors):
            writer.write(index, 0, bytes(info.nbytes))
    return path


def printed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def lines(text: str) -> dict[str, str]:
    """The lines of a view by their first column, the spaces between columns made one."""
    found = {}
    for line in text.splitlines():
        label, _, rest = line.partition("  ")
        found[label] = " ".join(rest.split())
    return found


def test_the_page_says_what_people_ask(everything: Path) -> None:
    text = printed(everything)
    assert text.startswith(f"Fancy [bold]Name[/bold]\n{everything}\n")
    said = lines(text)
    assert said["Architecture"] == "llama"
    assert said["Parameters"] == "156.93 K in 4 tensors"
    size = everything.stat().st_size
    assert said["Size"] == f"{size / 1024:.2f} KiB, 5.74 bits per weight, Q4_K_M"
    assert said["Licence"] == "mit"
    assert said["Languages"] == "en, de"
    assert said["Context"] == "131,072 tokens"
    assert said["Layers"] == "2, embedding 256"
    assert said["Attention"] == "4 to 8 heads, 2 key-value heads"
    assert said["Experts"] == "8, 2 used per token"
    assert said["Rotary embedding"] == "base 1,000,000, scaling yarn, factor 1.1"
    assert said["Tokenizer"] == "100 tokens, SentencePiece BPE (llama)"
    assert said["Special tokens"] == r"bos 1 <s>, eos 2 </s>, eot 3 \x1b[31m\n, padding -1"
    assert said["Added to prompts"] == "bos"
    assert said["Imatrix file"] == "imatrix.gguf"
    assert said["Imatrix chunks"] == "128"


def test_the_page_tells_which_types_where(everything: Path) -> None:
    said = lines(printed(everything))
    assert said["Q6_K"] == "6.5625 2 91.14 K 73.01 KiB 66.4%"
    assert said["Q4_K"] == "4.5 1 65.54 K 36.00 KiB 32.7%"
    assert said["attention value projection"] == "2 131.07 K 88.50 KiB Q6_K x1, Q4_K x1"
    assert said["token embedding"] == "1 25.60 K 20.51 KiB Q6_K"
    assert said["norms, biases and others"] == "1 256 1.00 KiB F32"


def test_the_template_is_shown_shortened(everything: Path) -> None:
    text = printed(everything)
    assert "{{ line 5 }}" in text
    assert "{{ line 6 }}" not in text
    assert "14 more lines" in text


def test_the_metadata_are_listed_with_their_types(everything: Path) -> None:
    said = lines(printed(everything, "--metadata"))
    assert list(said)[2:] == list(EVERYTHING)
    assert said["llama.context_length"] == "uint32 131072"
    assert said["llama.rope.scaling.factor"] == "float32 1.1"
    assert said["llama.rope.freq_base"] == "float32 1000000"
    assert said["tokenizer.ggml.scores"] == "float32[3] [0, -inf, 1.5]"
    assert said["sampling.temperature"] == "float32 nan"
    assert said["tokenizer.ggml.add_bos_token"] == "bool true"
    assert said["tokenizer.ggml.tokens"] == (r"string[100] ['<unk>', '<s>', '</s>', '\x1b[31m\n', '\xff', ... 95 more]")
    assert said["llama.attention.head_count"] == "int32[2] [4, 8]"
    assert said["tokenizer.chat_template"].endswith(r"... (269 characters)")


def test_the_tensors_are_listed_and_no_name_is_cut(tmp_path: Path) -> None:
    name = "blk.0." + "very_long_" * 5 + "weight"
    tensors = [TensorInfo(name, (2, 3, 64), TYPES["Q8_0"]), TensorInfo("b", (), TYPES["F32"])]
    path = written(tmp_path / "model.gguf", {}, tensors)
    with open_gguf(path) as file:
        start = file.data_offset
    said = lines(printed(path, "--tensors"))
    assert said[name] == f"64 x 3 x 2 Q8_0 408 {start}"
    assert said["b"] == f"1 F32 4 {start + 416}"


def test_both_lists_at_once(everything: Path) -> None:
    text = printed(everything, "--metadata", "--tensors")
    assert text.index("general.name") < text.index("token_embd.weight")
    assert "Tensor types" not in text


def test_no_colours_in_a_pipe_and_no_control_characters(everything: Path) -> None:
    for arguments in ((), ("--metadata",), ("--tensors",), ("--json",)):
        text = printed(everything, *arguments)
        assert all(mark.isprintable() for mark in text.replace("\n", ""))


def test_the_json_document(everything: Path) -> None:
    found = json.loads(printed(everything, "--json"))
    assert list(found) == [
        "path", "version", "architecture", "alignment", "file_bytes", "parameters", "bits_per_weight", "metadata",
        "tensors",
    ]  # fmt: skip
    assert found["path"] == str(everything)
    assert (found["version"], found["architecture"], found["alignment"]) == (3, "llama", 32)
    assert found["file_bytes"] == everything.stat().st_size
    assert found["parameters"] == sum(info.size for info in TENSORS)
    assert found["bits_per_weight"] == pytest.approx(8 * sum(info.nbytes for info in TENSORS) / found["parameters"])
    metadata = found["metadata"]
    assert list(metadata) == list(EVERYTHING)
    assert metadata["tokenizer.ggml.tokens"][:6] == ["<unk>", "<s>", "</s>", "\x1b[31m\n", "�", "▁a"]
    assert len(metadata["tokenizer.ggml.tokens"]) == 100
    assert metadata["tokenizer.ggml.scores"] == [0.0, None, 1.5]
    assert metadata["sampling.temperature"] is None
    assert metadata["llama.rope.scaling.factor"] == float(np.float32(1.1))
    assert found["tensors"][1]["name"] == "blk.0.attn_v.weight"
    assert found["tensors"][0]["shape"] == [256, 100]
    assert found["tensors"][0]["bytes"] == 100 * 210


@pytest.mark.parametrize("name", ["llama-8x256.bf16.gguf", "imatrix.gguf", "tokenization/bert-bge.vocab.gguf"])
def test_the_json_document_agrees_with_the_gguf_package(shared: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the independent reader is not installed")
    path = shared / "golden" / name
    peer = gguf.GGUFReader(path)
    with open_gguf(path) as file:
        found = json.loads(json.dumps(document(file)))
    expected = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert found["metadata"] == expected
    assert found["alignment"] == peer.alignment
    assert found["tensors"] == [
        {
            "name": tensor.name,
            "shape": tensor.shape.tolist(),
            "type": tensor.tensor_type.name,
            "offset": tensor.data_offset,
            "bytes": tensor.n_bytes,
        }
        for tensor in peer.tensors
    ]
    assert found["parameters"] == sum(int(tensor.n_elements) for tensor in peer.tensors)


def test_a_file_without_tensors_or_architecture(tmp_path: Path) -> None:
    path = written(tmp_path / "empty.gguf", {}, [])
    assert printed(path).startswith("empty.gguf\n")
    found = json.loads(printed(path, "--json"))
    assert (found["architecture"], found["parameters"], found["bits_per_weight"]) == (None, 0, None)


def test_metadata_of_unexpected_types_is_shown_and_not_believed(tmp_path: Path) -> None:
    odd: Metadata = {
        "general.architecture": array(ValueType.INT32, [1]),
        "general.name": u32(7),
        "general.type": array(ValueType.INT32, [1, 2]),
        "general.file_type": string("Q4_K_M"),
        "general.tags": array(ValueType.INT32, [1, 2]),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": u32(1),
        "tokenizer.ggml.merges": array(ValueType.INT32, [3]),
        "tokenizer.ggml.bos_token_id": string("<s>"),
        "tokenizer.chat_template": u32(1),
        "split.count": string("x"),
    }
    path = written(tmp_path / "odd.gguf", odd, [])
    said = lines(printed(path))
    assert said["Tokenizer"] == "0 tokens, SentencePiece BPE (llama)"
    assert said["Tags"] == "1, 2"
    for option in ("--metadata", "--json"):
        printed(path, option)


def test_a_shard_of_a_split_model_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "part.gguf", {"split.no": u32(1), "split.count": u32(3)}, [])
    assert lines(printed(path))["Shard"] == "2 of 3; this summary is of this shard alone"


def test_a_safetensors_file_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b'\x20\0\0\0\0\0\0\0{"__metadata__":{}}' + b" " * 40)
    with pytest.raises(FormatError, match="found a safetensors file") as caught:
        CliRunner().invoke(command, [str(path)], catch_exceptions=False)
    assert "convert" in (caught.value.hint or "")


def run(code: str, *arguments: str) -> Any:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_inspecting_imports_nothing_heavy(golden: Path) -> None:
    code = (
        "import sys\n"
        "from quantcli.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print('|'.join(sys.modules), file=sys.stderr)\n"
    )
    for options in ([], ["--metadata"], ["--tensors"], ["--json"]):
        result = run(code, "inspect", str(golden / "gguf_files" / "every-value.gguf"), *options)
        assert result.returncode == 0, result.stderr
        imported = set(result.stderr.strip().splitlines()[-1].split("|"))
        assert "quantcli.cli.commands.inspect" in imported
        assert not {"numpy", "numba", "torch", "tokenizers", "jinja2"} & imported


def test_asking_for_help_imports_no_numpy() -> None:
    code = (
        "import sys\n"
        "from quantcli.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'numpy', 'numba', 'torch'} & set(sys.modules), 'imported for --help'\n"
    )
    assert run(code).returncode == 0


def test_the_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    code = "import sys; from quantcli.cli.main import main; main(sys.argv[1:])"
    result = run(code, "inspect", str(tmp_path / "none.gguf"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path / 'none.gguf'}: ")
    assert len(result.stderr.splitlines()) == 1
