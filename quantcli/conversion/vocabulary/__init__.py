"""A checkpoint's tokenizer to GGUF metadata: every key `tokenizer.*`, as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quantcli.conversion.vocabulary.sentencepiece import sentencepiece_tokens
from quantcli.conversion.vocabulary.special import special_metadata
from quantcli.formats import vocabulary_spec as spec
from quantcli.formats.errors import ModelError
from quantcli.formats.gguf_spec import Metadata, boolean, string

if TYPE_CHECKING:
    from quantcli.formats.checkpoint import Checkpoint

_SENTENCEPIECE: Final = "tokenizer.model"


def vocabulary_metadata(checkpoint: Checkpoint, vocabulary_size: int | None) -> Metadata:
    """All metadata of the checkpoint's tokenizer, for a model with `vocabulary_size` embeddings (None: one per token).

    Raises:
        ModelError: if there is no tokenizer, or it does not fit the model.
        FormatError: if a tokenizer file cannot be read.
    """
    metadata: Metadata = {}
    space_prefix = (checkpoint.json("tokenizer_config.json") or {}).get("add_prefix_space")
    if space_prefix is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(space_prefix)

    path = checkpoint.file(_SENTENCEPIECE)
    if path is None:
        raise ModelError(f"{checkpoint.directory}: no tokenizer; looked for {_SENTENCEPIECE}")
    table = sentencepiece_tokens(path, checkpoint, vocabulary_size)
    metadata |= {spec.MODEL: string("llama"), spec.PRE_TOKENIZER: string("default")}
    return metadata | table.metadata(scores=True) | special_metadata(checkpoint, len(table))
