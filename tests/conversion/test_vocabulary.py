"""Vocabulary conversion against what llama.cpp's converter wrote."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from texts import random_texts

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.pre_tokenizers import pre_tokenizers
from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.core.errors import FormatError, ModelError, UnsupportedError, UsageError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.tokenizer_files.sentencepiece import read_sentencepiece_model
from quantcli.runner.text.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))

from vocabulary_cases import CASES, KINDS, MODELS, RULES  # noqa: E402
from vocabulary_cases_byte_level import ALPHABET, ENDS, FAST, byte_level  # noqa: E402
from vocabulary_cases_word_piece import WORDS  # noqa: E402
from vocabulary_digest import digest  # noqa: E402
from vocabulary_files import PRE_TOKENIZER, config, write_case  # noqa: E402


def convert(directory, **options):
    """The metadata for a directory that needs to hold no tensors."""
    configuration = json.loads((directory / "config.json").read_text())
    architecture = find_architecture(configuration)
    checkpoint = Checkpoint(directory, directory, configuration, {})
    options |= {"rules": architecture.vocabulary, "configuration": architecture.hyperparameters(configuration)}
    return vocabulary_metadata(checkpoint, configuration.get("vocab_size"), **options)


def described(metadata):
    return [
        [key, [kind.name for kind in (field.type, field.element) if kind is not None], digest(field.value)]
        for key, field in metadata.items()
    ]


@pytest.mark.parametrize("name", KINDS)
def test_kind_equals_reference_conversion(tmp_path, golden, name):
    expected = json.loads((golden / "vocabulary.json").read_text(encoding="utf-8"))[name]
    checkpoint = Checkpoint(write_case(tmp_path, KINDS[name]), tmp_path, KINDS[name]["config.json"], {})
    # The pre-tokenizer of a tekken.json is known by its name; no hash knows the others.
    given = None if "tekken.json" in KINDS[name] else PRE_TOKENIZER
    rules = VocabularyRules(**RULES[name])
    options = {"rules": rules, "pre_tokenizer": given}
    for as_reference in (True, False):
        options["as_reference"] = as_reference
        metadata = vocabulary_metadata(checkpoint, checkpoint.config["vocab_size"], **options)
        if name == "words-file" and not as_reference:
            # The reference leaves these out, and without them llama.cpp aborts where they are not those it assumes.
            texts = {"bos": "[CLS]", "unknown": "[UNK]", "seperator": "[SEP]", "mask": "[MASK]"}
            for role, text in texts.items():
                assert metadata.pop(f"tokenizer.ggml.{role}_token_id").value == WORDS.index(text)
        assert described(metadata) == expected


SCORED = {"fallback"}
"""Cases without a tokenizer.model, to which the reference gives scores that are all the same: its tokens are wrong."""

MORE = {
    "pieces-padded": {"tokenizer.ggml.unknown_token_id": 0},
    "pieces-no-configuration": {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3},
    "templates-null": {"tokenizer.chat_template": "unused"},
}
"""What transformers reads of some cases and the reference does not."""


@pytest.mark.parametrize("name", CASES)
def test_case_equals_reference_conversion(tmp_path, golden, name):
    expected = json.loads((golden / "vocabulary.json").read_text(encoding="utf-8"))[name]
    directory = write_case(tmp_path, CASES[name])
    assert described(convert(directory, pre_tokenizer=PRE_TOKENIZER, as_reference=True)) == expected
    metadata = convert(directory, pre_tokenizer=PRE_TOKENIZER)
    for key, value in MORE.get(name, {}).items():
        assert metadata.pop(key).value == value
    if name in SCORED:
        assert list(metadata.pop("tokenizer.ggml.scores").value)[-4:-2] == [0.0, -1.0]  # of the two merges
        expected = [entry for entry in expected if entry[0] != "tokenizer.ggml.scores"]
    assert described(metadata) == expected


def test_special_tokens_that_an_architecture_knows_by_their_texts(tmp_path):
    names = {"<|begin|>": "<|endoftext|>", "<|turn|>": "<|user|>"}
    tokens = [{**token, "content": names.get(token["content"], token["content"])} for token in ENDS]
    case = {
        "config.json": {**config(300), "architectures": ["Glm4ForCausalLM"], "model_type": "glm4"},
        "tokenizer.json": byte_level(tokens),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"},
    }
    metadata = convert(write_case(tmp_path, case), pre_tokenizer=PRE_TOKENIZER)
    end, turn = tokens[0]["id"], tokens[2]["id"]
    found = {role: metadata[f"tokenizer.ggml.{role}_token_id"].value for role in ("bos", "eos", "unknown", "eot")}
    assert found == {"bos": end, "eos": tokens[1]["id"], "unknown": end, "eot": turn}


def test_an_architecture_may_say_what_ends_a_text_and_take_the_space_in_front_from_the_pieces(tmp_path):
    case = CASES["pieces"] | {
        "config.json": {
            **config(2048),
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            "eos_token_id": 2,
        },
        "tokenizer_config.json": {"added_tokens_decoder": {"2000": {"content": "<|im_end|>", "special": True}}},
    }
    metadata = convert(write_case(tmp_path, case))
    assert metadata["tokenizer.ggml.eos_token_id"].value == 2000
    pieces = read_sentencepiece_model(tmp_path / "tokenizer.model")
    assert metadata["tokenizer.ggml.add_space_prefix"].value is pieces.add_dummy_prefix


@pytest.mark.parametrize("name", MODELS)
def test_model_equals_reference_conversion(shared, golden, name):
    directory = shared / "tokenizers" / name
    is_bert = "type_vocab_size" in MODELS[name]
    rules = VocabularyRules(token_type_count=True) if is_bert else find_architecture(MODELS[name]).vocabulary
    checkpoint = Checkpoint(directory, directory, MODELS[name], {})
    expected = json.loads((golden / "vocabulary_models.json").read_text("utf-8"))[name]
    metadata = vocabulary_metadata(checkpoint, MODELS[name]["vocab_size"], rules=rules, as_reference=True)
    assert described(metadata) == expected
    metadata = vocabulary_metadata(checkpoint, MODELS[name]["vocab_size"], rules=rules)
    tokens = metadata["tokenizer.ggml.tokens"].value
    if name == "deepseek-coder":
        # The reference writes U+FFFD for every token that is one byte of a character, and llama.cpp aborts on it.
        assert tokens[32000:32013] == list("õ÷ÁýÀÿøúþüùöû")
        tokens[32000:32013] = ["\ufffd"] * 13
    else:
        assert len(set(tokens)) == len(tokens)
    assert described(metadata) == expected


def test_whole_model_equals_reference_conversion(shared):
    checkpoint = open_checkpoint(shared / "golden" / "llama-8x256")
    metadata = vocabulary_metadata(checkpoint, checkpoint.config["vocab_size"])
    with open_gguf(shared / "golden" / "llama-8x256.bf16.gguf") as expected:
        keys = [key for key in expected.metadata if key.startswith("tokenizer.")]
        assert list(metadata) == keys
        for key in keys:
            assert (metadata[key].type, metadata[key].element) == (
                expected.metadata[key].type,
                expected.metadata[key].element,
            )
            np.testing.assert_array_equal(metadata[key].value, expected.metadata[key].value)


# --- Pre-tokenizers -------------------------------------------------------------------------------------------------------


def byte_level_case(tmp_path, **more):
    files = {"config.json": config(300), "tokenizer.json": byte_level(ENDS, **more), "tokenizer_config.json": FAST}
    return write_case(tmp_path, files)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True}, False, "gpt-2"),
        (
            {"type": "Sequence", "pretokenizers": [split(LLAMA_3), {"type": "ByteLevel", "use_regex": False}]},
            True,
            "llama-bpe",
        ),
        ({"type": "Sequence", "pretokenizers": [split(LLAMA_3), {"type": "ByteLevel", "use_regex": False}]}, False, "dbrx"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]},
            False,
            "starcoder",
        ),
    ],
)
def test_unknown_vocabulary_is_recognised_by_its_patterns(tmp_path, pre_tokenizer, ignore_merges, name):
    steps = {"add_prefix_space": False, "trim_offsets": True}
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step["type"] == "ByteLevel":
            step.update({"use_regex": True} | steps | step)
    directory = byte_level_case(tmp_path, pre_tokenizer=pre_tokenizer, model={"ignore_merges": ignore_merges})
    assert convert(directory)["tokenizer.ggml.pre"].value == name


def test_unknown_patterns_are_named_with_the_nearest_known(tmp_path):
    steps = [split(LLAMA_3.replace("{1,3}", "{1,4}")), {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    steps[1]["trim_offsets"] = True
    directory = byte_level_case(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json: .*\\p\{N\}\{1,4\}") as caught:
        convert(directory)
    assert "'llama-bpe'" in caught.value.hint
    assert "--pre-tokenizer" in caught.value.hint
    assert convert(directory, pre_tokenizer="llama-bpe")["tokenizer.ggml.pre"].value == "llama-bpe"


def test_begin_token_may_come_from_a_flag(shared, tmp_path):
    original = shared / "tokenizers" / "llama-3.2"
    tokenizer = json.loads((original / "tokenizer.json").read_text(encoding="utf-8")) | {"post_processor": None}
    configuration = json.loads((original / "tokenizer_config.json").read_text(encoding="utf-8")) | {"add_bos_token": True}
    files = {"config.json": config(128256), "tokenizer.json": tokenizer, "tokenizer_config.json": configuration}
    assert convert(write_case(tmp_path, files))["tokenizer.ggml.pre"].value == "llama-bpe"
    assert convert(write_case(tmp_path, files))["tokenizer.ggml.add_bos_token"].value is True


def test_no_such_pre_tokenizer(tmp_path):
    with pytest.raises(UsageError, match="'llama-9'") as caught:
        convert(byte_level_case(tmp_path), pre_tokenizer="llama-9")
    assert "llama-bpe" in caught.value.hint


def test_no_such_pre_tokenizer_where_none_is_needed(tmp_path):
    with pytest.raises(UsageError, match="'llama-9'"):
        convert(write_case(tmp_path, CASES["pieces"]), pre_tokenizer="llama-9")


def test_every_pattern_can_be_compiled():
    from tokenizers import Regex

    patterns = [pattern for row in pre_tokenizers().values() for pattern in row.patterns or ()]
    assert len([Regex(pattern) for pattern in patterns]) > 100


# --- What can be wrong ----------------------------------------------------------------------------------------------------


def test_no_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer; looked for tokenizer\.model and tokenizer\.json"):
        convert(write_case(tmp_path, {"config.json": config(300)}))


@pytest.mark.parametrize(
    "damage", [b"", b"not a model", b"\x0a\xff\x01\x00", b"\x0a\x02\x0a\x05", b"\x0b\x00", b"\x0a\x03\x0a\x01\xff"]
)
def test_damaged_sentencepiece_model(tmp_path, damage):
    directory = write_case(tmp_path, {"config.json": config(300)})
    (directory / "tokenizer.model").write_bytes(damage)
    with pytest.raises(FormatError, match=r"tokenizer\.model: not a SentencePiece model"):
        convert(directory)


def test_tokenizer_that_tokenizers_cannot_read(tmp_path):
    directory = byte_level_case(tmp_path, model={"vocab": {"a": "not a number"}})
    with pytest.raises(FormatError, match=r"tokenizer\.json: not a tokenizer that can be read"):
        convert(directory)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"five": {"content": "<x>"}}}),
        ("tokenizer_config.json", {"chat_template": ["text"]}),
        ("tokenizer.json", {"added_tokens": ["<s>"], "model": {}}),
        ("added_tokens.json", {"<x>": "five"}),
    ],
)
def test_files_of_the_wrong_shape(tmp_path, name, contents):
    directory = write_case(tmp_path, CASES["pieces-objects"] | {name: contents})
    with pytest.raises(FormatError, match="does not have the structure of a tokenizer file"):
        convert(directory)


def test_algorithm_that_is_not_converted(tmp_path):
    directory = byte_level_case(tmp_path, model={"type": "WordLevel"})
    with pytest.raises(UnsupportedError, match="holds WordLevel, expected BPE, WordPiece or Unigram"):
        convert(directory)


def test_more_tokens_than_embeddings(tmp_path):
    directory = byte_level_case(tmp_path)
    (directory / "config.json").write_text(json.dumps(config(len(ALPHABET))))
    with pytest.raises(ModelError, match=r"'<\|turn\|>' has the id 266, but the model has only 256 embeddings"):
        convert(directory)


def test_a_negative_id_stands_for_no_special_token(tmp_path):
    files = CASES["pieces"] | {"config.json": config(2048, bos_token_id=-1)}
    assert "tokenizer.ggml.bos_token_id" not in convert(write_case(tmp_path, files))


def test_byte_level_without_merges(tmp_path):
    with pytest.raises(ModelError, match=r"without merges; looked in tokenizer\.json and merges\.txt"):
        convert(byte_level_case(tmp_path, model={"merges": []}))


# --- BPE with byte fallback, without tokenizer.model ----------------------------------------------------------------------


def test_scores_from_merges_tokenize_as_the_scores_they_replace(shared, tmp_path):
    original = shared / "tokenizers" / "llama-2"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(original / name, tmp_path)
    scored = load_tokenizer(vocabulary_metadata(Checkpoint(original, original, {}, {}), 32000))
    derived = load_tokenizer(vocabulary_metadata(Checkpoint(tmp_path, tmp_path, {}, {}), 32000))
    for text in random_texts(4, 300):
        assert derived.encode(text) == scored.encode(text), text


def test_an_architecture_says_what_is_added_unless_the_checkpoint_does(tmp_path):
    case = {
        "config.json": config(300),
        "tokenizer.json": byte_level(ENDS),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": False},
    }
    checkpoint = Checkpoint(write_case(tmp_path, case), tmp_path, case["config.json"], {})
    rules = VocabularyRules(add={"bos": True, "eos": True, "sep": True})
    metadata = vocabulary_metadata(checkpoint, 300, rules=rules, pre_tokenizer=PRE_TOKENIZER)
    added = {f"tokenizer.ggml.add_{role}_token": metadata[f"tokenizer.ggml.add_{role}_token"].value for role in rules.add}
    assert list(metadata)[:3] == list(added)
    assert list(added.values()) == [False, False, True]  # tokenizer.json adds nothing, and knows no separator
