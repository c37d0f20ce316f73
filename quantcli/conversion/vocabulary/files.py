"""The tokenizer files of a checkpoint, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from quantcli.formats.checkpoint import Checkpoint

SENTENCEPIECE_MODEL: Final = "tokenizer.model"
TOKENIZER: Final = "tokenizer.json"
CONFIGURATION: Final = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint says of its tokenizer. An absent JSON file is an empty object."""

    checkpoint: Checkpoint
    sentencepiece: Path | None
    tokenizer_path: Path | None
    tokenizer: Mapping[str, Any]
    configuration: Mapping[str, Any]

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Self:
        """Read the JSON files.

        Raises:
            FormatError: if one of them is not a JSON object.
        """
        return cls(
            checkpoint,
            checkpoint.file(SENTENCEPIECE_MODEL),
            checkpoint.file(TOKENIZER),
            checkpoint.json(TOKENIZER) or {},
            checkpoint.json(CONFIGURATION) or {},
        )

    @property
    def model(self) -> Mapping[str, Any]:
        """The `model` of tokenizer.json: its algorithm, vocabulary and merges."""
        model: Mapping[str, Any] = self.tokenizer.get("model") or {}
        return model
