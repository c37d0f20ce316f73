"""Convert `tokenizer.json`: byte-level BPE as it is, BPE with byte fallback as a SentencePiece vocabulary.

Source: `get_vocab_base` of llama.cpp's converter and `LlamaHfVocab` of its `gguf-py/gguf/vocab.py`. Where they use
transformers, this uses `tokenizers`, which transformers is based on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from quantcli.conversion.vocabulary.files import MERGES, TOKENIZER, TokenizerFiles
from quantcli.conversion.vocabulary.plain_files import add_side_tokens, build_tokenizer, merges_of_text
from quantcli.conversion.vocabulary.tokens import ADDED_TOKEN_SCORE, TokenTable, added_token, check_id, token_text
from quantcli.core.errors import FormatError, ModelError, one_line
from quantcli.formats.gguf.vocabulary import TokenType

_NAMED_TOKENS: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-Fa-f]{2}>")


_TELLING: Final = {"BPE": "merges", "WordPiece": "max_input_chars_per_word", "Unigram": "unk_id"}
"""Type of a model -> a key that only models of this type have."""


def is_byte_level(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json holds a BPE whose tokens are in GPT-2's byte alphabet."""
    return _is_bpe(files) and not files.model.get("byte_fallback", False)


def has_byte_fallback(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json holds a BPE over characters with byte tokens `<0x00>` ...: a SentencePiece model."""
    return _is_bpe(files) and bool(files.model.get("byte_fallback", False))


def _is_bpe(files: TokenizerFiles) -> bool:
    return "merges" in files.model and holds(files, "BPE")


def holds(files: TokenizerFiles, kind: str) -> bool:
    """Whether tokenizer.json holds a model of this type. Old files do not name the type: a key tells it."""
    given = files.model.get("type")
    return given == kind or (given is None and _TELLING[kind] in files.model)


def load(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer of tokenizer.json, or of the files that replace it, with the tokens that tokenizer_config.json adds.

    Raises:
        FormatError: if `tokenizers` cannot read the file.
    """
    if files.tokenizer_path is None:
        tokenizer = build_tokenizer(files)
    else:
        try:
            tokenizer = Tokenizer.from_file(str(files.tokenizer_path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise FormatError(files.tokenizer_path, f"not a tokenizer that can be read ({one_line(error)})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    decoder = files.configuration.get("added_tokens_decoder") or {}
    named = set(_named_texts(files.named_tokens))
    listed = [decoder[key] for key in sorted(decoder, key=int)] or files.tokenizer.get("added_tokens") or []
    tokenizer.add_tokens([_added_token(attributes, named) for attributes in listed])
    if not decoder and not files.as_reference:
        add_side_tokens(tokenizer, files)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([text for text in _expected_texts(files) if text not in known])
    return tokenizer


def _added_token(attributes: Mapping[str, Any], named: Container[str]) -> AddedToken:
    """An added token. It is special if it is marked so, or if it has a role: its text is in `named`."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    token = AddedToken(attributes["content"], **{flag: attributes[flag] for flag in flags if flag in attributes})
    token.special = token.special or token.content in named
    return token


def special_texts(configuration: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that tokenizer_config.json names: those with a role, then those without."""
    yield from _named_texts(configuration)
    more = _without_role(configuration)
    yield from filter(None, map(token_text, () if isinstance(more, Mapping) else more))


def _expected_texts(files: TokenizerFiles) -> Iterator[str]:
    """The texts that are added as tokens if the vocabulary lacks them.

    Texts of roles that only some models have are left out, except with `as_reference`: most such tokens that the vocabulary
    lacks have no embedding either.
    """
    if files.as_reference:
        return special_texts(files.named_tokens)
    roles = {f"{role}_token" for role in _NAMED_TOKENS}
    own = {key for key in files.named_tokens if key.endswith("_token")} - roles
    return special_texts({key: entry for key, entry in files.named_tokens.items() if key not in own})


def _named_texts(configuration: Mapping[str, Any]) -> Iterator[str]:
    """The texts of tokens with a role: first the usual roles, then those of a model, such as `image_token`."""
    usual = [f"{role}_token" for role in _NAMED_TOKENS]
    own = [key for key in configuration if key.endswith("_token") and key not in usual]
    more = _without_role(configuration)
    entries = [configuration.get(key) for key in (*usual, *own)] + [*(more.values() if isinstance(more, Mapping) else ())]
    yield from (text for entry in entries if (text := token_text(entry)) is not None)


def _without_role(configuration: Mapping[str, Any]) -> Any:
    return configuration.get("extra_special_tokens") or configuration.get("additional_special_tokens") or []


@contextmanager
def panics_as_errors(files: TokenizerFiles) -> Iterator[None]:
    """Turn a panic of the Rust code of `tokenizers` into an error of the file.

    A panic is not an `Exception`, and its class cannot be imported.

    Raises:
        FormatError: for a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        place = files.tokenizer_path or files.checkpoint.directory
        raise FormatError(place, f"a tokenizer that cannot be used ({one_line(error)})") from error


def encode(files: TokenizerFiles, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a text.

    Raises:
        FormatError: if the tokenizer fails, for example a WordPiece without an unknown token.
    """
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except Exception as error:  # tokenizers raises nothing more specific
        place = files.tokenizer_path or files.checkpoint.directory
        raise FormatError(place, f"a tokenizer that cannot encode ({one_line(error)})") from error
    return ids


def listed_tokens(files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None) -> TokenTable:
    """The tokens of a byte-level BPE or a WordPiece. Ids without a token are filled with unused tokens.

    Raises:
        ModelError: if a token's id is at or above `vocabulary_size`: the model has no embedding for it.
    """
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    texts = _texts_by_id(files, tokenizer, vocabulary_size)
    found = {text: _found_text(files, tokenizer, token) for text, token in added.items()}
    counts = Counter(found.get(text, text) for text in texts if text is not None)
    table = TokenTable()
    for text in texts:
        if text is None:
            table.append(f"[PAD{len(table)}]", 0.0, TokenType.UNUSED)
        elif text in added:
            # Tokens in the byte alphabet that are not valid UTF-8 all decode to the same text. llama.cpp's converter writes
            # that text several times, and llama.cpp aborts on such a vocabulary.
            kept = text if counts[found[text]] > 1 and not files.as_reference else found[text]
            placed, type_ = added_token(kept, {"special": added[text].special})
            table.append(placed, 0.0, type_)
        else:
            table.append(text, 0.0, TokenType.NORMAL)
    return table


def _texts_by_id(files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None) -> list[str | None]:
    """The token of every id below `vocabulary_size`; None for an id without one."""
    path = files.tokenizer_path or files.checkpoint.directory
    texts: dict[int, str] = {}
    for text, id_ in tokenizer.get_vocab(with_added_tokens=True).items():
        if id_ in texts:
            raise ModelError(f"{path}: tokens {texts[id_]!r} and {text!r} have one id, {id_}")
        texts[id_] = text
    last = max(texts, default=0)
    check_id(path, last, texts.get(last, ""), vocabulary_size)
    return [texts.get(id_) for id_ in range(vocabulary_size or last + 1)]


def _found_text(files: TokenizerFiles, tokenizer: Tokenizer, token: AddedToken) -> str:
    """The text that an added token is matched by. GGUF matches raw text, so this is the decoded token."""
    text: str = token.content
    if not token.normalized:
        text = tokenizer.decode(encode(files, tokenizer, text, add_special_tokens=False), skip_special_tokens=False)
    return text


def byte_fallback_tokens(
    files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None, *, flat_scores: bool
) -> TokenTable:
    """The tokens of a BPE with byte fallback. Ids without a token are filled with unused tokens.

    tokenizer.json has ranked merges where SentencePiece has scores. The score of a token is minus the rank of its merge.
    With `flat_scores` all scores are the same.

    Raises:
        ModelError: as `listed_tokens`.
    """
    ranks = {} if flat_scores else _merge_ranks(merges(files))
    special = set(special_texts(files.named_tokens))
    base = tokenizer.get_vocab_size(with_added_tokens=False)

    def type_of(id_: int, text: str) -> TokenType:
        if id_ < base and _BYTE_TOKEN.fullmatch(text):
            return TokenType.BYTE
        if text in special:
            return TokenType.CONTROL
        return TokenType.NORMAL if id_ < base else TokenType.USER_DEFINED

    table = TokenTable()
    texts = _texts_by_id(files, tokenizer, vocabulary_size)
    while files.as_reference and texts and texts[-1] is None:
        texts.pop()  # llama.cpp's converter does not pad to the number of embeddings, and llama.cpp refuses the file
    for id_, text in enumerate(texts):
        if text is None:
            table.append(f"[PAD{id_}]", ADDED_TOKEN_SCORE, TokenType.UNUSED)
        else:
            table.append(text, -float(ranks[text]) if text in ranks else ADDED_TOKEN_SCORE, type_of(id_, text))
    if not files.as_reference:
        for id_, token in files.added_tokens():
            if base <= id_ < len(table):
                table.put(id_, *_with_score(added_token(token["content"], token)))
    return table


def _with_score(token: tuple[str, TokenType]) -> tuple[str, float, TokenType]:
    return token[0], ADDED_TOKEN_SCORE, token[1]


def _merge_ranks(merges: Iterable[str]) -> dict[str, int]:
    """Token -> the rank of the first merge that gives it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return ranks


def merges(files: TokenizerFiles) -> list[str]:
    """The merges, each as `LEFT RIGHT`, from tokenizer.json or else merges.txt. A space within LEFT or RIGHT becomes `Ġ`.

    Raises:
        ModelError: if there are none.
    """
    listed = files.model.get("merges") or []
    if listed and isinstance(listed[0], str):
        return list(listed)
    if listed:
        return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in listed]
    found = merges_of_text(files.text(MERGES) or "")
    if not found:
        raise ModelError(
            f"{files.checkpoint.directory}: a BPE tokenizer without merges; looked in {TOKENIZER} and {MERGES}"
        )
    return found
