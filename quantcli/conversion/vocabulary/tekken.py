"""Convert Mistral's tekken.json: special tokens first, then byte tokens by rank.

Source: `_set_vocab_mistral` of llama.cpp's `conversion/base.py`, `MistralVocab` of its `gguf-py/gguf/vocab.py`, and
`tekken.py` of mistral-common for the file.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any, Final

from quantcli.conversion.vocabulary.files import TEKKEN, Request
from quantcli.conversion.vocabulary.ranks import spell
from quantcli.conversion.vocabulary.special import chat_templates, template_metadata
from quantcli.conversion.vocabulary.tokens import TokenTable, check_id
from quantcli.core.errors import FormatError
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, string, u32
from quantcli.formats.gguf.vocabulary import TokenType

_ROLES: Final = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}

_OLD_SPECIAL: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""The special tokens of files that do not list them."""

_TEMPLATES: Final = {"v3": "mistral-v3-tekken", "v7": "mistral-v7-tekken"}
"""Version of the file -> llama.cpp's name of its chat template."""


def from_tekken(request: Request) -> Metadata:
    """The vocabulary of a tekken.json.

    Raises:
        FormatError: if its ranks have gaps, or a token is not the merge of two others.
        ModelError: if it has more tokens than the model has embeddings.
    """
    checkpoint = request.files.checkpoint
    path = checkpoint.directory / TEKKEN
    tekken = checkpoint.json(TEKKEN) or {}
    config = tekken["config"]
    special = _special_texts(tekken)
    tokens = [b64decode(entry["token_bytes"]) for entry in tekken["vocab"]]
    tokens = tokens[: config["default_vocab_size"] - len(special)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if [entry["rank"] for entry in tekken["vocab"][: len(tokens)]] != list(range(len(tokens))) or len(ranks) < len(tokens):
        raise FormatError(path, "the ranks of its tokens are not 0, 1, 2 ..., or two tokens are the same")

    table = TokenTable()
    for text in special:
        table.append(text, 0.0, TokenType.CONTROL)
    for token in tokens:
        table.append(spell(token), 0.0, TokenType.NORMAL)
    check_id(path, len(table) - 1, table.texts[-1], request.vocabulary_size)
    table.pad(request.vocabulary_size or len(table), 0.0)

    merges = [merge for token, rank in ranks.items() if rank >= len(BYTE_RANKS) for merge in _possible_merges(ranks, token)]
    metadata = {spec.MODEL: string("gpt2"), spec.PRE_TOKENIZER: string(request.pre_tokenizer or "tekken")}
    metadata[spec.MERGES] = array(ValueType.STRING, merges)
    metadata |= {spec.SPECIAL_TOKENS[role]: u32(special.index(text)) for role, text in _ROLES.items() if text in special}
    metadata |= table.metadata(scores=False)
    types = metadata.pop(spec.TOKEN_TYPES)
    metadata |= {spec.SCORES: array(ValueType.INT32, [0] * len(table)), spec.TOKEN_TYPES: types}
    metadata[spec.ADD_SPECIAL_TOKENS["bos"]] = boolean(True)
    metadata[spec.ADD_SPECIAL_TOKENS["eos"]] = boolean(False)
    template = _TEMPLATES.get(config.get("version")) or chat_templates(request.files, request.files.configuration)
    return metadata | template_metadata(template)


BYTE_RANKS: Final = range(256)
"""The ranks of single bytes, which come first."""


def _special_texts(tekken: Mapping[str, Any]) -> list[str]:
    listed = tekken.get("special_tokens")
    texts = list(_OLD_SPECIAL) if listed is None else [token["token_str"] for token in listed]
    return texts + [f"<SPECIAL_{id_}>" for id_ in range(len(texts), tekken["config"]["default_num_special_tokens"])]


def _possible_merges(ranks: Mapping[bytes, int], token: bytes) -> Iterator[str]:
    """All merges of two tokens that give `token`, those of low ranks first."""
    pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    known = [(ranks[left], ranks[right], left, right) for left, right in pairs if left in ranks and right in ranks]
    if not known:
        raise ValueError(f"the token {token!r} is not the merge of two others")
    for _, _, left, right in sorted(known):
        yield f"{spell(left)} {spell(right)}"
