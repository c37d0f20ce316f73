"""What transformers reads of a tokenizer and llama.cpp's converter does not: docs/departures.md, line by line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.formats.checkpoint import Checkpoint
from quantcli.formats.errors import FormatError, QuantcliWarning
from quantcli.formats.vocabulary_spec import TokenType

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from vocabulary_cases import ENDS, FAST, PRE_TOKENIZER, byte_level, config, write_case
from vocabulary_cases_kinds import KINDS, RULES

SIZE = 2052
"""Embeddings: four more than the pieces."""

ADDED = [
    {"id": 2048, "content": "<|im_start|>", "special": True},
    {"id": 2049, "content": "<|im_end|>", "special": True},
    {"id": 2050, "content": "sec5A", "special": False},
]


def convert(directory: Path, *, size: int | None = SIZE, **options):
    configuration = json.loads((directory / "config.json").read_text())
    checkpoint = Checkpoint(directory, directory, configuration, {})
    return vocabulary_metadata(checkpoint, size, pre_tokenizer=PRE_TOKENIZER, **options)


def pieces(directory: Path, **files) -> Path:
    """A checkpoint with a tokenizer.model of 2,048 pieces, and these files (`_` for the dot of their names)."""
    more = {name.replace("_json", ".json").replace("_jinja", ".jinja"): value for name, value in files.items()}
    return write_case(directory, {"config.json": config(SIZE), "tokenizer.model": "PIECES", **more})


def token(metadata, id_: int):
    return metadata["tokenizer.ggml.tokens"].value[id_], TokenType(metadata["tokenizer.ggml.token_type"].value[id_])


# --- Added tokens ---------------------------------------------------------------------------------------------------------


def test_added_tokens_of_tokenizer_json_count_beside_a_tokenizer_model(tmp_path):
    directory = pieces(tmp_path, tokenizer_json={"added_tokens": ADDED, "model": {"type": "BPE"}})
    metadata = convert(directory)
    assert token(metadata, 2048) == ("<|im_start|>", TokenType.CONTROL)
    assert token(metadata, 2050) == ("sec5A", TokenType.USER_DEFINED)
    assert token(metadata, 2051) == ("[PAD2051]", TokenType.UNUSED)
    assert token(convert(directory, as_reference=True), 2048) == ("[PAD2048]", TokenType.UNUSED)


def test_a_piece_becomes_special_where_tokenizer_json_says_so(tmp_path):
    text, _ = token(convert(pieces(tmp_path)), 500)
    shutil.rmtree(tmp_path)
    listed = [{"id": 500, "content": text, "special": True}, {"id": 0, "content": "<unk>", "special": True}]
    metadata = convert(pieces(tmp_path, tokenizer_json={"added_tokens": listed}))
    assert token(metadata, 500) == (text, TokenType.CONTROL)
    assert token(metadata, 0) == ("<unk>", TokenType.UNKNOWN)


def test_tokenizer_config_has_the_last_word_on_an_id(tmp_path):
    decoder = {"2048": {"content": "<|begin|>", "special": True}}
    files = {"tokenizer_json": {"added_tokens": ADDED}, "tokenizer_config_json": {"added_tokens_decoder": decoder}}
    metadata = convert(pieces(tmp_path, **files))
    assert [token(metadata, id_)[0] for id_ in (2048, 2049)] == ["<|begin|>", "<|im_end|>"]


@pytest.mark.parametrize("name", ["unigram", "unigram-json"])
def test_added_tokens_of_a_unigram_have_their_texts(name, tmp_path):
    decoder = {"600": {"content": "<new>", "special": True}}
    directory = write_case(tmp_path, {**KINDS[name], "tokenizer_config.json": {"added_tokens_decoder": decoder}})
    rules = VocabularyRules(**RULES[name])
    assert token(convert(directory, size=610, rules=rules), 600) == ("<new>", TokenType.CONTROL)
    assert token(convert(directory, size=610, rules=rules, as_reference=True), 600)[0] == "[PAD600]"


def test_added_tokens_json_counts_beside_a_tokenizer_json(tmp_path):
    first = max(entry["id"] for entry in ENDS) + 1
    files = {"config.json": config(300), "tokenizer.json": byte_level(ENDS), "tokenizer_config.json": FAST}
    directory = write_case(tmp_path, files | {"added_tokens.json": {"<|new|>": first}})
    assert token(convert(directory, size=300), first)[0] == "<|new|>"
    assert token(convert(directory, size=300, as_reference=True), first)[0] == f"[PAD{first}]"


# --- Ids of special tokens ------------------------------------------------------------------------------------------------


def ends(metadata) -> dict[str, int]:
    keys = {role: f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "eot", "eom")}
    return {role: metadata[key].value for role, key in keys.items() if key in metadata}


def test_a_list_of_end_tokens_in_config_json_is_used_like_one_in_generation_config_json(tmp_path):
    configured = write_case(tmp_path / "a", {"config.json": config(SIZE, eos_token_id=[5, 2]), "tokenizer.model": "PIECES"})
    generation = pieces(tmp_path / "b", generation_config_json={"eos_token_id": [5, 2]})
    nested = config(SIZE, text_config={"eos_token_id": [5, 2]})
    inner = write_case(tmp_path / "c", {"config.json": nested, "tokenizer.model": "PIECES"})
    for directory in (configured, generation, inner):
        assert ends(convert(directory)) == {"eos": 5}  # 2 is </s>, which readers know
        assert ends(convert(directory, as_reference=True)) == {}


def test_an_end_token_may_stand_in_added_tokens_decoder_alone(tmp_path):
    named = {"eos_token": "<|im_end|>", "added_tokens_decoder": {"2049": {"content": "<|im_end|>", "special": True}}}
    directory = pieces(tmp_path, tokenizer_config_json=named)
    assert ends(convert(directory)) == {"eos": 2049}
    assert ends(convert(directory, as_reference=True)) == {}


def test_an_end_token_may_be_a_piece(tmp_path):
    directory = pieces(tmp_path, tokenizer_config_json={"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    assert ends(convert(directory)) == {"bos": 1, "eos": 2}


def test_end_tokens_that_readers_know_by_their_texts_need_no_key(tmp_path):
    decoder = {"2048": {"content": "<|im_end|>", "special": True}, "2049": {"content": "<|user|>", "special": True}}
    named = {"added_tokens_decoder": decoder}
    generation = {"eos_token_id": [2, 2048, 2049, 300, 9999, -1, True, "2"]}
    directory = pieces(tmp_path, tokenizer_config_json=named, generation_config_json=generation)
    # 300 is an ordinary piece, and the others are no ids.
    assert ends(convert(directory)) == {"eos": 2, "eot": 2049}


def test_an_end_token_that_gguf_has_no_place_for_is_told(tmp_path):
    decoder = {str(2048 + number): {"content": f"<|end_{number}|>", "special": True} for number in range(4)}
    directory = pieces(
        tmp_path,
        tokenizer_config_json={"added_tokens_decoder": decoder},
        generation_config_json={"eos_token_id": [2, 2048, 2049, 2050]},
    )
    with pytest.warns(QuantcliWarning, match=r"no place for a further end token, '<\|end_2\|>' \(2050\)"):
        assert ends(convert(directory)) == {"eos": 2, "eot": 2048, "eom": 2049}


# --- Chat templates -------------------------------------------------------------------------------------------------------


def templates(metadata) -> dict[str, str]:
    return {key: field.value for key, field in metadata.items() if key.startswith("tokenizer.chat_template")}


@pytest.mark.parametrize("configured", [{"chat_template": "OLD"}, {"chat_template": None}, {}, None])
def test_a_template_file_wins(configured, tmp_path):
    files = {} if configured is None else {"tokenizer_config_json": {"eos_token": "</s>", **configured}}
    directory = pieces(tmp_path, chat_template_jinja="NEW", **files)
    assert templates(convert(directory)) == {"tokenizer.chat_template": "NEW"}


def test_for_the_reference_the_configuration_wins(tmp_path):
    directory = pieces(tmp_path, tokenizer_config_json={"chat_template": "OLD"}, chat_template_jinja="NEW")
    assert templates(convert(directory, as_reference=True)) == {"tokenizer.chat_template": "OLD"}


def test_named_template_files_leave_the_configured_template_as_the_default(tmp_path):
    directory = pieces(tmp_path, tokenizer_config_json={"chat_template": "OLD"})
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("TOOLS")
    assert templates(convert(directory)) == {
        "tokenizer.chat_template.tool_use": "TOOLS",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template": "OLD",
    }


def test_templates_by_name_are_read_as_an_object_too(tmp_path):
    directory = pieces(tmp_path, tokenizer_config_json={"chat_template": {"default": "A", "rag": "B"}})
    assert templates(convert(directory))["tokenizer.chat_template.rag"] == "B"


def test_a_template_that_is_not_utf_8_is_named(tmp_path):
    directory = pieces(tmp_path)
    (directory / "chat_template.jinja").write_bytes("{# caf\u00e9 #}".encode("latin-1"))
    with pytest.raises(FormatError, match=r"chat_template\.jinja: not UTF-8"):
        convert(directory)
