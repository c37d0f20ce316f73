"""Architecture files: that those of the package hold together, and what is said of ones that do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantcli.architectures.loader import architectures, find_architecture, graph_of
from quantcli.architectures.schema import read_declaration
from quantcli.architectures.tables import PACKAGE_DIRECTORY, headings
from quantcli.core.errors import FormatError, ModelError, UnsupportedError
from quantcli.formats.gguf.spec import f32, string, u32

OWN = """
extends = "llama"
gguf = "llama"
title = "Mine"
classes = ["MineForCausalLM"]

[values]
feed_forward = "3 * hidden"

[tensors]
"output.weight" = { from = "head.weight" }
"blk.{layer}.ffn_gate.weight" = false

[metadata]
"{arch}.attention.scale" = { type = "f32", value = "attention_multiplier" }
"""


@pytest.fixture
def own(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_every_class_means_one_architecture():
    classes = [(name, a.declaration.when) for a in architectures() for name in a.classes]
    assert len(classes) == len(set(classes))
    names = {name for name, _ in classes}
    assert {"LlamaForCausalLM", "MistralForCausalLM"} <= names


def test_every_model_type_means_one_architecture():
    types = [(kind, a.declaration.when) for a in architectures() for kind in a.declaration.defaults]
    assert len(types) == len(set(types))


def test_what_stands_in_front_of_the_tables_is_what_a_file_is_known_by():
    declared = filter(None, (read_declaration(path) for path in PACKAGE_DIRECTORY.glob("*.toml")))
    facts = {(file.name, file.gguf, file.title, file.classes) for file in declared}
    assert {(heading.name, heading.gguf, heading.title, heading.classes) for heading in headings()} == facts
    assert len(facts) > 50


READS = """
from quantcli.architectures import loader

def watched(path, read=loader.read_declaration):
    print(path.stem)
    return read(path)

loader.read_declaration = watched
loader.graph_of("qwen2")
loader.find_architecture({"architectures": ["OrionForCausalLM"]})
"""


def test_only_the_file_that_is_needed_is_read():
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["qwen2", "orion"]


def test_the_graph_of_a_file_is_found_by_its_architecture():
    assert graph_of("llama").rope == "adjacent"
    assert graph_of("qwen2").rope == "halves"
    with pytest.raises(UnsupportedError, match=r"'clip' is not supported, only .*llama"):
        graph_of("clip")


def test_an_unknown_class_is_told_with_what_is_known():
    with pytest.raises(UnsupportedError, match=r"LlamaForCasualLM is not supported; .*: LlamaForCausalLM, ") as caught:
        find_architecture({"architectures": ["LlamaForCasualLM"]})
    assert "--arch-file" in (caught.value.hint or "")
    with pytest.raises(UnsupportedError, match=r"class X is not supported$"):
        find_architecture({"architectures": ["X"]})


def test_without_a_class_the_model_type_decides():
    assert find_architecture({"model_type": "mistral"}).name == "llama"
    with pytest.raises(UnsupportedError, match="model_type is 'unheard_of'"):
        find_architecture({"model_type": "unheard_of"})
    with pytest.raises(UnsupportedError, match="model_type is None"):
        find_architecture({})


def test_what_else_must_hold_of_a_class():
    assert find_architecture({"architectures": ["XLMRobertaModel"]}).name == "xlm-roberta"
    with pytest.raises(UnsupportedError, match=r"class XLMRobertaModel needs not lora_adaptations in config\.json"):
        find_architecture({"architectures": ["XLMRobertaModel"], "lora_adaptations": ["retrieval.query"]})


def test_what_tells_a_model_that_never_had_a_class():
    assert find_architecture({"ssm_cfg": {}}).name == "mamba"
    assert find_architecture({"ssm_cfg": {"layer": "Mamba2"}}).name == "mamba2"
    with pytest.raises(UnsupportedError, match="json names none"):
        find_architecture({"ssm_cfg": {"layer": "Mamba3"}})


def test_the_language_model_inside_a_larger_one_decides():
    config = {"architectures": ["SomeVisionModel"], "text_config": {"architectures": ["Qwen2ForCausalLM"]}}
    assert find_architecture(config).name == "qwen2"


def test_a_file_of_ones_own(own):
    architecture = find_architecture({"architectures": ["Whatever"]}, own(OWN))
    assert (architecture.name, architecture.gguf, architecture.classes) == ("mine", "llama", ("MineForCausalLM",))
    config = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9, "n_ctx": 32, "norm_eps": 1e-5,
        "attention_multiplier": 0.5,
    }  # fmt: skip
    metadata = architecture.metadata(config)
    assert metadata["llama.feed_forward_length"] == u32(24)
    assert list(metadata)[-1] == "llama.attention.scale"
    assert metadata["llama.attention.scale"] == f32(0.5)
    rows = {row.name: row for row in architecture.declaration.tensors}
    assert rows["output.weight"].sources == ("head.weight",)
    assert rows["output.weight"].shape is not None
    assert "blk.{layer}.ffn_gate.weight" not in rows


def test_alternatives_are_laid_over_their_row(own):
    text = OWN.replace(
        '{ from = "head.weight" }',
        '{ from = "a.weight", transforms = ["add(1)"], or = [{ from = "b", transforms = false }, { from = "c" }] }',
    )
    rows = {row.name: row for row in find_architecture({}, own(text)).declaration.tensors}
    first, second = rows["output.weight"].alternatives
    assert (first.sources, first.transforms) == (("b",), ())
    assert (second.sources, second.transforms) == (("c",), rows["output.weight"].transforms)
    assert first.shape == second.shape == rows["output.weight"].shape


def test_a_kind_of_layer_says_once_which_layers_have_its_tensors(own):
    text = OWN.replace(
        "[tensors]", '[kinds]\nattention = "layer % 2 == 0"\n\n[tensors]\n"blk.{layer}.attn_q.bias" = { when = "biased" }'
    )
    rows = {row.name: row for row in find_architecture({}, own(text)).declaration.tensors}

    def layers_with(name: str, **scope: bool) -> list[int]:
        return [layer for layer in range(4) if rows[f"blk.{{layer}}.{name}"].when.evaluate({"layer": layer, **scope})]

    assert layers_with("attn_q.weight") == [0, 2]
    assert layers_with("attn_q.bias", biased=True) == [0, 2]
    assert layers_with("attn_q.bias", biased=False) == []
    assert layers_with("ffn_up.weight") == [0, 1, 2, 3]


def test_what_is_written_early_comes_after_the_name_of_the_architecture(own):
    text = OWN.replace('value = "attention_multiplier"', 'value = "attention_multiplier", early = true')
    architecture = find_architecture({}, own(text))
    assert architecture.early_metadata({"attention_multiplier": 0.5}) == {
        "general.architecture": string("llama"), "llama.attention.scale": f32(0.5),
    }  # fmt: skip
    assert architecture.early_metadata({}) == {"general.architecture": string("llama")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("gguf = [", "not a readable TOML file"),
        (OWN.replace('"llama"', '"lama"', 1), "extends 'lama', which is not a built-in architecture"),
        (OWN.replace('"llama"', '"../architectures/llama"', 1), "which is not a built-in architecture"),
        (OWN.replace('"llama"', '["llama"]', 1), "which is not a built-in architecture"),
        (OWN.replace('gguf = "llama"', "gguf = 3"), "'gguf' is 3, expected a text"),
        (OWN.replace('["MineForCausalLM"]', '"MineForCausalLM"'), "'classes' is 'Mine.*', expected a list of texts"),
        (OWN.replace("[values]", 'when = "hidden >"\n[values]'), "'hidden >' is not an expression"),
        (OWN.replace("[values]", "when = true\n[values]"), "True is not an expression"),
        (OWN.replace("[values]", 'rename_endings = { ".a" = 1 }\n[values]'), "'.a' is 1, expected a text"),
        (OWN.replace("[values]", '[refused]\n"with x" = 3\n[values]'), "3 is not an expression"),
        (OWN.replace('{ from = "head.weight" }', '"head.weight"'), "'output.weight' is 'head.weight', expected a table"),
        (
            OWN.replace('"head.weight" }', '"head.weight", kind = "heads" }'),
            "unknown kind of layer 'heads', expected one of att",
        ),
        (OWN + "[kinds]\nattention = 1\n", "1 is not an expression"),
        (OWN + "[tokens]\n", "unknown keys tokens"),
        (OWN + '[ignore]\n"model.{layers" = "beyond"\n', "expected '}'"),
        (OWN.replace("3 * hidden", "3 ** hidden"), "not part of the expression language"),
        (OWN.replace('type = "f32"', 'type = "float"'), "unknown type 'float', expected one of bool"),
        (OWN.replace(', value = "attention_multiplier"', ""), "'{arch}.attention.scale' lacks 'value'"),
        (OWN.replace('"head.weight" }', '"head.weight", transforms = ["flip"] }'), "unknown transform 'flip'"),
        (OWN.replace('"head.weight" }', '"head.weight", transforms = ["rope_pairs"] }'), "missing .*'heads'"),
        (OWN.replace('"head.weight" }', '"head.weight", transforms = ["transpose(1)"] }'), "too many"),
        (OWN + "[graph]\nrope_pair = 1\n", "unknown graph flag 'rope_pair', expected one of norm, "),
        (OWN + "[graph]\nnorm = 'group'\n", "graph flag norm is 'group', expected one of rms, layer"),
        (OWN + "[graph]\nattention_norm = 'attn_norm'\n", "attention_norm is 'attn_norm', expected a list of texts"),
        (OWN + "[graph]\nattention_sinks = 1\n", "attention_sinks is 1, expected true or false"),
        (OWN + "[graph]\nwindow = []\n", r"window is \[\], expected an expression"),
        (OWN + "[graph]\nwindow = '2 ** 3'\n", "not part of the expression language"),
        (OWN + "[[graph.variants]]\nalibi = 8\n", "a variant of the graph lacks 'when'"),
        (OWN + "[[graph.variants]]\nwhen = true\nslopes = 8\n", "unknown graph flag 'slopes'"),
        (OWN + "[graph]\nactivation = 'clamped_swiglu'\nmlp = 'plain'\n", "'clamped_swiglu' needs a gated MLP"),
        ('extends = "base"\ngguf = "x"\n[tensors]\n[graph]\nnorm = "rms"\n', "the graph lacks activation, mlp"),
        (OWN + "x = " + "[" * 9999, "not a readable TOML file"),
        (OWN.replace("3 * hidden", "-" * 9999 + "1"), "mine.toml"),
        (OWN.replace('"head.weight" }', '"head.weight", gather = "heap" }'), "unknown gather 'heap'"),
        (OWN.replace('"head.weight" }', '["a", "b"] }'), "is made of several tensors"),
        (OWN.replace('"head.weight" }', '"head.weight", gather = "stack" }'), "is made of one tensor"),
        (OWN.replace('"head.weight" }', '"{part}.head" }'), "undeclared index 'part'"),
        (OWN.replace('"head.weight" }', '"a", or = [{ from = "b", transforms = ["flip"] }] }'), "unknown transform 'flip'"),
        (OWN.replace('"head.weight" }', '"a", or = [{ from = "{part}.b" }] }'), "undeclared index 'part'"),
        (OWN.replace('"head.weight" }', '"a", or = [{ from = false }] }'), "lacks 'from'"),
        (OWN.replace('"head.weight" }', '"head.weight", form = 1 }'), "'output.weight': .*form"),
        (OWN.replace('"blk.{layer}.ffn_gate.weight"', '"nothing_inherited"'), "'nothing_inherited' is False, expected"),
        (OWN.replace("output.weight", "x" * 64), "longer than the 63 bytes"),
        ('[tensors]\n"a" = 1', "names no `gguf` architecture"),
        ('gguf = "x"\n[tensors]\n', "'metadata' is missing"),
    ],
)
def test_mistakes_are_found_when_the_file_is_read(own, text, what):
    with pytest.raises((FormatError, UnsupportedError), match=what) as caught:
        find_architecture({}, own(text))
    assert ".toml" in caught.value.message


def test_a_table_set_to_false_is_not_inherited():
    vocabularies = {architecture.name: architecture.vocabulary for architecture in architectures()}
    assert vocabularies["gemma"].special == {"eot": 107}
    assert vocabularies["gemma2"].special == {}
    assert vocabularies["gemma2"].space_prefix is False


def test_a_missing_file(tmp_path):
    with pytest.raises(FormatError, match="no such architecture file"):
        find_architecture({}, tmp_path / "none.toml")


def test_files_that_extend_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("quantcli.architectures.tables.PACKAGE_DIRECTORY", tmp_path)
    (tmp_path / "a.toml").write_text('extends = "b"\ngguf = "a"\n')
    (tmp_path / "b.toml").write_text('extends = "a"\n')
    with pytest.raises(FormatError, match="extends 'a', which extends it in turn"):
        read_declaration(tmp_path / "a.toml")


def test_what_is_only_there_to_be_extended_is_no_architecture():
    assert read_declaration(PACKAGE_DIRECTORY / "base.toml") is None


SMALL = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8,
    "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
}  # fmt: skip


def llama_metadata(**changes):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **changes}
    return find_architecture(config).metadata(config)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({**SMALL, "hidden_size": None}, "no value for 'llama.embedding_length'"),
        ({**SMALL, "vocab_size": None}, "no value for 'llama.vocab_size'"),
        ({"max_position_embeddings": -5}, r"is -5, expected an unsigned 32-bit integer, for 'llama.context_length'"),
        ({"max_position_embeddings": 2**32}, r"expected an unsigned 32-bit integer"),
        ({"max_position_embeddings": 0.5}, r"expected an unsigned 32-bit integer"),
        ({"max_position_embeddings": float("nan")}, r"expected an unsigned 32-bit integer"),
        ({"max_position_embeddings": True}, r"expected an unsigned 32-bit integer"),
        ({"max_position_embeddings": "many"}, "is 'many', expected an unsigned .*, for 'llama.context_length'"),
        ({"rms_norm_eps": "small"}, "expected a 32-bit float"),
        ({"rope_theta": [1]}, "expected a 32-bit float"),
    ],
)
def test_hyperparameters_that_are_not_of_their_type(changes, what):
    with pytest.raises(ModelError, match=what):
        llama_metadata(**changes)


def test_a_null_that_the_configuration_class_refuses_has_nothing_filled_in():
    keys = {key.removeprefix("llama.") for key in llama_metadata(**SMALL, attention_bias=None)}
    assert "rope.freq_base" not in keys
    assert "attention.head_count_kv" not in keys
    keys = {key.removeprefix("llama.") for key in llama_metadata(**SMALL, rope_theta=None, num_key_value_heads=None)}
    assert "rope.freq_base" not in keys
    assert {"attention.head_count_kv", "attention.key_length"} <= keys


def test_variants_without_a_gguf_name_are_refused():
    with pytest.raises(UnsupportedError, match=r"'dice' for 'llama.expert_gating_func' is none of softmax, sigmoid"):
        llama_metadata(scoring_func="dice")


def test_files_of_one_gguf_architecture_have_one_graph():
    graphs = {}
    for architecture in architectures():  # readers find the graph by the name in the file alone
        assert graphs.setdefault(architecture.gguf, architecture.graph) == architecture.graph, architecture.name
