"""A `tokenizer.json` to GGUF: byte-level BPE as it is, BPE with byte fallback in the shape of a SentencePiece vocabulary.

Source: `get_vocab_base` of llama.cpp's converter and `LlamaHfVocab` of its `gguf-py/gguf/vocab.py`; what they ask of
transformers is asked of `tokenizers`, on which it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from quantcli.architectures import pre_tokenizers
from quantcli.conversion.vocabulary.files import TOKENIZER, TokenizerFiles
from quantcli.conversion.vocabulary.tokens import ADDED_TOKEN_SCORE, TokenTable, added_token, token_text
from quantcli.formats.errors import FormatError, ModelError, UnsupportedError, UsageError
from quantcli.formats.vocabulary_spec import TokenType

_NAMED_TOKENS: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-Fa-f]{2}>")


def is_byte_level(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json holds a BPE whose tokens are spelled in GPT-2's alphabet of bytes."""
    return _is_bpe(files) and not files.model.get("byte_fallback", False)


def has_byte_fallback(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json holds a BPE over characters with tokens `<0x00>` ... for the others: a SentencePiece model."""
    return _is_bpe(files) and bool(files.model.get("byte_fallback", False))


def _is_bpe(files: TokenizerFiles) -> bool:
    # Old files do not name the type; merges give it away.
    return "merges" in files.model and files.model.get("type", "BPE") == "BPE"


def load(files: TokenizerFiles) -> Tokenizer:
    """The tokenizer of tokenizer.json, with the tokens that tokenizer_config.json adds to it.

    Raises:
        FormatError: if `tokenizers` cannot read the file.
    """
    try:
        tokenizer = Tokenizer.from_file(str(files.tokenizer_path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise FormatError(str(files.tokenizer_path), f"not a tokenizer that can be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    decoder = files.configuration.get("added_tokens_decoder", {})
    tokenizer.add_tokens([_added_token(decoder[key]) for key in sorted(decoder, key=int)])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([text for text in _special_texts(files.configuration) if text not in known])
    return tokenizer


def _added_token(attributes: Mapping[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(attributes["content"], **{flag: attributes[flag] for flag in flags if flag in attributes})


def _special_texts(configuration: Mapping[str, Any]) -> Iterator[str]:
    """The texts that tokenizer_config.json names as special, by role and then those without one."""
    more = configuration.get("extra_special_tokens") or configuration.get("additional_special_tokens") or []
    named = [configuration.get(f"{role}_token") for role in _NAMED_TOKENS]
    for entry in [*named, *(more.values() if isinstance(more, Mapping) else more)]:
        text = token_text(entry)
        if text is not None:
            yield text


def byte_level_tokens(files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None) -> TokenTable:
    """The tokens of a byte-level BPE, unused ones where no text has an id.

    Raises:
        ModelError: if a token's id is at or above `vocabulary_size`: the model has no embedding for it.
    """
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    table = TokenTable()
    for text in _texts_by_id(files, tokenizer, vocabulary_size):
        if text is None:
            table.append(f"[PAD{len(table)}]", 0.0, TokenType.UNUSED)
        elif text in added:
            table.append(*_placed(tokenizer, added[text]))
        else:
            table.append(text, 0.0, TokenType.NORMAL)
    return table


def _texts_by_id(files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None) -> list[str | None]:
    """The text of every id below `vocabulary_size`, None where there is none."""
    texts = {id_: text for text, id_ in tokenizer.get_vocab(with_added_tokens=True).items()}
    last = max(texts, default=0)
    size = vocabulary_size or last + 1
    if last >= size:
        what = f"token {texts[last]!r} has the id {last}, but the model has only {size} embeddings"
        raise ModelError(f"{files.tokenizer_path}: {what}")
    return [texts.get(id_) for id_ in range(size)]


def _placed(tokenizer: Tokenizer, token: AddedToken) -> tuple[str, float, TokenType]:
    """An added token as GGUF has it: there it is compared with texts as they are, so its text is what decoding gives."""
    text = token.content
    if not token.normalized:
        text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    text, type_ = added_token(text, {"special": token.special})
    return text, 0.0, type_


def byte_fallback_tokens(
    files: TokenizerFiles, tokenizer: Tokenizer, vocabulary_size: int | None, *, flat_scores: bool
) -> TokenTable:
    """The tokens of a BPE with byte fallback, unused ones where no text has an id.

    tokenizer.json has an order of merges where SentencePiece has scores. They follow from it, the earlier merge the higher,
    or are all the same with `flat_scores`.

    Raises:
        ModelError: as `byte_level_tokens`.
    """
    ranks = {} if flat_scores else _merge_ranks(merges(files))
    special = set(_special_texts(files.configuration))
    base = tokenizer.get_vocab_size(with_added_tokens=False)

    def type_of(id_: int, text: str) -> TokenType:
        if id_ < base and _BYTE_TOKEN.fullmatch(text):
            return TokenType.BYTE
        if text in special:
            return TokenType.CONTROL
        return TokenType.NORMAL if id_ < base else TokenType.USER_DEFINED

    table = TokenTable()
    for id_, text in enumerate(_texts_by_id(files, tokenizer, vocabulary_size)):
        if text is None:
            table.append(f"[PAD{id_}]", ADDED_TOKEN_SCORE, TokenType.UNUSED)
        else:
            table.append(text, -float(ranks[text]) if text in ranks else ADDED_TOKEN_SCORE, type_of(id_, text))
    return table


def _merge_ranks(merges: Iterable[str]) -> dict[str, int]:
    """What merges join to -> the place of the first that does."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return ranks


def pre_tokenizer_name(files: TokenizerFiles, tokenizer: Tokenizer) -> str:
    """The name of the pre-tokenizer: by what the tokenizer makes of a test text, else by the patterns in tokenizer.json.

    Raises:
        UnsupportedError: if neither is known.
    """
    hashed = map(pre_tokenizers.name_by_hash, _test_ids(files, tokenizer))
    ignore_merges = bool(files.model.get("ignore_merges", False))
    patterns = pre_tokenizers.patterns_of(files.tokenizer.get("pre_tokenizer"))
    name = next(filter(None, hashed), None) or pre_tokenizers.name_by_patterns(patterns, ignore_merges=ignore_merges)
    if name is None:
        found = ", ".join(patterns) or "none"
        raise UnsupportedError(
            f"{files.tokenizer_path}: its pre-tokenizer is unknown; patterns found: {found}",
            hint=f"the nearest known one is {pre_tokenizers.nearest_name(patterns)!r}; choose with --pre-tokenizer NAME",
        )
    return name


def _test_ids(files: TokenizerFiles, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of the test text, as the post-processor surrounds them and as the flags of tokenizer_config.json would.

    Both occur, and may disagree; that with a begin token comes first, since tokenizers that have one were hashed with it.
    """
    variants = [tokenizer.encode(pre_tokenizers.TEST_TEXT).ids]
    flags = [(role, files.configuration.get(f"add_{role}_token")) for role in ("bos", "eos")]
    if any(flag is not None for _, flag in flags):
        begin, end = (_special_id(files, tokenizer, role) if flag else None for role, flag in flags)
        plain = tokenizer.encode(pre_tokenizers.TEST_TEXT, add_special_tokens=False).ids
        variants.append([id_ for id_ in (begin, *plain, end) if id_ is not None])
    return sorted(variants, key=len, reverse=True)


def _special_id(files: TokenizerFiles, tokenizer: Tokenizer, role: str) -> int | None:
    text = token_text(files.configuration.get(f"{role}_token"))
    return None if text is None else tokenizer.token_to_id(text)


def check_pre_tokenizer(name: str) -> str:
    """`name`, if there is such a pre-tokenizer.

    Raises:
        UsageError: if there is not.
    """
    known = pre_tokenizers.pre_tokenizers()
    if name not in known:
        raise UsageError(f"no pre-tokenizer is called {name!r}", hint=f"known are {', '.join(known)}")
    return name


def merges(files: TokenizerFiles) -> list[str]:
    """The merges, each as `LEFT RIGHT`: from tokenizer.json, else from merges.txt. A space within a part is written as `Ġ`.

    Raises:
        ModelError: if there are none.
    """
    listed = files.model.get("merges") or []
    if listed and isinstance(listed[0], str):
        return list(listed)
    if listed:
        return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in listed]
    path = files.checkpoint.file("merges.txt")
    found = _merges_of_text(path.read_text("utf-8")) if path else []
    if not found:
        raise ModelError(
            f"{files.checkpoint.directory}: a BPE tokenizer without merges; looked in {TOKENIZER} and merges.txt"
        )
    return found


def _merges_of_text(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[0].strip().startswith("#"):
        del lines[0]
    pairs = [line.split() for line in lines]
    return [" ".join(pair) for pair in pairs if len(pair) == 2]
