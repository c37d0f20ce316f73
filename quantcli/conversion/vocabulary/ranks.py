"""Convert vocabularies of `tiktoken`, byte tokens with ranks, to byte-level BPE, whose merges are recovered from the ranks.

Source: `_set_vocab_qwen` of llama.cpp's `conversion/base.py`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.models import BPE

from quantcli.conversion.vocabulary.files import Request, TokenizerFiles
from quantcli.conversion.vocabulary.pre_tokenizer import pre_tokenizer_name
from quantcli.conversion.vocabulary.special import special_metadata
from quantcli.conversion.vocabulary.tokens import TokenTable, added_token, check_id
from quantcli.core.errors import FormatError
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string
from quantcli.formats.gguf.vocabulary import BYTES, TokenType

_CHARACTERS: Final = {byte: character for character, byte in BYTES.items()}
_LONGEST_TOKEN: Final = 4096
"""Bytes of the longest token that is accepted: recovering its merges takes quadratic time. Known ones have up to 256."""

_END_OF_TEXT: Final = "<|endoftext|>"

_SPECIAL: Final[Mapping[str, tuple[str, ...]]] = {
    "qwen.tiktoken": (_END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
}
"""File name -> the special tokens after the ranks, for checkpoints that define them only in code."""


def from_ranks(request: Request) -> Metadata:
    """The tokens in the order of their ranks, then special tokens, and one merge for each token that has one.

    Raises:
        FormatError: if a line of the file is not a token in base64 and its rank.
        ModelError: if a token's id is at or above the number of embeddings.
    """
    files = request.files
    ranks = read_ranks(files)
    special = _special_tokens(files, max(ranks.values()) + 1)
    merges = list(merges_of_ranks(ranks))
    texts = {rank: (spell(token), TokenType.NORMAL) for token, rank in ranks.items()} | special
    check_id(files.ranks or files.checkpoint.directory, max(texts), texts[max(texts)][0], request.vocabulary_size)
    table = TokenTable()
    for id_ in range(request.vocabulary_size or max(texts) + 1):
        text, type_ = texts.get(id_, (f"[PAD{id_}]", TokenType.UNUSED))
        table.append(text, 0.0, type_)
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, [(left, right) for left, right in map(str.split, merges)]))
    metadata = {spec.MODEL: string("gpt2"), spec.PRE_TOKENIZER: string(pre_tokenizer_name(request, tokenizer))}
    metadata |= table.metadata(scores=False) | {spec.MERGES: array(ValueType.STRING, merges)}
    end = next((id_ for id_, (text, _) in special.items() if text == _END_OF_TEXT), None)
    if end is None:
        return metadata | special_metadata(files, None)
    return metadata | special_metadata(files, None, alone={"bos": end, "eos": end}, late={"unk": end})


def read_ranks(files: TokenizerFiles) -> dict[bytes, int]:
    """The tokens and their ranks, in the order of the ranks.

    Raises:
        FormatError: if the file is damaged.
    """
    path = files.ranks
    assert path is not None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            ranks[b64decode(encoded, validate=True)] = int(rank)
        except ValueError as error:
            raise FormatError(path, f"line {number} is not a token in base64 and its rank ({error})") from error
    _check_ranks(path, ranks)
    return dict(sorted(ranks.items(), key=lambda entry: entry[1]))


def _check_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise FormatError(path, f"the byte {missing} is not a token")
    longest = max(map(len, ranks))
    if longest > _LONGEST_TOKEN:
        raise FormatError(path, f"a token has {longest} bytes, expected at most {_LONGEST_TOKEN}")
    if len(set(ranks.values())) < len(ranks):
        raise FormatError(path, "two tokens have the same rank")


def spell(token: bytes) -> str:
    """A token in GPT-2's byte alphabet."""
    return "".join(_CHARACTERS[byte] for byte in token)


def merges_of_ranks(ranks: Mapping[bytes, int]) -> Iterator[str]:
    """The last merge in the BPE of each token with lower ranks only. A token that BPE does not reach has no merge."""
    for token, rank in ranks.items():
        parts = _joined(ranks, token, rank)
        if len(parts) == 2:
            yield " ".join(map(spell, parts))


def _joined(ranks: Mapping[bytes, int], token: bytes, below: int) -> list[bytes]:
    """The parts of `token` after all merges of ranks below `below`: the lowest rank first, of equals the leftmost."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 1:
        candidates = [ranks.get(parts[index] + parts[index + 1], below) for index in range(len(parts) - 1)]
        rank = min(candidates)
        if rank >= below:
            break
        index = candidates.index(rank)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _special_tokens(files: TokenizerFiles, first: int) -> dict[int, tuple[str, TokenType]]:
    """Id -> special token: those of tokenizer_config.json, or else of `_SPECIAL`."""
    configured: Mapping[str, Any] = files.configuration.get("added_tokens_decoder", {})
    if configured:
        return {int(key): added_token(attributes["content"], attributes) for key, attributes in configured.items()}
    texts = _SPECIAL.get(files.ranks.name if files.ranks else "", ())
    return {first + index: (text, TokenType.CONTROL) for index, text in enumerate(texts)}
