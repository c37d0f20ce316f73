"""The tokenizer files of a checkpoint, each read once, and what a vocabulary is made of them for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from quantcli.architectures.schema import VocabularyRules
from quantcli.formats.errors import FormatError
from quantcli.formats.sentencepiece_model import SentencePieceModel, read_sentencepiece_model

if TYPE_CHECKING:
    from quantcli.formats.checkpoint import Checkpoint

TOKENIZER: Final = "tokenizer.json"
CONFIGURATION: Final = "tokenizer_config.json"
TEKKEN: Final = "tekken.json"
MERGES: Final = "merges.txt"
VOCABULARY: Final = "vocab.json"
WORDS: Final = "vocab.txt"
ADDED_TOKENS: Final = "added_tokens.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"
SENTENCEPIECE_MODELS: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TIKTOKEN: Final = "*.tiktoken"

_OTHERS: Final = (*SENTENCEPIECE_MODELS[1:], TEKKEN, TIKTOKEN, f"{VOCABULARY} with {MERGES}", WORDS)
SOUGHT: Final = f"{SENTENCEPIECE_MODELS[0]} and {TOKENIZER}, then {', '.join(_OTHERS)}"
"""What a vocabulary can be in, in words."""

_PEEKED: Final = 1 << 12


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint says of its tokenizer. An absent JSON file is an empty object, any other None."""

    checkpoint: Checkpoint
    tokenizer_path: Path | None
    tokenizer: Mapping[str, Any]
    configuration: Mapping[str, Any]
    sentencepiece: Path | None
    ranks: Path | None
    """Tokens of bytes by rank, as `tiktoken` has them."""
    as_reference: bool = False
    """Whether only what llama.cpp's converter looks at counts, and not what else transformers reads: docs/departures.md."""

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, as_reference: bool = False) -> Self:
        """Read the JSON files.

        Raises:
            FormatError: if one of them is not a JSON object.
        """
        models = [path for name in SENTENCEPIECE_MODELS if (path := checkpoint.file(name)) is not None]
        # GLM calls it tokenizer.model too.
        texts = [checkpoint.file(path.name) for path in sorted(checkpoint.directory.glob(TIKTOKEN))]
        ranks = [path for path in (*texts, *models) if path is not None and _is_ranks(path)]
        return cls(
            checkpoint,
            checkpoint.file(TOKENIZER),
            checkpoint.json(TOKENIZER) or {},
            checkpoint.json(CONFIGURATION) or {},
            next((path for path in models if path not in ranks), None),
            next(iter(ranks), None),
            as_reference,
        )

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model` of tokenizer.json: its algorithm, vocabulary and merges."""
        model: Mapping[str, Any] = self.tokenizer.get("model") or {}
        return model

    @cached_property
    def named_tokens(self) -> Mapping[str, Any]:
        """tokenizer_config.json, in whose place special_tokens_map.json names the special tokens where it is older than
        `added_tokens_decoder`: there transformers reads that file too."""
        if "added_tokens_decoder" in self.configuration:
            return self.configuration
        return {**self.configuration, **(self.checkpoint.json(SPECIAL_TOKENS) or {})}

    def added_tokens(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The tokens added around the vocabulary, id and attributes: those of tokenizer.json, then those that stand only in
        tokenizer_config.json, and those that stand only in added_tokens.json."""
        known: set[str] = set()
        for id_, token in self._listed_tokens():
            if token["content"] not in known:
                known.add(token["content"])
                yield id_, token

    def _listed_tokens(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from ((token["id"], token) for token in self.tokenizer.get("added_tokens") or [])
        if self.as_reference:
            return
        yield from ((int(key), token) for key, token in (self.configuration.get("added_tokens_decoder") or {}).items())
        yield from ((id_, {"content": text}) for text, id_ in (self.checkpoint.json(ADDED_TOKENS) or {}).items())

    @cached_property
    def sentencepiece_model(self) -> SentencePieceModel:
        """The model in `sentencepiece`, which must be there.

        Raises:
            FormatError: if it is not one.
        """
        assert self.sentencepiece is not None
        return read_sentencepiece_model(self.sentencepiece)

    @property
    def is_tekken(self) -> bool:
        """Whether tekken.json is what there is; beside a tokenizer.json it is the same once more."""
        return self.has_alone(TEKKEN)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file of this name."""
        return self.checkpoint.file(name) is not None

    def text(self, name: str) -> str | None:
        """The contents of a text file without a byte order mark, None where there is none.

        Raises:
            FormatError: if it is not UTF-8.
        """
        path = self.checkpoint.file(name)
        if path is None:
            return None
        try:
            return path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(path, f"not UTF-8 ({error.reason})", offset=error.start) from error

    def has_alone(self, *names: str) -> bool:
        """Whether the checkpoint has these files, and no tokenizer.json."""
        return self.tokenizer_path is None and all(map(self.has, names))


def _is_ranks(path: Path) -> bool:
    """Whether a file is lines of a token in base 64 and its rank."""
    with path.open("rb") as file:
        fields = file.read(_PEEKED).split(b"\n")[0].split()
    return len(fields) == 2 and fields[1].isdigit() and fields[0].isascii()


@dataclass(frozen=True)
class Request:
    """What a vocabulary is converted from and for."""

    files: TokenizerFiles
    vocabulary_size: int | None
    rules: VocabularyRules
    pre_tokenizer: str | None
    token_types: int | None
    """BERT's segment types, where their number is written."""
