"""Convert random vocabularies with the reference converter and with quantcli, and tell where they differ.

    python tests/golden/fuzz_vocabularies.py PATH_OF_LLAMA_CPP [--count N] [--seed N] [--verbose] [KIND ...]

What the path is, and what must be installed, is said in `make_vocabulary_goldens.py`. Special tokens, flags, templates and
added tokens are said at random in the files that can say them. With `as_reference` the keys `tokenizer.*` must be the same,
in order, types and values; or both must refuse. Exit status 1 where they disagree.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from vocabulary_cases_byte_level import BYTE_LEVEL_SIZE, byte_level  # noqa: E402
from vocabulary_cases_sentencepiece import byte_fallback  # noqa: E402
from vocabulary_cases_unigram import XLM, unigram  # noqa: E402
from vocabulary_cases_word_piece import WORDS, word_piece  # noqa: E402
from vocabulary_digest import digest  # noqa: E402
from vocabulary_files import PIECES, PRE_TOKENIZER, added, bert_config, config, template, write_case  # noqa: E402

from quantcli.architectures.loader import find_architecture  # noqa: E402
from quantcli.conversion.vocabulary import vocabulary_metadata  # noqa: E402
from quantcli.core.errors import QuantcliError  # noqa: E402
from quantcli.formats.checkpoint.checkpoint import Checkpoint  # noqa: E402

Case = dict[str, Any]
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def processors(texts: list[str], random: Random) -> Any:
    """What a post-processor may be, with these special tokens."""
    one, two = random.choice(texts), random.choice(texts)
    pairs = [f"{one} A", f"A {two}", f"{one} A {two}", "A", f"{one} {two} A", f"A {one} {two}"]
    doubles = [f"{one} A {two} B {two}", f"{one} A {one} B", "A B", f"A {two} B", f"A {one} {two} B"]
    doubles.append(f"{one} A {two} {two} B {two}")
    made = template(random.choice(pairs), random.choice(doubles))
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bert = {"type": "BertProcessing", "sep": [two, 2], "cls": [one, 1]}
    roberta = bert | {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}
    steps = [None, bytes_, made, made, roberta, bert]
    several = {"type": "Sequence", "processors": [step for step in random.sample(steps[:3] + steps[4:], 2) if step]}
    return random.choice([*steps, several])


def normalizers(random: Random) -> Any:
    """What a normalizer may be."""
    steps = [
        {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "NFC"}, {"type": "NFKC"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": random.random() < 0.5,
         "strip_accents": random.choice([None, True, False])},
        {"type": "Prepend", "prepend": "▁"},
    ]  # fmt: skip
    chosen = random.choices(steps, k=random.randrange(4))
    if len(chosen) > 1:
        return {"type": "Sequence", "normalizers": chosen}
    return chosen[0] if chosen else None


def configured(texts: list[str], decoder: Case, random: Random) -> Case:
    """A tokenizer_config.json."""
    found: Case = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in ROLES:
        text = random.choice(texts)
        entry = random.choice([None, text, text, {"content": text, "__type": "AddedToken", "special": True}])
        if random.random() < 0.5:
            found[f"{role}_token"] = entry
        if random.random() < 0.25:
            found[f"add_{role}_token"] = random.choice([True, False, None])
    if random.random() < 0.5:
        found["added_tokens_decoder"] = decoder
    templates = ["T", None, [{"name": "default", "template": "D"}, {"name": "tool-use", "template": "U"}], [], "é{{ x }}"]
    if random.random() < 0.4:
        found["chat_template"] = random.choice(templates)
    for key, values in {
        "extra_special_tokens": [[], texts[:1], {"image_token": texts[0]}, None],
        "additional_special_tokens": [[], texts[-2:], None],
        "boi_token": [texts[0], texts[-1]],
        "add_prefix_space": [True, False, None],
        "clean_up_tokenization_spaces": [True, False],
        "legacy": [True, False],
        "model_max_length": [100, 1e30],
    }.items():
        if random.random() < 0.15:
            found[key] = random.choice(values)
    return found


def ids(configuration: Case, size: int, random: Random) -> Case:
    """The configuration with ids of special tokens."""
    for role in ROLES:
        if random.random() < 0.3:
            configuration[f"{role}_token_id"] = random.choice([0, 1, 2, size - 1, size, size + 9, None])
    if random.random() < 0.15:
        configuration["text_config"] = {"eos_token_id": 2, "bos_token_id": random.choice([1, None])}
    return configuration


def sided(case: Case, texts: list[str], size: int, random: Random) -> Case:
    """The case with side files."""
    more: Case = {
        "generation_config.json": {"eos_token_id": random.choice([2, [2, 1], None, []]), "pad_token_id": 0},
        "special_tokens_map.json": {f"{role}_token": random.choice(texts) for role in random.sample(ROLES, 2)},
        "chat_template.jinja": "J",
        "chat_template.json": {"chat_template": "K"},
        "additional_chat_templates/tool_use.jinja": "L",
    }
    return case | {name: value for name, value in more.items() if random.random() < 0.2}


def tokens(first: int, random: Random) -> list[Case]:
    """Tokens that are added from an id on."""
    texts = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "sec5A", "▁word", "  ", "<unused1>", "[PAD]", "[é]"]
    chosen = random.sample(texts, random.randrange(2, 6))
    flags = {"normalized": random.random() < 0.3}
    return [added(first + place, text, special=random.random() < 0.6, **flags) for place, text in enumerate(chosen)]


def decoded(listed: list[Case], random: Random) -> Case:
    """Some of those as tokenizer_config.json has them."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in listed
        if random.random() < 0.9
    }


def of_bytes(random: Random) -> Case:
    listed = tokens(BYTE_LEVEL_SIZE, random)
    texts = [token["content"] for token in listed]
    size = BYTE_LEVEL_SIZE + len(listed) + random.choice([0, 0, 3])
    file = byte_level(listed, post_processor=processors(texts, random), normalizer=normalizers(random))
    case = {"config.json": ids(config(size), size, random), "tokenizer.json": file}
    if random.random() < 0.9:
        case["tokenizer_config.json"] = configured(texts, decoded(listed, random), random)
    return sided(case, texts, size, random)


def of_pieces(random: Random) -> Case:
    listed = tokens(2048, random)
    texts = [*(token["content"] for token in listed), "<s>", "</s>", "<unk>"]
    size = 2048 + random.choice([0, 1, len(listed), len(listed) + 3])
    case: Case = {"config.json": ids(config(size), size, random), "tokenizer.model": PIECES}
    old = [added(0, "<unk>", special=True), added(1, "<s>", special=True), added(2, "</s>", special=True)]
    if random.random() < 0.6:
        some = [token for token in [*old, *listed] if random.random() < 0.8]
        case["tokenizer.json"] = {"added_tokens": some, "post_processor": processors(texts, random)}
    if random.random() < 0.8:
        case["tokenizer_config.json"] = configured(texts, decoded([*old, *listed], random), random)
    if random.random() < 0.3:
        case["added_tokens.json"] = {token["content"]: token["id"] for token in listed if random.random() < 0.8}
    return sided(case, texts, size, random)


def of_fallback(random: Random) -> Case:
    listed = [added(0, "<unk>", special=True), added(1, "<s>", special=True), added(2, "</s>", special=True)]
    listed += [token for token in tokens(264, random) if token["content"] not in ("<s>", "</s>")]
    for place, token in enumerate(listed[3:]):
        token["id"] = 264 + place
    texts = [token["content"] for token in listed]
    size = 264 + len(listed) - 3 + random.choice([0, 4])
    file = byte_fallback(listed) | {"post_processor": processors(texts, random)}
    case: Case = {"config.json": ids(config(size), size, random), "tokenizer.json": file}
    if random.random() < 0.9:
        case["tokenizer_config.json"] = configured(texts, decoded(listed, random), random)
    return sided(case, texts, size, random)


def of_words(random: Random) -> Case:
    size = len(WORDS) + random.choice([0, 2])
    lower = {"lowercase": random.random() < 0.5, "strip_accents": random.choice([None, True, False])}
    file = word_piece(lower)
    texts = WORDS[:5]
    if random.random() < 0.5:
        file["post_processor"] = processors(texts, random)
    listed = [added(place, WORDS[place], special=True) for place in range(5)]
    case = {"config.json": ids(bert_config(size), size, random), "tokenizer.json": file}
    case["tokenizer_config.json"] = configured(texts, decoded(listed, random), random) | {"unk_token": "[UNK]"}
    return sided(case, texts, size, random)


def of_unigram(random: Random) -> Case:
    file = unigram()
    listed = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in file["added_tokens"]}
    texts = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if random.random() < 0.5:
        file["post_processor"] = processors(texts, random)
    size = 8 + random.choice([0, 2])
    case = {"config.json": ids({**XLM, "vocab_size": size}, size, random), "tokenizer.json": file}
    case["tokenizer_config.json"] = configured(texts, listed, random) | {"tokenizer_class": "XLMRobertaTokenizer"}
    return sided(case, texts, size, random)


KINDS: dict[str, Callable[[Random], Case]] = {
    "bytes": of_bytes, "pieces": of_pieces, "fallback": of_fallback, "words": of_words, "unigram": of_unigram,
}  # fmt: skip


def ours(directory: Path) -> list[Any]:
    """What quantcli makes of a directory."""
    configuration = json.loads((directory / "config.json").read_text())
    architecture = find_architecture(configuration)
    metadata = vocabulary_metadata(
        Checkpoint(directory, directory, configuration, {}),
        configuration["vocab_size"],
        rules=architecture.vocabulary,
        configuration=architecture.hyperparameters(configuration),
        pre_tokenizer=PRE_TOKENIZER,
        as_reference=True,
    )
    return [
        [key, [kind.name for kind in (field.type, field.element) if kind is not None], digest(field.value)]
        for key, field in metadata.items()
    ]


def outcome(convert: Callable[[Path], list[Any]], directory: Path) -> tuple[list[Any] | None, str]:
    """What a converter writes, or why it does not."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return convert(directory), ""
    except QuantcliError as error:
        return None, error.message
    except (Exception, SystemExit) as error:
        return None, f"{type(error).__name__}: {str(error)[:300]}"


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    sys.path[:0] = [str(given.reference), str(given.reference / "gguf-py")]
    from conversion.base import TextModel
    from make_vocabulary_goldens import convert

    TextModel.get_vocab_base_pre = lambda self, tokenizer: PRE_TOKENIZER
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for kind in given.kinds:
        for number in range(given.seed, given.seed + given.count):
            case = KINDS[kind](Random(f"{kind} {number}"))
            with tempfile.TemporaryDirectory() as place:
                directory = write_case(Path(place) / "model", case)
                theirs, why = outcome(convert, directory)
                mine, reason = outcome(ours, directory)
            same = mine == theirs
            result = "same" if mine is not None and same else "both refuse" if same else "different"
            if (mine is None) != (theirs is None):
                result = "ours refuses" if mine is None else "theirs refuses"
            counts[f"{kind}: {result}"] += 1
            if result in ("different", "ours refuses") or (given.verbose and not (same and mine)):
                print(f"--- {kind} {number}: {result}; ours: {reason or 'writes'}; theirs: {why or 'writes'}", flush=True)
                for entry in [*(entry for entry in mine or [] if entry not in (theirs or []))][:6]:
                    print(f"    ours only   {str(entry)[:300]}")
                for entry in [*(entry for entry in theirs or [] if entry not in (mine or []))][:6]:
                    print(f"    theirs only {str(entry)[:300]}")
                if mine and theirs and sorted(map(str, mine)) == sorted(map(str, theirs)):
                    print(f"    order: {[entry[0] for entry in mine]} / {[entry[0] for entry in theirs]}")
    print(dict(sorted(counts.items())))
    sys.exit(any(name.endswith(("different", "ours refuses")) for name in counts))


if __name__ == "__main__":
    main()
