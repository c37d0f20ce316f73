"""`quantize estimate`: sizes are those of the files, the cache is that which is allocated, no weights are read."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from tiny_model import write_model

from quantcli.conversion.convert import convert
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.kernels.attention.cache_types import STORAGES
from quantcli.quality.estimate import estimate
from quantcli.runner.cache import Cache, full_bytes
from quantcli.runner.model import Model
from quantcli.tensors.tensor import StoredTensor

ROOT = Path(__file__).parents[2]
STORYTELLER = ROOT / "examples" / "storyteller"
CASES = runpy.run_path(str(ROOT / "tests/golden/logit_cases.py"))["CASES"]
SOME = ["deepseek2", "gemma3", "gpt-oss", "lfm2", "granitehybrid", "falcon-mamba", "glm4moe", "cohere2"]
TYPES = ["F16", "Q8_0", "Q4_K_M", "Q3_K_S", "Q2_K", "IQ4_XS"]


def test_sizes_are_those_of_the_files(tmp_path):
    convert(STORYTELLER, TYPES, tmp_path / "{type}.gguf")
    for row in estimate(STORYTELLER, TYPES).rows:
        assert row.file_bytes == (tmp_path / f"{row.type}.gguf").stat().st_size


def test_a_file_is_estimated_as_it_is_and_in_the_types_asked_for(tmp_path):
    convert(STORYTELLER, ["F16", "Q8_0"], tmp_path / "{type}.gguf")
    made, asked = estimate(tmp_path / "F16.gguf", ["Q8_0"]).rows
    assert (made.type, made.file_bytes) == ("as it is", (tmp_path / "F16.gguf").stat().st_size)
    assert asked.file_bytes == (tmp_path / "Q8_0.gguf").stat().st_size
    assert [row.type for row in estimate(tmp_path / "Q8_0.gguf").rows] == ["as it is"]
    assert len(estimate(tmp_path / "F16.gguf").rows) > 20


@pytest.mark.filterwarnings("ignore::quantcli.core.errors.QuantcliWarning")
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("context", [1, 100, 5000])
def test_the_cache_is_that_which_is_allocated(name, context, tmp_path):
    with open_gguf(write_model(tmp_path, *CASES[name])) as file:
        sizes = Model(file).sizes
        for kind in STORAGES:
            cache = Cache(sizes, context, kind)
            arrays = {id(array): array for layer in cache.layers for array in (layer.keys, layer.values)}
            states = [state for layer in cache.states for state in layer]
            assert full_bytes(sizes, context, kind) == sum(array.nbytes for array in (*arrays.values(), *states))


def test_memory_grows_by_the_cache(tmp_path):
    with open_gguf(write_model(tmp_path, *CASES["gemma3"])) as file:
        sizes = Model(file).sizes
    found = estimate(tmp_path / "model.gguf", contexts=(100, 3000), cache_type="q8_0")
    small, large = found.rows[0].memory
    assert large - small == full_bytes(sizes, 3000, "q8_0") - full_bytes(sizes, 100, "q8_0") > 0
    assert found.cache == tuple(full_bytes(sizes, context, "q8_0") for context in (100, 3000))


def test_weights_beside_the_program(tmp_path):
    """Two types differ in memory by their weights; of an embedding that is not the output, rows alone are read."""
    path = write_model(tmp_path, "llama-gqa", {}, None, "F32")
    with open_gguf(path) as file:
        embedding = file.tensors["token_embd.weight"].nbytes
        weights = sum(tensor.nbytes for tensor in file.tensors.values())
    first, second = (estimate(path, [name], contexts=(64,)).rows for name in ("F32", "F16"))
    assert first[1].memory == first[0].memory
    saved = first[1].file_bytes - second[1].file_bytes
    matrices = weights - embedding
    assert saved / 2 < first[1].memory[0] - second[1].memory[0] < min(saved, matrices)


def test_no_weights_are_read(monkeypatch):
    def refuse(tensor, start, stop, out):
        raise AssertionError(tensor.name)

    monkeypatch.setattr(StoredTensor, "read", refuse)
    assert len(estimate(STORYTELLER).rows) > 20


def test_what_fits_and_which_type_to_take(capsys):
    everything = estimate(STORYTELLER, memory=1 << 40)
    assert {row.longest for row in everything.rows} == {everything.trained} == {512}
    assert everything.recommended().type in ("F16", "BF16")
    assert estimate(STORYTELLER, memory=1 << 20).recommended() is None
    eight = estimate(STORYTELLER, ["Q8_0", "Q4_K_M"])
    limit = eight.rows[0].memory[0] - 1  # Q8_0 fits with all but the last token of the context
    found = estimate(STORYTELLER, ["Q8_0", "Q4_K_M"], memory=limit)
    assert [row.longest for row in found.rows] == [511, 512]
    assert found.recommended().type == "Q4_K_M"
    status, said, errors = run_command(capsys, "estimate", STORYTELLER, "--type", "Q8_0,Q4_K_M", "--ram", limit)
    assert (status, errors) == (0, "")
    assert said.splitlines()[-1] == f"{limit}: take Q4_K_M, contexts of up to 512 tokens fit"
    assert "nothing fits" in run_command(capsys, "estimate", STORYTELLER, "--ram", "1MiB")[1]


def test_the_table_and_the_document(capsys):
    status, text, _ = run_command(capsys, "estimate", STORYTELLER, "--json")
    found = json.loads(text)
    assert (status, found["architecture"], found["parameters"], found["contexts"]) == (0, "llama", 3_672_320, [512])
    assert {"Q4_K_M", "IQ2_XXS", "F16"} <= {row["type"] for row in found["types"]}
    status, text, _ = run_command(capsys, "estimate", STORYTELLER, "--ctx", "128", "--ctx", "512", "--ram", "8GiB")
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-2].startswith("KV cache")


def test_seventy_billion_weights(tmp_path):
    """Llama 2 70B: 276 GB in F32, 138 in F16, 73 in Q8_0."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [32000, 8192], "lm_head.weight": [32000, 8192], "model.norm.weight": [8192]}
    for layer in range(80):
        name = f"model.layers.{layer}."
        matrices = {
            "self_attn.q_proj": [8192, 8192], "self_attn.k_proj": [1024, 8192], "self_attn.v_proj": [1024, 8192],
            "self_attn.o_proj": [8192, 8192], "mlp.gate_proj": [28672, 8192], "mlp.up_proj": [28672, 8192],
            "mlp.down_proj": [8192, 28672], "input_layernorm": [8192], "post_attention_layernorm": [8192],
        }  # fmt: skip
        shapes |= {f"{name}{part}.weight": shape for part, shape in matrices.items()}
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    for side in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / side).write_bytes((STORYTELLER / side).read_bytes())
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)  # holes: the file takes no room
    found = estimate(tmp_path, ["F32", "F16", "Q8_0", "Q4_K_M"], memory=48 << 30)
    assert [round(row.file_bytes / 1e9) for row in found.rows] == [276, 138, 73, 41]
    assert found.recommended().type == "Q4_K_M"
    assert found.cache == (80 * 2 * 1024 * 4096 * 2,)


def test_what_cannot_be_run_has_sizes_alone(tmp_path, capsys):
    found = estimate(write_model(tmp_path, "t5", {}, None, "F32"), ["Q8_0"])
    assert found.unrun
    assert [row.memory for row in found.rows] == [(), ()]
    status, said, _ = run_command(capsys, "estimate", tmp_path / "model.gguf")
    assert status == 0
    assert "memory is not estimated: " in said


@pytest.mark.parametrize(("words", "message"), [(("--type", "Q9"), "unknown type"), (("--ram", "much"), "is not a size"),
                                               (("--cache-type", "q9"), "unknown cache type")])  # fmt: skip
def test_bad_input_is_one_line(words, message, capsys):
    status, _, errors = run_command(capsys, "estimate", STORYTELLER, *words)
    assert (status, message in errors.splitlines()[0], len(errors.splitlines()) <= 2) == (2, True, True)
    with pytest.raises(UsageError):
        estimate(STORYTELLER, ["Q9"])
