"""`quantize export`: a GGUF file becomes a directory that transformers loads, with the tensors and the tokenizer it had."""

from __future__ import annotations

import json
import random
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from tiny_checkpoint import write_checkpoint
from tiny_model import write_converted, write_model
from tokenizers import Tokenizer

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.conversion.convert import convert
from quantcli.conversion.export.export import _files, _original, export
from quantcli.conversion.export.tokenizer import tokenizer_files
from quantcli.conversion.model_card import model_card
from quantcli.core.block_types import TYPES
from quantcli.core.errors import OutputError, QuantcliError, QuantcliWarning, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.edit import write_edited
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import boolean, f32, i32, string, u32
from quantcli.formats.gguf.vocabulary import TokenType
from quantcli.kernels.rows import dequantize
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model
from quantcli.runner.text.tokenizer import load_tokenizer

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
TEXT = "Once upon a time, there was a  little dog named Bob.\nÜber 3,14 \U0001f600!"
GOLDENS = Path(__file__).parents[1] / "golden/architectures"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.gguf"
    convert(STORYTELLER, "BF16", path)
    return path


def tensors_of(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_checkpoint(directory) as checkpoint:
        return {name: (t.type.name, t.shape, t.load().tobytes()) for name, t in checkpoint.tensors.items()}


def test_the_checkpoint_comes_back(capsys, model, tmp_path):
    out = tmp_path / "model"
    status, said, errors = run_command(capsys, "export", model, "-o", out)
    assert (status, errors) == (0, "")
    assert said.startswith(f"{out}: llama, 3.67 M parameters in BF16, 7.")
    assert tensors_of(out) == tensors_of(STORYTELLER)
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (out, STORYTELLER))
    shared = ("architectures", "hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps")
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_tokenizer_comes_back(model, tmp_path):
    export(model, tmp_path / "model")
    convert(tmp_path / "model", "BF16", tmp_path / "again.gguf")
    with open_gguf(model) as first, open_gguf(tmp_path / "again.gguf") as second:
        assert load_tokenizer(second.metadata).encode(TEXT) == load_tokenizer(first.metadata).encode(TEXT)
        for key in ("model", "bos_token_id", "eos_token_id"):
            assert second.get(f"tokenizer.ggml.{key}") == first.get(f"tokenizer.ggml.{key}"), key
        keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
        ours, theirs = ([list(file.get(key)) for key in keys] for file in (second, first))
        assert ours[0] == theirs[0]
        # tokenizer.json has no type of its own for the unknown token.
        assert ours[1] == [TokenType.CONTROL if type_ == TokenType.UNKNOWN else type_ for type_ in theirs[1]]


def test_shards_have_an_index(capsys, model, tmp_path):
    status, _, errors = run_command(capsys, "export", model, "-o", tmp_path / "model", "--split-max-size", "3M", "--json")
    assert (status, errors) == (0, "")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    assert index["metadata"]["total_size"] == sum(len(data) for *_, data in tensors_of(STORYTELLER).values())
    assert tensors_of(tmp_path / "model") == tensors_of(STORYTELLER)


def test_a_quantized_file_is_dequantized(tmp_path):
    convert(STORYTELLER, "Q4_K_M", tmp_path / "q.gguf")
    exported = export(tmp_path / "q.gguf", tmp_path / "model", type_name="F32")
    assert exported.type == "F32"
    with open_gguf(tmp_path / "q.gguf") as file, open_checkpoint(tmp_path / "model") as checkpoint:
        stored = file.tensors["blk.0.ffn_down.weight"]
        found = checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].load()
        assert stored.type.is_quantized
        np.testing.assert_array_equal(found, dequantize(stored.load(), stored.type))
    assert export(tmp_path / "q.gguf", tmp_path / "half").type == "F16"


def test_norms_that_a_small_type_does_not_hold_stay_f32(tmp_path):
    description = json.loads((GOLDENS / "llama-mixed-types.json").read_text())["checkpoint"]
    with open_checkpoint(write_checkpoint(tmp_path, description)) as checkpoint:
        given = {name: tensor.type.name for name, tensor in checkpoint.tensors.items()}
        write_converted(checkpoint, tmp_path / "m.gguf", "BF16")
    export(tmp_path / "m.gguf", tmp_path / "out")
    found = {name: kind for name, (kind, _, _) in tensors_of(tmp_path / "out").items()}
    assert found == given
    assert {"F32", "BF16"} == set(found.values())


@pytest.mark.parametrize("name", ["bert-bge", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"])
def test_an_exported_vocabulary_gives_the_tokens_of_the_reference(name, shared):
    path = shared / "golden/tokenization" / f"{name}.vocab.gguf"
    with open_gguf(path) as file:
        made = tokenizer_files(file.metadata, path)["tokenizer.json"]
    tokenizer = Tokenizer.from_str(made.decode())
    for case in json.loads(path.with_name(f"{name}.json").read_text()):
        assert tokenizer.encode(case["text"], add_special_tokens=False).ids == case["tokens"], case["text"]


def test_transformers_gives_the_logits_of_our_runner(model, tmp_path):
    torch = pytest.importorskip("torch", reason="transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="the directory is for transformers")
    export(model, tmp_path / "model", type_name="F32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer(TEXT)["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    with open_gguf(model) as file:
        assert load_tokenizer(file.metadata).encode(TEXT) == ids
        ours = Model(file)
        found = ours.forward(ids, Cache(ours.sizes, 256, "f32"), every=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.ptp(expected))


def test_templates_special_tokens_and_sampling_are_kept(model, tmp_path):
    more = {
        "tokenizer.chat_template": string("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"),
        "tokenizer.chat_template.tool_use": string("tools"), "tokenizer.ggml.eot_token_id": u32(7),
        "tokenizer.ggml.padding_token_id": u32(0), "tokenizer.ggml.add_eos_token": boolean(True),
        "general.sampling.temp": f32(0.6), "general.sampling.penalty_repeat": f32(1.05), "general.sampling.top_k": i32(20),
    }  # fmt: skip
    with open_gguf(model) as file:
        write_edited(file, {**file.metadata, **more}, tmp_path / "m.gguf", overwrite=False, advance=lambda done: None)
        tokens = file.get("tokenizer.ggml.tokens")
    export(tmp_path / "m.gguf", tmp_path / "out")
    said, generation = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("tokenizer_config.json", "generation_config.json")
    )
    assert {entry["name"]: entry["template"] for entry in said["chat_template"]} == {
        "default": more["tokenizer.chat_template"].value, "tool_use": "tools",
    }  # fmt: skip
    assert (said["bos_token"], said["eos_token"], said["pad_token"]) == (tokens[1], tokens[2], tokens[0])
    assert generation == {
        "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "do_sample": True, "temperature": 0.6, "top_k": 20,
        "repetition_penalty": 1.05,
    }  # fmt: skip
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    ids = tokenizer.encode("Once").ids
    assert (ids[0], ids[-1]) == (1, 2)
    convert(tmp_path / "out", "BF16", tmp_path / "again.gguf")
    with open_gguf(tmp_path / "again.gguf") as again:
        kept = ("tokenizer.chat_template", "tokenizer.chat_template.tool_use", "general.sampling.temp",
                "general.sampling.penalty_repeat", "tokenizer.ggml.padding_token_id")  # fmt: skip
        assert {key: again.get(key) for key in kept} == {key: pytest.approx(more[key].value) for key in kept}


def test_a_tokenizer_is_copied(model, tmp_path):
    export(model, tmp_path / "model", tokenizer=STORYTELLER)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"tokenizer.model", "tokenizer_config.json"} <= names
    assert "tokenizer.json" not in names


def test_a_vocabulary_of_an_unknown_kind_needs_a_tokenizer(model, tmp_path):
    changed = {"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("of-tomorrow")}
    with open_gguf(model) as file:
        write_edited(file, {**file.metadata, **changed}, tmp_path / "m.gguf", overwrite=False, advance=lambda done: None)
    with pytest.raises(UnsupportedError, match="the pre-tokenizer 'of-tomorrow' cannot be exported"):
        export(tmp_path / "m.gguf", tmp_path / "out")
    export(tmp_path / "m.gguf", tmp_path / "out", tokenizer=STORYTELLER / "tokenizer.model")
    assert "tokenizer.model" in {path.name for path in (tmp_path / "out").iterdir()}


def test_what_a_killed_run_left_is_removed(model, tmp_path):
    left = tmp_path / ".out.0123abcd.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.filterwarnings("ignore::quantcli.core.errors.QuantcliWarning")
@pytest.mark.parametrize("number", range(4))
def test_metadata_of_any_type_and_value_are_used_or_refused(number, model):
    """For the model card too. `tests/test_mutations.py` has the values."""
    changed, dice = runpy.run_path(str(Path(__file__).parents[1] / "test_mutations.py"))["changed"], random.Random(number)
    with open_gguf(model) as file:
        kind = string(["llama", "t5", "bert", "gpt2"][number])
        source = replace(file, metadata={**file.metadata, "tokenizer.ggml.model": kind})
        for _ in range(60):
            other = replace(source, metadata=changed(source.metadata, dice))
            for attempt in (_original, lambda file: _files(file, {}, TYPES["F32"], None), _card):
                try:
                    attempt(other)
                except QuantcliError as error:
                    assert "\n" not in error.message


def _card(file):
    model_card([file], "me/model", {}).encode()


def test_nothing_is_left_of_what_fails(capsys, model, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    with pytest.raises(OutputError, match="expected no directory or an empty one, found a directory that is not empty"):
        export(model, taken)
    damaged = Path(shutil.copy(model, tmp_path / "damaged.gguf"))
    with damaged.open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\xff" * 8)  # NaN
    status, _, errors = run_command(capsys, "export", damaged, "-o", tmp_path / "new")
    assert (status, len(errors.splitlines())) == (1, 2), errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.gguf", "taken"]


def test_an_architecture_without_inverse_is_refused_with_the_reason(tmp_path):
    write_model(tmp_path, "mamba", {}, None, "F32")
    with pytest.raises(UnsupportedError, match=r"^Mamba.* cannot be exported: the transform negative_exp of blk.0.ssm_a"):
        export(tmp_path / "model.gguf", tmp_path / "out")


def test_what_config_json_cannot_say_is_told(tmp_path):
    write_model(tmp_path, "llama3-odd", {}, None, "F32")
    with pytest.warns(QuantcliWarning, match=r"does not say the same as the file about rope_freqs.weight: check it"):
        export(tmp_path / "model.gguf", tmp_path / "out")


def test_the_pooling_of_an_embedding_model_is_in_files_of_sentence_transformers(tmp_path):
    write_model(tmp_path, "qwen3-embedding", {}, None, "F32")
    export(tmp_path / "model.gguf", tmp_path / "out", type_name="F32")
    assert json.loads((tmp_path / "out/1_Pooling/config.json").read_text()) == {
        "word_embedding_dimension": 64, "pooling_mode": "lasttoken",
    }  # fmt: skip
    with open_gguf(tmp_path / "model.gguf") as file, open_checkpoint(tmp_path / "out") as checkpoint:
        again = find_architecture(checkpoint.config).metadata(checkpoint.config)
        assert again["qwen3.pooling_type"].value == file.get("qwen3.pooling_type") == 3


def test_an_older_file_lacks_keys_that_follow_from_others(model, tmp_path):
    """No warning, which would be an error here."""
    with open_gguf(model) as file:
        older = {key: field for key, field in file.metadata.items() if not key.endswith(("key_length", "value_length"))}
        assert len(older) == len(file.metadata) - 2
        write_edited(file, older, tmp_path / "m.gguf", overwrite=False, advance=lambda done: None)
    export(tmp_path / "m.gguf", tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tensors_of(STORYTELLER)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "mixtral", "phi3", "deepseek2", "gpt2", "internlm2-groups"])
def test_families_come_back(name, tmp_path):
    description = json.loads((GOLDENS / f"{name}.json").read_text())["checkpoint"]
    directory = write_checkpoint(tmp_path, description)
    (tmp_path / "w").mkdir()
    write_model(tmp_path / "w", name, {}, None, "F32")
    export(tmp_path / "w" / "model.gguf", tmp_path / "out", type_name="F32")
    with open_checkpoint(directory) as first, open_checkpoint(tmp_path / "out") as second:
        assert set(second.tensors) <= set(first.tensors)
        for key, tensor in second.tensors.items():
            assert tensor.load().tobytes() == as_float32(first.tensors[key]).load().tobytes(), key
