"""LoRA adapters merged on the way: peft's own merges, and every way in which an adapter can be none of this model's."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.architectures.loader import find_architecture
from quantcli.conversion.convert import convert
from quantcli.conversion.lora.merge import AdapterRequest, merged, parse_adapter
from quantcli.core.errors import (
    FormatError,
    ModelError,
    UnsafePickleError,
    UnsupportedError,
    UsageError,
    ValueRangeError,
)
from quantcli.formats.adapters import open_adapter
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.tensors.tensor import Tensor

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "golden"), str(TESTS)]

from lora_cases import MERGES, adapter, base, embedding, pair  # noqa: E402
from tiny_checkpoint import tensor_bytes, write_adapter, write_checkpoint  # noqa: E402

GOLDENS: dict[str, dict[str, Any]] = json.loads((TESTS / "golden/lora/merges.json").read_text())
STORYTELLER = TESTS.parent / "examples" / "storyteller"

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def merge(model: Path, *adapters: Path | AdapterRequest) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that a merge changes, in the bits of their types, read in several pieces."""
    requests = [given if isinstance(given, AdapterRequest) else AdapterRequest(given) for given in adapters]
    with (
        open_checkpoint(model) as checkpoint,
        merged(checkpoint, find_architecture(checkpoint.config), requests) as changed,
    ):
        untied = {"tie_word_embeddings": False} if len(changed.tensors) > len(checkpoint.tensors) else {}
        assert changed.config == checkpoint.config | untied
        return {
            name: in_pieces(tensor)
            for name, tensor in changed.tensors.items()
            if tensor is not checkpoint.tensors.get(name)
        }


def in_pieces(tensor: Tensor, step: int = 3) -> np.ndarray[Any, Any]:
    pieces = []
    for start in range(0, tensor.rows, step):
        out = np.empty((min(step, tensor.rows - start), tensor.row_bytes), np.uint8)
        tensor.read(start, start + len(out), out)
        pieces.append(out.view(f"<u{tensor.type.block_bytes}"))
    return np.concatenate(pieces).reshape(tensor.shape)


def floats(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """BF16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def given(name: str, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    data = tensor_bytes(name, dtype, list(shape))
    if dtype == "BF16":
        return floats(np.frombuffer(data, "<u2")).reshape(shape)
    return np.frombuffer(data, "<f4").reshape(shape)


@pytest.mark.parametrize("name", MERGES)
def test_the_merge_is_peft_s(name: str, tmp_path: Path) -> None:
    """Bit for bit, but where a sum of products in another order ends on the other side of a rounding."""
    case = MERGES[name]
    model, place = write_checkpoint(tmp_path, case["base"]), write_adapter(tmp_path, case["adapter"])
    expected = GOLDENS[name]
    with open_checkpoint(model) as checkpoint:
        before = {key: in_pieces(tensor).tobytes() for key, tensor in checkpoint.tensors.items()}
    found = {key: bits for key, bits in merge(model, place).items() if bits.tobytes() != before.get(key)}
    assert found.keys() == expected.keys()
    apart = total = 0
    for key, (kind, shape, data) in expected.items():
        bits = np.frombuffer(base64.b64decode(data), found[key].dtype).reshape(shape)
        if kind == "F32":
            np.testing.assert_allclose(found[key].view(np.float32), bits.view(np.float32), rtol=1e-5, atol=1e-6)
            continue
        difference = np.abs(found[key].astype(np.int64) - bits.astype(np.int64))
        assert difference.max() <= 1, key
        apart, total = apart + int((difference > 0).sum()), total + difference.size
    assert apart <= total // 100


def test_every_case_is_in_the_goldens() -> None:
    assert GOLDENS.keys() == MERGES.keys()
    assert all(GOLDENS.values())


# --- how much, and how many -----------------------------------------------------------------------------------------------


def test_a_scale(tmp_path: Path) -> None:
    model, place = write_checkpoint(tmp_path, base(dtype="F32")), write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    weight = given(f"{Q}.weight", "F32", 16, 16)
    a, b = (given(f"base_model.model.{Q}.lora_{half}.weight", "F32", *s) for half, s in (("A", (4, 16)), ("B", (16, 4))))
    for scale in (0.0, 1.0, -0.5, 2.0):
        found = merge(model, AdapterRequest(place, scale))[f"{Q}.weight"].view(np.float32)
        np.testing.assert_allclose(found, weight + scale * (6 / 4) * (b @ a), rtol=1e-5, atol=1e-6)


def test_several_adapters_one_after_another(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, base(dtype="F32"))
    first = write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    second = write_adapter(tmp_path, {**adapter({**pair(Q, 16, 16), **pair(V, 16, 8)}), "directory": "second"})
    both = merge(model, first, second)
    assert both.keys() == {f"{Q}.weight", f"{V}.weight"}
    # The two add the same to the queries.
    twice = merge(model, AdapterRequest(first, 2.0))[f"{Q}.weight"].view(np.float32)
    np.testing.assert_allclose(both[f"{Q}.weight"].view(np.float32), twice, rtol=1e-5, atol=1e-6)
    assert merge(model) == {}


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("dir", "dir", 1.0), ("dir:0.5", "dir", 0.5), ("a/b:-1", "a/b", -1.0), ("C:\\lora", "C:\\lora", 1.0),
        ("C:\\lora:2", "C:\\lora", 2.0), ("a:b", "a:b", 1.0), (":2", ":2", 1.0), ("dir:1e-1", "dir", 0.1),
    ],
)  # fmt: skip
def test_requests(text: str, path: str, scale: float) -> None:
    assert parse_adapter(text) == AdapterRequest(Path(path), scale)


@pytest.mark.parametrize("text", ["dir:nan", "dir:inf", "dir:-inf"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not finite"):
        parse_adapter(text)


# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace("base_model.model.", "base_model.model.language."),
    ],
)
def test_other_spellings(tmp_path: Path, rename: Any) -> None:
    model = write_checkpoint(tmp_path, base())
    tensors = {rename(name): kind for name, kind in pair(Q, 16, 16).items()}
    assert merge(model, write_adapter(tmp_path, adapter(tensors))).keys() == {f"{Q}.weight"}


def test_whole_weights_by_peft_s_names(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        **pair(Q, 16, 16),
        "base_model.model.lm_head.modules_to_save.default.weight": ["F32", [40, 16]],
        "base_model.model.model.norm.weight": ["F32", [16]],
    }
    found = merge(write_checkpoint(tmp_path, base()), write_adapter(tmp_path, adapter(tensors)))
    assert found.keys() == {f"{Q}.weight", "lm_head.weight", "model.norm.weight"}
    key = "base_model.model.lm_head.modules_to_save.default.weight"
    assert found["lm_head.weight"].tobytes() == tensor_bytes(key, "F32", [40, 16])


def test_copies_of_the_base_model_change_nothing(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        **embedding("model.embed_tokens", 40, 16),
        "base_model.model.model.embed_tokens.base_layer.weight": ["BF16", [40, 16]],
    }
    model = write_checkpoint(tmp_path, base())
    with_copy = merge(model, write_adapter(tmp_path, adapter(tensors)))
    alone = write_adapter(tmp_path, {**adapter(embedding("model.embed_tokens", 40, 16)), "directory": "alone"})
    assert {name: array.tobytes() for name, array in with_copy.items()} == {
        name: array.tobytes() for name, array in merge(model, alone).items()
    }


def test_a_copy_of_what_is_saved_whole_changes_nothing(tmp_path: Path) -> None:
    # peft writes it where an embedding was trained whole and `save_embedding_layers` asks for embeddings.
    saved = {**pair(Q, 16, 16), "base_model.model.lm_head.weight": ["F32", [40, 16]]}
    copied = {**saved, "base_model.model.lm_head.original_module.weight": ["F32", [40, 16]]}
    model = write_checkpoint(tmp_path, base())
    places = (write_adapter(tmp_path, {**adapter(it), "directory": name}) for name, it in (("a", saved), ("b", copied)))
    first, second = (merge(model, place) for place in places)
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in second.items()
    }
    assert first["lm_head.weight"].tobytes() == tensor_bytes("base_model.model.lm_head.weight", "F32", [40, 16])


def test_an_adapter_in_a_pytorch_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes the file")
    model, place = write_checkpoint(tmp_path, base()), write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    expected = merge(model, place)
    (place / "adapter_model.safetensors").unlink()
    matrices = {
        name: torch.frombuffer(bytearray(tensor_bytes(name, dtype, shape)), dtype=torch.float32).reshape(shape)
        for name, (dtype, shape) in pair(Q, 16, 16).items()
    }
    torch.save(matrices, place / "adapter_model.bin")
    assert merge(model, place)[f"{Q}.weight"].tobytes() == expected[f"{Q}.weight"].tobytes()
    torch.save(torch.nn.Linear(2, 2), place / "adapter_model.bin")
    with pytest.raises(UnsafePickleError):
        open_adapter(place)


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        **pair("model.layers.7.self_attn.q_proj", 16, 16),
        **pair(V, 16, 16),
        **pair("model.layers.1.mlp.up_proj", 16, 24),
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.bias": ["F32", [24]],
        "base_model.model.score.weight": ["F32", [2, 16]],
        "base_model.model.lm_head.weight": ["F32", [48, 16]],
        "base_model.model.model.embed_tokens.base_layer.weight": ["F32", [48, 16]],
    }
    model = write_checkpoint(tmp_path, base())
    place = write_adapter(tmp_path, adapter(tensors, base_model_name_or_path="org/other"))
    with pytest.raises(ModelError) as caught:
        merge(model, place)
    assert caught.value.message.startswith(f"{place}: the adapter does not fit {model}: ")
    assert sorted(caught.value.message.partition("base: ")[2].split("; ")) == [
        "lm_head.weight is [48, 16] where the model has [40, 16]",
        "model.embed_tokens.weight was [48, 16] when it was trained, the model has [40, 16]",
        "model.layers.0.self_attn.v_proj.weight is [16, 16] where the model has [8, 16]",
        "model.layers.1.mlp.up_proj: it has a lora_B.bias, but the model's layer has no bias",
        "model.layers.7.self_attn.q_proj.weight is not in the model",
        "score.weight is not in the model",
    ]
    assert caught.value.hint == "The adapter was made for org/other."


FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "half a pair": ({f"base_model.model.{Q}.lora_A.weight": ["F32", [4, 16]]}, f"{Q}: no lora_B"),
    "half an embedding": ({"base_model.model.e.lora_embedding_B": ["F32", [4, 16]]}, "e: no lora_embedding_A"),
    "ranks apart": (
        {f"{Q}.lora_A.weight": ["F32", [4, 16]], f"{Q}.lora_B.weight": ["F32", [16, 5]]},
        r"matrices \[4, 16\] and \[16, 5\], expected",
    ),
    "a convolution": (
        {f"{Q}.lora_A.weight": ["F32", [4, 16, 3]], f"{Q}.lora_B.weight": ["F32", [16, 4, 1]]}, r"matrices \[4, 16, 3\]",
    ),
    "eight bits": (
        {f"{Q}.lora_A.weight": ["F32", [4, 16]], f"{Q}.lora_B.weight": ["U8", [16, 4]]}, "matrices stored as F32 and U8",
    ),
    "another rank": (pair(Q, 16, 16, 8), r"matrices of rank 8, where adapter_config\.json says rank 4 and alpha 6"),
    "nothing": ({}, "no LoRA matrices in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_adapters(tmp_path: Path, name: str) -> None:
    tensors, message = FAULTY[name]
    with pytest.raises(ModelError, match=message):
        open_adapter(write_adapter(tmp_path, adapter(tensors)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3, expected LORA"),
        ({"peft_type": "VERA"}, "an adapter of the kind VERA, expected LORA"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        (
            {"layer_replication": [[0, 1]], "use_qalora": True},
            r"layer_replication\), QALoRA \(use_qalora\), which is not supported",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        open_adapter(write_adapter(tmp_path, adapter(pair(Q, 16, 16), **config)))
    assert "merge_and_unload" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"lora_alpha": True}, "lora_alpha is True, expected a number"),
        ({"lora_alpha": 1e300}, r"lora_alpha is 1e\+300, expected a number"),
    ],
)
def test_configurations_without_an_alpha(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_adapter(write_adapter(tmp_path, adapter(pair(Q, 16, 16), **config)))


@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"q_proj": "x"}}, {"rank_pattern": ["q_proj"]}, {"alpha_pattern": {"(": 3}},
        {"alpha_pattern": {"v_proj": 3, "(": 3}}, {"rank_pattern": {"q_proj": 5}}, {"rank_pattern": {"(.+)+proj|x": 5}},
    ],
)  # fmt: skip
def test_patterns_that_do_not_fit(tmp_path: Path, patterns: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json says rank"):
        open_adapter(write_adapter(tmp_path, adapter(pair(Q, 16, 16), **patterns)))


def test_patterns_that_do_not_end(tmp_path: Path) -> None:
    described = adapter(pair(Q, 16, 16), rank_pattern={"(.+)+z": 3})
    with pytest.raises(UnsupportedError, match=r"adapter_config\.json: rank_pattern: its expressions do not end"):
        open_adapter(write_adapter(tmp_path, described))


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        (pair("transformer.h.0.attn.c_attn", 16, 48), {"fan_in_fan_out": True}),
        (embedding("transformer.wte", 40, 16), {}),
    ],
)
def test_dora_on_other_layers_is_refused_by_name(tmp_path: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    module = next(iter(tensors)).removeprefix("base_model.model.").rpartition(".lora")[0]
    described = adapter(
        {**tensors, f"base_model.model.{module}.lora_magnitude_vector": ["F32", [48]]}, use_dora=True, **config
    )
    model = write_checkpoint(tmp_path, MERGES["gpt2"]["base"])
    with pytest.raises(UnsupportedError, match=f"DoRA on {module}"):
        merge(model, write_adapter(tmp_path, described))


def test_dora_without_its_magnitudes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no lora_magnitude_vector, though use_dora is set"):
        open_adapter(write_adapter(tmp_path, adapter(pair(Q, 16, 16), use_dora=True)))


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such directory"):
        open_adapter(tmp_path / "none")
    with pytest.raises(FormatError, match=r"not an adapter: no adapter_config\.json in it"):
        open_adapter(tmp_path)
    place = write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    with pytest.raises(FormatError, match="expected the directory of an adapter, found a file"):
        open_adapter(place / "adapter_config.json")
    (place / "adapter_model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FormatError, match=r"no weights of an adapter: looked for adapter_model\.safetensors and"):
        open_adapter(place)
    (place / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
        open_adapter(place)


def test_weights_that_cannot_be_computed_with(tmp_path: Path) -> None:
    described = base()
    described["tensors"][f"{Q}.weight"] = ["U8", [16, 16]]
    place = write_adapter(tmp_path, adapter(pair(Q, 16, 16)))
    with pytest.raises(UnsupportedError, match="is stored as U8, into which adapters cannot be merged"):
        merge(write_bytes(tmp_path, described), place)


def write_bytes(place: Path, described: dict[str, Any]) -> Path:
    """A checkpoint with one tensor of another type, all zeros."""
    directory = place / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(described["config"]))
    header, position = {}, 0
    for name, (dtype, shape) in described["tensors"].items():
        size = int(np.prod(shape)) * {"U8": 1, "BF16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(position))
    return directory


def test_numbers_that_leave_the_range_are_found_out(tmp_path: Path) -> None:
    place = write_adapter(tmp_path, adapter(pair(Q, 256, 256)))
    with pytest.raises(ValueRangeError, match=r"tensor 'blk\.0\.attn_q\.weight'"):
        convert(STORYTELLER, "Q8_0", tmp_path / "out.gguf", adapters=[AdapterRequest(place, 3e38)])
    assert not (tmp_path / "out.gguf").exists()


# --- the whole road -------------------------------------------------------------------------------------------------------


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", "-m", "quantcli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_convert_merges_before_the_weights_are_transformed(tmp_path: Path) -> None:
    """Conversion of the merged checkpoint, and merging on the way, give one file."""
    place = write_adapter(tmp_path, adapter({**pair(Q, 256, 256), **pair(V, 256, 128)}))
    (result,) = convert(STORYTELLER, "F32", tmp_path / "lora.gguf", adapters=[AdapterRequest(place, 0.5)])
    assert result.source_bytes == sum(tensor.nbytes for tensor in open_checkpoint(STORYTELLER).tensors.values())
    expected = saved_merge(tmp_path, place, 0.5)
    convert(expected, "F32", tmp_path / "expected.gguf")
    assert contents(tmp_path / "lora.gguf") == contents(tmp_path / "expected.gguf")
    convert(STORYTELLER, "F32", tmp_path / "plain.gguf")
    plain = contents(tmp_path / "plain.gguf")
    assert {name for name, data in contents(tmp_path / "lora.gguf").items() if plain[name] != data} == {
        "blk.0.attn_q.weight", "blk.0.attn_v.weight",
    }  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    with open_gguf(path) as file:
        return {name: tensor.load().tobytes() for name, tensor in file.tensors.items()}


def saved_merge(place: Path, adapter: Path, scale: float) -> Path:
    """The storyteller with the merged weights in its file."""
    directory = place / "storyteller"
    directory.mkdir()
    for path in STORYTELLER.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    data = bytearray((directory / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, bits in merge(STORYTELLER, AdapterRequest(adapter, scale)).items():
        begin, end = header[name]["data_offsets"]
        data[start + begin : start + end] = bits.tobytes()
    (directory / "model.safetensors").write_bytes(data)
    return directory


def test_the_command(tmp_path: Path) -> None:
    place = write_adapter(tmp_path, adapter(pair(Q, 256, 256)))
    done = command(STORYTELLER, "--type", "F16", "--lora", f"{place}:0.5", "--lora", place, "-o", tmp_path / "a.gguf")
    assert done.returncode == 0, done.stderr
    convert(STORYTELLER, "F16", tmp_path / "b.gguf", adapters=[AdapterRequest(place, 0.5), AdapterRequest(place)])
    assert contents(tmp_path / "a.gguf") == contents(tmp_path / "b.gguf")

    lora = command("lora", place, "--base", STORYTELLER, "--outtype", "f16", "-o", tmp_path / "adapter.gguf", "--json")
    said = json.loads(lora.stdout)
    assert (lora.returncode, said["type"], said["architecture"], len(said["tensors"])) == (0, "F16", "llama", 2)
    assert said["output"] == str(tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("MODEL", "--type", "F16", "--lora", "MODEL"), 1, "not an adapter: no adapter_config.json in it"),
        (("MODEL", "--type", "F16", "--lora", "nowhere"), 1, "nowhere: no such directory"),
        (("GGUF", "--type", "F16", "--lora", "ADAPTER"), 2, "--lora is for a checkpoint, not for a GGUF file"),
        (("lora", "ADAPTER"), 2, "adapter_config.json does not name the base model"),
        (("lora", "ADAPTER", "--base", "MODEL", "--type", "Q4_K"), 2, "'Q4_K' is not a type for adapters"),
        (("lora", "MODEL"), 1, "not an adapter: no adapter_config.json in it"),
        (("ADAPTER", "--type", "F16"), 1, "config.json: no such file"),
    ],
)
def test_wrong_turns(tmp_path: Path, words: Sequence[str], status: int, message: str) -> None:
    place = write_adapter(tmp_path, adapter(pair(Q, 256, 256)))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    places = {"MODEL": STORYTELLER, "GGUF": tmp_path / "x.gguf", "ADAPTER": place}
    done = command(*(places.get(word, word) for word in words))
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (status, 2), done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
