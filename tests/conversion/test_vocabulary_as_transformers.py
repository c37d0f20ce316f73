"""What transformers reads of a tokenizer and llama.cpp's converter does not: docs/departures.md, line by line."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.core.errors import FormatError, QuantcliWarning
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.gguf.vocabulary import TokenType
from quantcli.runner.text.tokenizer import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from vocabulary_cases import KINDS, RULES
from vocabulary_cases_byte_level import BEGIN_END, ENDS, FAST, byte_level
from vocabulary_cases_ranks import TEKKEN
from vocabulary_cases_sentencepiece import NAMES, byte_fallback
from vocabulary_cases_unigram import XLM_NAMES
from vocabulary_cases_word_piece import WORDS, word_piece
from vocabulary_files import PRE_TOKENIZER, added, config, template, write_case

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


@pytest.mark.parametrize(
    "named",
    [{"bos_token": "<|begin|>"}, {"image_token": "<|begin|>"}, {"extra_special_tokens": {"image": "<|begin|>"}}],
)
def test_an_added_token_with_a_role_is_special(named, tmp_path):
    last = ENDS[-1]["id"]
    plain = [{**entry, "special": False} for entry in ENDS]
    files = {"config.json": config(last + 1), "tokenizer.json": byte_level(plain), "tokenizer_config.json": named}
    assert token(convert(write_case(tmp_path, files), size=last + 1), ENDS[0]["id"])[1] is TokenType.CONTROL


def test_special_tokens_map_names_tokens_where_the_configuration_is_older_than_its_decoder(tmp_path):
    first = ENDS[-1]["id"] + 1
    named = {"eos_token": "<|new|>", "pad_token": {"content": "<|end|>"}}
    files = {"config.json": config(300), "tokenizer.json": byte_level(ENDS), "special_tokens_map.json": named}
    configured = {"tokenizer_class": "GPT2Tokenizer"}
    old = convert(write_case(tmp_path / "old", files | {"tokenizer_config.json": configured}), size=300)
    assert token(old, first) == ("<|new|>", TokenType.CONTROL)
    assert ends(old) == {"eos": first}
    both = convert(write_case(tmp_path / "both", files | {"tokenizer_config.json": FAST}), size=300)
    assert ends(both) == {"bos": ENDS[0]["id"], "eos": first}  # over what tokenizer_config.json says
    assert ends(convert(tmp_path / "both", size=300, as_reference=True))["eos"] == ENDS[1]["id"]
    decoder = {str(ENDS[0]["id"]): {"content": "<|begin|>", "special": True}}
    newer = {**configured, "added_tokens_decoder": decoder}
    directory = write_case(tmp_path / "new", files | {"tokenizer_config.json": newer})
    assert token(convert(directory, size=300), first)[1] is TokenType.UNUSED


def test_without_a_tokenizer_model_texts_are_joined_in_the_order_of_the_merges(tmp_path):
    file = byte_fallback([added(0, "<unk>", special=True)])
    file["model"]["merges"] = [["a", "b"], ["▁", "a"]]
    directory = write_case(tmp_path, {"config.json": config(264), "tokenizer.json": file})
    tokenizer = load_tokenizer(convert(directory, size=264))
    expected = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(" ab").ids
    assert tokenizer.encode("ab", add_special=False) == expected  # a space is put in front
    flat = load_tokenizer(convert(directory, size=264, rules=VocabularyRules(flat_scores=True), as_reference=True))
    assert flat.encode("ab", add_special=False) != expected


def test_tokens_added_without_a_tokenizer_model_are_of_the_type_that_tokenizer_json_says(tmp_path):
    listed = [added(264, "<|turn|>", special=True), added(265, "word", special=False)]
    files = {"config.json": config(270), "tokenizer.json": byte_fallback(listed), "tokenizer_config.json": NAMES}
    metadata = convert(write_case(tmp_path, files), size=270)
    assert [token(metadata, id_)[1] for id_ in (264, 265)] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    reference = convert(tmp_path, size=270, as_reference=True)
    assert token(reference, 264)[1] is TokenType.USER_DEFINED
    assert len(reference["tokenizer.ggml.tokens"].value) == 266  # fewer than embeddings


@pytest.mark.parametrize("name", ["bytes", "pieces", "words", "tekken"])
def test_no_text_is_written_twice(name, tmp_path):
    # llama.cpp aborts on a vocabulary with two equal texts.
    twin = {**ENDS[0], "content": "[PAD290]"}
    piece = convert(pieces(tmp_path / "for-its-text"))["tokenizer.ggml.tokens"].value[500]
    words = word_piece({"lowercase": True}) | {"added_tokens": [added(40, "▁a", special=True)]}
    words["model"]["vocab"] |= {"▁a": 40}
    case, size = {
        "bytes": ({"tokenizer.json": byte_level([twin]), "config.json": config(300)}, 300),
        "pieces": ({"tokenizer.model": "PIECES", "added_tokens.json": {piece: 2049}, "config.json": config(2052)}, 2052),
        "words": ({"tokenizer.json": words, "config.json": config(50)}, 50),
        "tekken": ({"tekken.json": TEKKEN, "config.json": config(TEKKEN["config"]["default_vocab_size"])}, 300),
    }[name]
    directory = write_case(tmp_path / "model", case)
    if name in ("pieces", "words"):
        with pytest.warns(QuantcliWarning, match="becomes unused"):
            metadata = convert(directory, size=size)
    else:
        metadata = convert(directory, size=size)
    texts = metadata["tokenizer.ggml.tokens"].value
    assert len(set(texts)) == len(texts)
    if name == "pieces":
        assert token(metadata, 2049) == (piece, TokenType.USER_DEFINED)
        assert token(metadata, 500) == ("[PAD500]", TokenType.UNUSED)


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
    with pytest.warns(QuantcliWarning, match=r"no key for another end token, '<\|end_2\|>' \(2050\)"):
        assert ends(convert(directory)) == {"eos": 2, "eot": 2048, "eom": 2049}


@pytest.mark.parametrize("single, begins", [("A", False), ("A </s>", False), ("<s> A", True)])
@pytest.mark.parametrize("configured", [None, True, False])
def test_a_template_that_begins_with_the_text_adds_no_begin_token(single, begins, configured, tmp_path):
    file = {"added_tokens": ADDED, "post_processor": template(single, "A B")}
    flag = {} if configured is None else {"add_bos_token": configured}
    directory = pieces(tmp_path, tokenizer_json=file, tokenizer_config_json={**NAMES, **flag})
    expected = begins or bool(configured)
    assert convert(directory)["tokenizer.ggml.add_bos_token"].value is expected
    if not begins and configured is None:
        assert "tokenizer.ggml.add_bos_token" not in convert(directory, as_reference=True)


def test_a_token_of_a_unigram_may_be_named_by_an_object(tmp_path):
    named = {**XLM_NAMES, "unk_token": {"content": "<unk>", "__type": "AddedToken"}}
    directory = write_case(tmp_path, {**KINDS["unigram-json"], "tokenizer_config.json": named})
    assert token(convert(directory, size=10), 3) == ("<unk>", TokenType.UNKNOWN)


# --- Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(name, line_end, tmp_path):
    case = KINDS["words-file" if name == "vocab.txt" else "bytes-files"]
    size = case["config.json"]["vocab_size"]
    expected = convert(write_case(tmp_path, case), size=size)
    text = (tmp_path / name).read_text(encoding="utf-8").replace("\n", line_end)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert convert(tmp_path, size=size) == expected


@pytest.mark.parametrize("data", [b"\0", b"\0\0\1\0abc", b"\4\0\0\0abcd"])
def test_a_character_map_that_is_cut_short_is_refused(data, tmp_path):
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    file = KINDS["unigram-json"]["tokenizer.json"] | {"normalizer": normalizer}
    directory = write_case(tmp_path, {**KINDS["unigram-json"], "tokenizer.json": file})
    with pytest.raises(FormatError, match=r"tokenizer\.json: the precompiled character map"):
        convert(directory, size=10)


def test_what_tokenizers_gives_up_on_is_an_error_of_the_file(tmp_path, capfd):
    # It panics where one template follows another.
    processor = template("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]")
    file = word_piece({"lowercase": True}) | {"post_processor": {"type": "Sequence", "processors": [processor, processor]}}
    directory = write_case(tmp_path, {"config.json": config(len(WORDS)), "tokenizer.json": file})
    with pytest.raises(FormatError, match=r"tokenizer\.json: a tokenizer that cannot be used"):
        convert(directory, size=len(WORDS))
    assert "panicked" in capfd.readouterr().err


def test_what_tokenizers_says_is_one_line(tmp_path):
    case = {**KINDS["bytes-files"], "vocab.json": {"a": "b"}, "tokenizer_config.json": dict.fromkeys(BEGIN_END, "a")}
    with pytest.raises(FormatError, match=r"vocab\.json: not a vocabulary that can be read") as caught:
        convert(write_case(tmp_path, case), size=300)
    assert "\n" not in caught.value.message


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
