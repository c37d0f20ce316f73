"""The tokenizer files of a checkpoint, each read once, and the request to convert them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from quantcli.architectures.schema import VocabularyRules
from quantcli.core.errors import FormatError
from quantcli.formats.tokenizer_files.sentencepiece import SentencePieceModel, read_sentencepiece_model

if TYPE_CHECKING:
    from quantcli.formats.checkpoint.checkpoint import Checkpoint

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
"""The files that a vocabulary can be in, for error messages."""

_PEEKED: Final = 1 << 12


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer files of a checkpoint. A missing JSON file is an empty object, any other missing file is None."""

    checkpoint: Checkpoint
    tokenizer_path: Path | None
    tokenizer: Mapping[str, Any]
    configuration: Mapping[str, Any]
    sentencepiece: Path | None
    ranks: Path | None
    """A file of byte tokens and their ranks, as for `tiktoken`."""
    as_reference: bool = False
    """Whether to use only what llama.cpp's converter reads, and not what transformers reads besides: docs/departures.md."""

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, as_reference: bool = False) -> Self:
        """Read the JSON files.

        Raises:
            FormatError: if one of them is not a JSON object.
        """
        models = [path for name in SENTENCEPIECE_MODELS if (path := checkpoint.file(name)) is not None]
        # GLM calls a file of ranks tokenizer.model too.
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
        """tokenizer_config.json, with the special tokens of special_tokens_map.json if it has no `added_tokens_decoder`.

        transformers reads that file too for such old configurations.
        """
        if "added_tokens_decoder" in self.configuration:
            return self.configuration
        return {**self.configuration, **(self.checkpoint.json(SPECIAL_TOKENS) or {})}

    def added_tokens(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The added tokens, each with its id and attributes: those of tokenizer.json, then those that only
        tokenizer_config.json has, then those that only added_tokens.json has."""
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
        """The model in the file `sentencepiece`, which must exist.

        Raises:
            FormatError: if it is not a SentencePiece model.
        """
        assert self.sentencepiece is not None
        return read_sentencepiece_model(self.sentencepiece)

    @property
    def is_tekken(self) -> bool:
        """Whether to read tekken.json. Beside a tokenizer.json it has the same vocabulary again."""
        return self.has_alone(TEKKEN)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file of this name."""
        return self.checkpoint.file(name) is not None

    def text(self, name: str) -> str | None:
        """The contents of a text file without a byte order mark; None if there is no such file.

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
        """Whether the checkpoint has these files and no tokenizer.json."""
        return self.tokenizer_path is None and all(map(self.has, names))


def _is_ranks(path: Path) -> bool:
    """Whether each line of a file is a token in base64 and its rank, judged by the first line."""
    with path.open("rb") as file:
        fields = file.read(_PEEKED).split(b"\n")[0].split()
    return len(fields) == 2 and fields[1].isdigit() and fields[0].isascii()


@dataclass(frozen=True)
class Request:
    """The arguments of a vocabulary's conversion."""

    files: TokenizerFiles
    vocabulary_size: int | None
    rules: VocabularyRules
    pre_tokenizer: str | None
    token_types: int | None
    """The number of BERT's segment types, if it is to be written."""
