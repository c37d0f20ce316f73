"""Tokenizers of checkpoints that have no tokenizer.json: vocab.json with merges.txt, or BERT's vocab.txt.

The defaults of the classes of transformers are filled in: GPT-2's pre-tokenizer, BERT's names of special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import TemplateProcessing

from quantcli.conversion.vocabulary.files import ADDED_TOKENS, MERGES, VOCABULARY, WORDS, TokenizerFiles
from quantcli.conversion.vocabulary.tokens import token_text
from quantcli.core.errors import FormatError, one_line

_BERT_TOKENS: Final = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def build_tokenizer(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer of vocab.json and merges.txt, or of vocab.txt.

    Raises:
        FormatError: if a file is damaged.
    """
    vocabulary = files.checkpoint.file(VOCABULARY)
    if vocabulary is not None and files.has(MERGES):
        tokenizer = _made(vocabulary, lambda: _byte_level(files))
    else:
        words = files.checkpoint.file(WORDS)
        assert words is not None
        tokenizer = _made(words, lambda: _word_piece(files, words))
    add_side_tokens(tokenizer, files)
    return tokenizer


def add_side_tokens(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    """Add the tokens of added_tokens.json that the tokenizer does not have.

    Raises:
        FormatError: if the ids do not continue those of the vocabulary.
    """
    added: dict[str, Any] = files.checkpoint.json(ADDED_TOKENS) or {}
    for text, id_ in sorted(added.items(), key=lambda entry: int(entry[1])):
        tokenizer.add_tokens([text])
        if tokenizer.token_to_id(text) != id_:
            where = files.checkpoint.directory / ADDED_TOKENS
            raise FormatError(where, f"{text!r} has the id {id_}, expected {tokenizer.token_to_id(text)}, the next one")


def _made(path: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return make()
    except FormatError:
        raise
    except Exception as error:  # tokenizers raises nothing more specific
        raise FormatError(path, f"not a vocabulary that can be read ({one_line(error)})") from error


def _byte_level(files: TokenizerFiles) -> Tokenizer:
    merges = merges_of_text(files.text(MERGES) or "")
    tokenizer = Tokenizer(BPE(files.checkpoint.json(VOCABULARY), [(left, right) for left, right in map(str.split, merges)]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def merges_of_text(text: str) -> list[str]:
    """The merges in a merges.txt, each as `LEFT RIGHT`."""
    lines = text.split("\n")
    if lines[0].strip().startswith("#"):
        del lines[0]
    pairs = [line.split() for line in lines]
    return [" ".join(pair) for pair in pairs if len(pair) == 2]


def _word_piece(files: TokenizerFiles, path: Path) -> Tokenizer:
    lines = (files.text(WORDS) or "").split("\n")
    words = {word.rstrip("\r"): id_ for id_, word in enumerate(lines[:-1] if not lines[-1] else lines)}
    configuration = files.configuration
    names = bert_tokens(configuration)
    if names["unk"] not in words:
        raise ValueError(f"it has no {names['unk']}")
    tokenizer = Tokenizer(WordPiece(vocab=words, unk_token=names["unk"]))
    tokenizer.normalizer = BertNormalizer(
        handle_chinese_chars=bool(configuration.get("tokenize_chinese_chars", True)),
        strip_accents=configuration.get("strip_accents"),
        lowercase=bool(configuration.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens([text for text in names.values() if text in words])
    begin, end = names["cls"], names["sep"]
    if begin in words and end in words:
        ends = [(begin, words[begin]), (end, words[end])]
        tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    return tokenizer


def bert_tokens(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Role -> text of the special tokens: those of tokenizer_config.json, or else BERT's usual ones."""
    return {role: token_text(configuration.get(f"{role}_token")) or text for role, text in _BERT_TOKENS.items()}
