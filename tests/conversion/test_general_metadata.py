from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantcli.conversion.metadata.general import general_metadata, read_model_card
from quantcli.core.block_types import TYPES
from quantcli.core.errors import QuantcliWarning
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.gguf.spec import f32, i32, string, u32
from quantcli.tensors.tensor import TensorInfo

TENSORS = [TensorInfo("token_embd.weight", (1000, 1100), TYPES["F32"])]


def found(directory: Path, files: dict[str, str] | None = None, name: str = "model", config=None, **more):
    place = directory / name
    place.mkdir()
    for file, text in (files or {}).items():
        (place / file).write_text(text, encoding="utf-8")
    return general_metadata(Checkpoint(place, place, config or {}, {}), "llama", TENSORS, **more)


def plain(metadata):
    return {key.removeprefix("general."): field.value for key, field in metadata.items()}


def card(text: str) -> dict[str, str]:
    return {"README.md": f"---\n{text}\n---\n# Title\n"}


def test_without_anything_the_directory_names_the_model(tmp_path):
    assert plain(found(tmp_path, name="tiny-1M")) == {
        "architecture": "llama", "type": "model", "name": "Tiny 1M", "basename": "tiny", "size_label": "1M",
    }  # fmt: skip


def test_a_given_id_comes_before_the_directory(tmp_path):
    metadata = plain(found(tmp_path, name="0f3a9c", model_id="some-org/Thing-1M-Chat"))
    assert metadata["name"] == "Thing 1M Chat"
    assert metadata["organization"] == "Some Org"
    assert metadata["finetune"] == "Chat"


def test_a_computers_path_is_no_name(tmp_path):
    assert plain(found(tmp_path, config={"_name_or_path": "/home/me/models/x"}))["name"] == "Model"
    assert plain(found(tmp_path, name="b", config={"_name_or_path": "org/Other-v2"}))["name"] == "Other v2"


def test_sampling_recommendations(tmp_path):
    generation = {"temperature": 0, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1, "min_p": None, "do_sample": True,
                  "mirostat": 2.5, "sequence": 3, "penalty_last_n": "64"}  # fmt: skip
    metadata = found(tmp_path, {"generation_config.json": json.dumps(generation)})
    sampling = {key: field for key, field in metadata.items() if "sampling" in key}
    assert list(sampling.items()) == [
        ("general.sampling.top_k", i32(40)),
        ("general.sampling.top_p", f32(0.9)),
        ("general.sampling.temp", f32(0)),
        ("general.sampling.penalty_repeat", f32(1.1)),
    ]


def test_a_broken_generation_configuration_recommends_nothing(tmp_path):
    with pytest.warns(QuantcliWarning, match=r"generation_config\.json: the file is not valid JSON.* it is ignored"):
        assert not any("sampling" in key for key in found(tmp_path, {"generation_config.json": "{,"}))


def test_values_of_a_card_become_texts(tmp_path):
    text = "version: 1.5\nname: 7\nlicense: [mit, apache-2.0]\ntags: [a, 2, [x], null]\nauthor: {}"
    metadata = found(tmp_path, card(text))
    assert plain(metadata)["version"] == "1.5"
    assert plain(metadata)["name"] == "7"
    assert plain(metadata)["license"] == "mit,apache-2.0"
    assert plain(metadata)["tags"] == ["a", "2"]
    assert "general.author" not in metadata


def test_base_models_of_every_kind(tmp_path):
    text = """base_model:
- org/Base-7B-v0.1
- Nameless-3B
- https://huggingface.co/Other-org/Two
- https://example.com/three
- {name: Four, doi: 10.1/x, url: null, odd: 1}
- 5"""
    metadata = found(tmp_path, card(text))
    related = {key.removeprefix("general.base_model."): field for key, field in metadata.items() if "base_model" in key}
    assert related == {
        "count": u32(6),
        "0.name": string("Base 7B v0.1"),
        "0.version": string("v0.1"),
        "0.organization": string("Org"),
        "0.repo_url": string("https://huggingface.co/org/Base-7B-v0.1"),
        "1.name": string("Nameless 3B"),
        "2.name": string("Two"),
        "2.organization": string("Other Org"),
        "2.repo_url": string("https://huggingface.co/Other-org/Two"),
        "3.repo_url": string("https://example.com/three"),
        "4.name": string("Four"),
        "4.doi": string("10.1/x"),
    }


@pytest.mark.parametrize(
    "text",
    ["", "# No front matter\n", "---\n", "---\nname: [\n---\n", "---\n- a\n- b\n---\n", "---\n" + "[" * 5000 + "\n---\n",
     "---\nname: !!python/object:os.system x\n---\n", "--- \nname: x\n---\n", "---\nname: !!timestamp x\n---\n",
     "---\nname: !!bool x\n---\n", '---\nname: !!int ""\n---\n', "---\nname: !!float _\n---\n"],
)  # fmt: skip
def test_a_card_that_cannot_be_read_says_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_model_card(tmp_path / "README.md") == {}


def test_a_card_of_bytes_that_are_no_text(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nname: \xff\xfe x\n---\n")
    assert read_model_card(tmp_path / "README.md") == {"name": "\ufffd\ufffd x"}


def test_surrogates_of_a_card_are_characters(tmp_path):
    text = r'name: "\ud83d\ude00 x"' + "\n" + r'tags: ["\ud83d"]' + "\n" + r'base_model: "org/\ude00"'
    metadata = plain(found(tmp_path, card(text)))
    assert (metadata["name"], metadata["tags"]) == ("\U0001f600 x", ["\ufffd"])
    assert metadata["base_model.0.name"] == "\ufffd"


def test_a_card_that_would_fill_the_memory(tmp_path):
    doubling = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))
    metadata = found(tmp_path, card(f"a0: &a0 [x, x]\n{doubling}\ntags: *a39\nauthor: *a39\nbase_model: {{name: *a39}}"))
    assert "general.author" not in metadata


CARDS = [
    "license: mit\nlanguage: en\ntags: [a, b]\npipeline_tag: text-generation",
    "language:\n- en\n- no\nlibrary_name: transformers\nmodel_creator: Me\nmodel_type: thing\nmodel_name: A Name",
    "base_model: org/Base-7B\ndatasets: [one/two, three]\nversion: v3\nfinetune: fine\norganization: org",
    "base_models: []\ndataset: https://huggingface.co/datasets/x\nlicense_name: own\nlicense_link: LICENSE",
    "name: null\nmodel_name: Second\nurl: https://x.y\ndoi: 10.1/2\nrepo_url: r\nuuid: u\ndescription: long text",
    "base_model:\n\t- org/Tabbed-1B\nsize_label: 9B\nbasename: base",
]


@pytest.mark.parametrize("text", CARDS)
@pytest.mark.parametrize("name", ["plain", "Org-Model-1.1M-Instruct-v0.2"])
def test_cards_say_what_the_gguf_package_reads_from_them(tmp_path, text, name):
    gguf = pytest.importorskip("gguf", reason="the reference for cards")
    ours = found(tmp_path, card(text), name)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type("model")
    expected = gguf.Metadata.load(model_path=tmp_path / name, total_params=TENSORS[0].size)
    expected.size_label = expected.size_label or "1.1M"
    expected.set_gguf_meta_model(writer)
    assert [(key, field.type, field.value) for key, field in ours.items()] == [
        (key, int(value.type), value.value) for key, value in writer.kv_data[0].items()
    ]


@pytest.mark.parametrize("word", ["no", "No", "NO", "on", "off", "y", "n", "yes"])
@pytest.mark.parametrize("text", ["language: {}", "language: [en, {}]", "language:\n- en\n- {}"])
def test_words_that_yaml_1_1_takes_for_booleans_are_words(word, text, tmp_path):
    metadata = plain(found(tmp_path, card(text.format(word) + f"\nlicense: {word}\ntags: [{word}]")))
    assert metadata["languages"] == (["en"] if "en" in text else []) + [word]
    assert (metadata["license"], metadata["tags"]) == (word, [word])


def test_the_reference_takes_them_for_booleans(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: on\ntags: [no]\n---\n")
    assert read_model_card(tmp_path / "README.md", as_reference=True) == {"language": True, "tags": [False]}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e300", "1" + "0" * 400, "true", '"0.5"', "[1]"])
def test_a_recommendation_that_is_no_number_of_its_type_is_passed_over(value, tmp_path):
    generation = f'{{"temperature": {value}, "top_k": {value}, "top_p": 0.5}}'
    sampling = {key for key in plain(found(tmp_path, {"generation_config.json": generation})) if "sampling" in key}
    assert sampling == {"sampling.top_p"}
