"""The tokens of a vocabulary by id: texts, scores and types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import ModelError, shown, warn
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array
from quantcli.formats.gguf.vocabulary import WORD_START, TokenType

ADDED_TOKEN_SCORE: Final = -1000.0
"""The score of a token that was added after the vocabulary was trained, as llama.cpp's converter writes it."""

MAX_TOKENS: Final = 1 << 24
"""An upper bound on the number of tokens. The largest vocabularies have a quarter of a million."""

_CONTROL_TEXTS: Final = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_CONTROL_BRACKETS: Final = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass
class TokenTable:
    """Tokens by id: three lists of one length."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def append(self, text: str, score: float, type_: TokenType) -> None:
        """Add a token at the next id."""
        self.texts.append(text)
        self.scores.append(score)
        self.types.append(type_)

    def put(self, id_: int, text: str, score: float, type_: TokenType) -> None:
        """Replace the token at `id_`."""
        self.texts[id_], self.scores[id_], self.types[id_] = text, score, type_

    def pad(self, size: int, score: float) -> None:
        """Pad to `size` with unused tokens: models often have more embeddings than tokens."""
        for id_ in range(len(self), size):
            self.append(f"[PAD{id_}]", score, TokenType.UNUSED)

    def metadata(self, *, scores: bool) -> Metadata:
        """The arrays of texts, of scores where the algorithm uses them, and of types."""
        arrays: Metadata = {spec.TOKENS: array(ValueType.STRING, self.texts)}
        if scores:
            arrays[spec.SCORES] = array(ValueType.FLOAT32, self.scores)
        return arrays | {spec.TOKEN_TYPES: array(ValueType.INT32, [int(type_) for type_ in self.types])}


def check_id(path: Path, id_: int, text: str, vocabulary_size: int | None) -> None:
    """Check the largest id of a vocabulary.

    Raises:
        ModelError: if the token has no embedding, or the id is at or above `MAX_TOKENS`.
    """
    if vocabulary_size is not None and id_ >= vocabulary_size:
        what = f"token {text!r} has the id {id_}, but the model has only {vocabulary_size} embeddings"
        raise ModelError(f"{path}: {what}")
    if id_ >= MAX_TOKENS:
        raise ModelError(f"{path}: token {text!r} has the id {id_}, expected below {MAX_TOKENS}")


def without_duplicate_texts(path: Path, vocabulary: Metadata) -> Metadata:
    """The arrays of texts and types with unique texts, since llama.cpp aborts on a vocabulary with duplicates.

    Of tokens with the same text an added one keeps it, or else the first. The others become unused. The result is empty if
    there are no duplicates.
    """
    texts, types = list(vocabulary[spec.TOKENS].value), list(vocabulary[spec.TOKEN_TYPES].value)
    if len(set(texts)) == len(texts):
        return {}
    kept: dict[str, int] = {}
    for id_, text in enumerate(texts):
        if text not in kept or _precedence(types[id_]) > _precedence(types[kept[text]]):
            kept[text] = id_
    duplicates = [id_ for id_, text in enumerate(texts) if text and kept[text] != id_]  # readers rename empty ones
    for id_ in duplicates:
        if types[id_] != TokenType.UNUSED:
            warn(f"{path}: the tokens {kept[texts[id_]]} and {id_} are both {shown(texts[id_])}; {id_} becomes unused")
        text = f"[PAD{id_}]"
        while text in kept:
            text = f"[{text}]"
        kept[text], texts[id_], types[id_] = id_, text, int(TokenType.UNUSED)
    if not duplicates:
        return {}
    return {spec.TOKENS: array(ValueType.STRING, texts), spec.TOKEN_TYPES: array(ValueType.INT32, types)}


def _precedence(type_: int) -> int:
    return {TokenType.UNUSED: 0, TokenType.NORMAL: 1}.get(TokenType(type_), 2)


def looks_special(text: str) -> bool:
    """Whether an added token is a control token although it is not marked as special.

    Source: `does_token_look_special` of llama.cpp's converter (models of Cohere, DeepSeek and Gemma need it).
    """
    return text in _CONTROL_TEXTS or any(text.startswith(start) and text.endswith(end) for start, end in _CONTROL_BRACKETS)


def added_token(text: str, attributes: Any) -> tuple[str, TokenType]:
    """The text and type of an added token, from its attributes in `tokenizer_config.json` or `tokenizer.json`.

    Control tokens keep their text. Others match user text, so `WORD_START` in them becomes a space.
    """
    if attributes.get("special") or looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(WORD_START, " "), TokenType.USER_DEFINED


def token_text(entry: object) -> str | None:
    """The text of a special token in tokenizer_config.json: a string, or the `content` of an object; else None."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) else None
