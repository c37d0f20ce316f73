"""Vocabulary conversion where no golden can say what is right: files read another way, ids from elsewhere, damage."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path

import pytest

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.core.errors import FormatError, ModelError, QuantcliWarning, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.gguf.vocabulary import BYTES

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from vocabulary_cases import CASES, KINDS, RULES
from vocabulary_cases_byte_level import ALPHABET, BYTE_LEVEL_SIZE, ENDS, FAST, MERGES, byte_level
from vocabulary_cases_ranks import RANKS, TIKTOKEN
from vocabulary_cases_word_piece import WORDS, word_piece
from vocabulary_files import UNIGRAM_SIZE, added, config, write_case

PRE = "gpt-2"


def convert(directory, size=None, **options):
    path = directory / "config.json"
    configuration = json.loads(path.read_text()) if path.exists() else {}
    return vocabulary_metadata(Checkpoint(directory, directory, configuration, {}), size, **options)


def kind(tmp_path, name, **more):
    files = {file: contents for file, contents in KINDS[name].items() if more.get(file, contents) is not None}
    return write_case(tmp_path, files | {file: contents for file, contents in more.items() if contents is not None})


def ids(metadata):
    return {
        key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): field.value
        for key, field in metadata.items()
        if key.endswith("_token_id")
    }


# --- Files that are read another way --------------------------------------------------------------------------------------


def test_vocabulary_and_merges_without_tokenizer_json_are_recognised(shared, tmp_path):
    original = shared / "tokenizers" / "gpt2"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(original / name, tmp_path)
    expected, metadata = convert(original), convert(tmp_path)
    # The flags of begin and end tokens, and the unknown token, follow from tokenizer.json.
    known = {key: field for key, field in expected.items() if "add_" not in key and "unknown" not in key}
    assert metadata == known
    assert metadata["tokenizer.ggml.pre"].value == "gpt-2"


def test_split_is_found_by_the_hash_where_there_are_no_patterns(shared, tmp_path):
    model = json.loads((shared / "tokenizers" / "qwen2.5" / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    files = {"vocab.json": model["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(merges)}
    assert convert(write_case(tmp_path, files))["tokenizer.ggml.pre"].value == "qwen2"


@pytest.mark.parametrize(
    ("normalizer", "name"),
    [
        (None, "gpt-2"),
        ({"type": "Sequence", "normalizers": []}, "gpt-2"),
        ({"type": "NFC"}, "olmo"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "olmo"),
        ({"type": "NFKC"}, "gpt-2"),
    ],
)
def test_of_names_for_one_split_that_with_the_same_normalizer_is_chosen(tmp_path, normalizer, name):
    directory = write_case(tmp_path, {"tokenizer.json": byte_level(ENDS, normalizer=normalizer)})
    assert convert(directory)["tokenizer.ggml.pre"].value == name


def test_merges_are_found_again_from_ranks(shared, tmp_path):
    model = json.loads((shared / "tokenizers" / "qwen2.5" / "tokenizer.json").read_text("utf-8"))["model"]
    lines = (
        f"{base64.b64encode(bytes(BYTES[char] for char in text)).decode()} {rank}\n"
        for text, rank in sorted(model["vocab"].items(), key=lambda entry: entry[1])
    )
    metadata = convert(write_case(tmp_path, {"qwen.tiktoken": "".join(lines)}))
    assert metadata["tokenizer.ggml.pre"].value == "qwen2"
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    assert metadata["tokenizer.ggml.merges"].value == merges
    tokens = metadata["tokenizer.ggml.tokens"].value
    assert tokens[: len(model["vocab"])] == sorted(model["vocab"], key=model["vocab"].get)
    assert tokens[len(model["vocab"]) :][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert ids(metadata) == {"bos": 151643, "eos": 151643, "unknown": 151643}


def test_ranks_may_be_called_tokenizer_model_and_have_their_special_tokens_configured(tmp_path):
    configured = {str(len(RANKS) + 2): {"content": "<|user|>", "special": True}}
    files = {"tokenizer.model": TIKTOKEN, "tokenizer_config.json": {"added_tokens_decoder": configured}}
    metadata = convert(write_case(tmp_path, files), pre_tokenizer=PRE)
    assert metadata["tokenizer.ggml.model"].value == "gpt2"
    assert metadata["tokenizer.ggml.tokens"].value[-3:] == ["[PAD268]", "[PAD269]", "<|user|>"]
    assert metadata["tokenizer.ggml.token_type"].value[-3:] == [5, 5, 3]


def test_ranks_without_a_known_hash_need_a_name(tmp_path):
    with pytest.raises(UnsupportedError, match="pre-tokenizer is unknown; patterns found: none") as caught:
        convert(write_case(tmp_path, {"small.tiktoken": TIKTOKEN}))
    assert caught.value.hint == "choose with --pre-tokenizer NAME"


def test_words_as_bert_numbers_them_need_no_ids(tmp_path):
    words = ["[PAD]", *(f"w{index}" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    metadata = convert(write_case(tmp_path, {"vocab.txt": "\n".join(words)}))
    assert ids(metadata) == {}
    assert metadata["tokenizer.ggml.tokens"].value[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_added_tokens_json_counts_beside_vocab_json(tmp_path):
    files = {name: KINDS["bytes-files"][name] for name in ("vocab.json", "merges.txt")}
    files["added_tokens.json"] = {"<b>": BYTE_LEVEL_SIZE + 1, "<a>": BYTE_LEVEL_SIZE}
    tokens = convert(write_case(tmp_path, files), pre_tokenizer=PRE)["tokenizer.ggml.tokens"].value
    assert tokens[-2:] == ["<a>", "<b>"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": BYTE_LEVEL_SIZE + 7}))
    with pytest.raises(FormatError, match=rf"added_tokens\.json: '<a>' has the id {BYTE_LEVEL_SIZE + 7}, expected"):
        convert(tmp_path, pre_tokenizer=PRE)


@pytest.mark.parametrize(("name", "model"), [("words", "bert"), ("unigram-json", "t5")])
def test_old_tokenizer_json_does_not_name_its_model(tmp_path, name, model):
    tokenizer = KINDS[name]["tokenizer.json"]
    unnamed = {key: value for key, value in tokenizer["model"].items() if key != "type"}
    directory = kind(tmp_path, name, **{"tokenizer.json": {**tokenizer, "model": unnamed}})
    assert convert(directory)["tokenizer.ggml.model"].value == model


def test_what_stands_beside_a_tokenizer_json_does_not_count(tmp_path):
    beside = {"tekken.json": {}, "vocab.json": {}, "merges.txt": "", "vocab.txt": ""}
    rules = VocabularyRules(copy_space_prefix=True)
    metadata = convert(write_case(tmp_path, CASES["bytes"] | beside), pre_tokenizer=PRE, rules=rules)
    assert metadata["tokenizer.ggml.add_space_prefix"].value is False
    assert metadata["tokenizer.ggml.model"].value == "gpt2"


def test_unigram_in_tokenizer_json_needs_no_rule(tmp_path):
    assert convert(kind(tmp_path, "unigram-json"))["tokenizer.ggml.model"].value == "t5"


def test_token_types_come_from_the_completed_configuration(tmp_path):
    rules = VocabularyRules(token_type_count=True)
    for configuration, count in (({}, 1), ({"type_vocab_size": 4}, 4)):
        metadata = convert(kind(tmp_path, "words"), rules=rules, configuration=configuration)
        assert metadata["tokenizer.ggml.token_type_count"].value == count


# --- Ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "found"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}, {"bos": 5, "eos": 6, "padding": 7}),
        ({"eos_token_id": [6, 7, 8]}, {"eos": 6, "eot": 7, "eom": 8}),
        ({"eos_token_id": [6]}, {"eos": 6}),
        ({"eos_token_id": [], "pad_token_id": -1, "bos_token_id": "5"}, {}),
        ({"eos_token_id": True}, {}),
    ],
)
def test_ids_that_only_the_generation_configuration_names(tmp_path, generation, found):
    directory = write_case(tmp_path, {"tokenizer.model": "PIECES", "generation_config.json": generation})
    assert ids(convert(directory)) == found


def test_the_generation_configuration_comes_last(tmp_path):
    files = {"config.json": config(2048, eos_token_id=2), "tokenizer.model": "PIECES"}
    files["generation_config.json"] = {"eos_token_id": [3, 4], "bos_token_id": 1}
    assert ids(convert(write_case(tmp_path, files))) == {"eos": 2, "bos": 1, "eot": 3, "eom": 4}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.warns(QuantcliWarning, match=r"generation_config\.json: .* it is ignored"):
        assert ids(convert(tmp_path)) == {"eos": 2}


def test_tokens_that_the_post_processor_adds_have_ids_where_nothing_names_them(tmp_path):
    begin, end = ENDS[0], ENDS[1]
    processor = {"sep": [end["content"], end["id"]], "cls": [begin["content"], begin["id"]]}
    processor |= {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}
    directory = write_case(tmp_path, {"tokenizer.json": byte_level(ENDS, post_processor=processor)})
    assert ids(convert(directory, pre_tokenizer=PRE)) == {"bos": begin["id"], "eos": end["id"]}


def test_texts_that_would_be_equal_keep_their_spelling(tmp_path):
    tokens = [added(BYTE_LEVEL_SIZE + index, text, special=False) for index, text in enumerate("éè")]
    files = {"tokenizer.json": byte_level(tokens, model={"vocab": vocabulary_without("éè")}), "tokenizer_config.json": FAST}
    texts = convert(write_case(tmp_path, files), pre_tokenizer=PRE)["tokenizer.ggml.tokens"].value
    assert {"é", "è"} <= set(texts)
    assert len(set(texts)) == len(texts)


def vocabulary_without(characters):
    texts = [text for text in ALPHABET if text not in characters] + [merge.replace(" ", "") for merge in MERGES]
    return {text: id_ for id_, text in enumerate(texts)}


# --- What can be wrong ----------------------------------------------------------------------------------------------------


def test_no_tokenizer_names_what_would_do(tmp_path):
    rules = VocabularyRules(usual_tokenizer="tokenizer.json of EleutherAI/gpt-neox-20b")
    with pytest.raises(ModelError, match=r"looked for tokenizer\.model and .*, vocab\.txt$") as caught:
        convert(tmp_path, rules=rules)
    assert "put the tokenizer.json of EleutherAI/gpt-neox-20b there" in caught.value.hint


INCOMPLETE = word_piece({"lowercase": True, "strip_accents": None}, model={"type": "WordPiece"})
UNIGRAM = {"type": "Unigram"}


@pytest.mark.parametrize("name", ["unigram", "unigram-json", "words", "ranks", "tekken"])
def test_more_tokens_than_embeddings(tmp_path, name):
    with pytest.raises(ModelError, match="the model has only 5 embeddings"):
        convert(kind(tmp_path, name), 5, rules=VocabularyRules(**RULES[name]), pre_tokenizer=PRE)


@pytest.mark.parametrize(
    ("name", "files", "error", "said"),
    [
        ("words", {"tokenizer.json": "{"}, FormatError, r"tokenizer\.json: the file is not valid JSON"),
        ("words", {"tokenizer.json": INCOMPLETE}, FormatError, "not a tokenizer that can be read"),
        ("words-file", {"vocab.txt": "a\nb\n"}, FormatError, r"vocab\.txt: not a .* \(it has no \[UNK\]\)"),
        ("words-file", {"vocab.txt": "a\nb\n", "tokenizer_config.json": "[]"}, FormatError, "expected an object"),
        ("unigram", {"tokenizer.model": "damaged"}, FormatError, "not a SentencePiece model"),
        ("ranks", {"qwen.tiktoken": "YQ== 0\n"}, FormatError, r"qwen\.tiktoken: the byte 0 is not a token"),
        ("ranks", {"qwen.tiktoken": TIKTOKEN + "YQ==\n"}, FormatError, "line 269 is not a token in base64 and its rank"),
        ("ranks", {"qwen.tiktoken": TIKTOKEN + "*** 300\n"}, FormatError, "line 269 is not"),
        ("ranks", {"qwen.tiktoken": TIKTOKEN + "YWJj 3\n"}, FormatError, "two tokens have the same rank"),
        ("ranks", {"qwen.tiktoken": TIKTOKEN + "YWJj" * 1366 + " 300\n"}, FormatError, "a token has 4098 bytes"),
        ("ranks", {"qwen.tiktoken": TIKTOKEN + "YWJj 99999999\n"}, ModelError, "has the id 100000207, expected below"),
        ("tekken", {"tekken.json": {}}, FormatError, r"the structure of a tokenizer file \(KeyError: 'config'\)"),
        ("bytes-files", {"vocab.json": {"a": 0, "b": 0}, "merges.txt": "#"}, ModelError, "have one id, 0"),
        ("bytes-files", {"vocab.json": "[1, 2]"}, FormatError, r"vocab\.json: the file is a JSON array"),
        ("bytes-files", {"merges.txt": "x y\n"}, FormatError, r"vocab\.json: not a vocabulary that can be read"),
        ("unigram-json", {"tokenizer.json": {"model": UNIGRAM | {"vocab": {"a": 1}}}}, FormatError, "structure"),
        ("unigram-json", {"tokenizer.json": {"model": UNIGRAM | {"vocab": [["a", 1e300]]}}}, FormatError, "finite"),
        ("unigram-json", {"tokenizer.json": {"model": UNIGRAM | {"vocab": [[5, -1]]}}}, FormatError, "structure"),
    ],
)
def test_damage(tmp_path, name, files, error, said):
    rules = VocabularyRules(**RULES[name])
    # What stands beside the damaged file to make the reference read it would be read instead.
    without = {"tokenizer_config.json": None} if name == "ranks" else {}
    with pytest.raises(error, match=said):
        convert(kind(tmp_path, name, **{**without, **files}), rules=rules, pre_tokenizer=PRE)


def test_tokenizer_that_cannot_encode(tmp_path):
    incomplete = KINDS["words"]["tokenizer.json"]
    incomplete = incomplete | {"model": incomplete["model"] | {"vocab": {"a": 0}}, "added_tokens": []}
    incomplete["post_processor"] = None
    directory = kind(tmp_path, "words", **{"tokenizer.json": incomplete, "tokenizer_config.json": None})
    with pytest.raises(FormatError, match=r"a tokenizer that cannot encode \(.*\[UNK\]"):
        convert(directory)


def test_texts_that_are_not_utf8(tmp_path):
    directory = kind(tmp_path, "bytes-files")
    (directory / "merges.txt").write_bytes(b"a b\n\xff")
    with pytest.raises(FormatError, match=r"merges\.txt: not UTF-8 .* \(at byte 4\)"):
        convert(directory)


def test_ids_that_no_vocabulary_reaches(tmp_path):
    vocab = {text: id_ for id_, text in enumerate(ALPHABET)} | {"zz": 4_000_000_000}
    directory = write_case(tmp_path, {"tokenizer.json": byte_level([], model={"vocab": vocab, "merges": ["z z"]})})
    with pytest.raises(ModelError, match="'zz' has the id 4000000000, expected below"):
        convert(directory, pre_tokenizer=PRE)


def test_a_token_beyond_the_pieces_is_refused(tmp_path):
    with pytest.raises(ModelError, match=rf"{UNIGRAM_SIZE} pieces, but the model has only 10 embeddings"):
        convert(kind(tmp_path, "unigram"), 10, rules=VocabularyRules(unigram=True))


def test_small_word_lists_keep_their_ids(tmp_path):
    metadata = convert(write_case(tmp_path, {"vocab.txt": "\n".join(WORDS) + "\n"}))
    assert ids(metadata) == {"bos": 2, "unknown": 1, "seperator": 3, "padding": 0, "mask": 4}


def test_holes_become_unused_tokens(tmp_path):
    vocab = {text: id_ for id_, text in enumerate(ALPHABET)} | {"zz": len(ALPHABET) + 2}
    directory = write_case(tmp_path, {"tokenizer.json": byte_level([], model={"vocab": vocab, "merges": ["z z"]})})
    metadata = convert(directory, pre_tokenizer=PRE)
    assert metadata["tokenizer.ggml.tokens"].value[-3:] == ["[PAD256]", "[PAD257]", "zz"]
    assert metadata["tokenizer.ggml.token_type"].value[-3:] == [5, 5, 1]
