"""Describes a GGUF file in short lines of label and text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Final

from quantcli.core.display import binary_size, decimal_count
from quantcli.core.listing import counted
from quantcli.formats.gguf import vocabulary
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.formats.gguf.spec import Field, ValueType

Lines = Iterator[tuple[str, str]]

_ALGORITHMS: Final[Mapping[str, str]] = {
    "llama": "SentencePiece BPE",
    "gpt2": "byte-level BPE",
    "bert": "WordPiece",
    "t5": "SentencePiece unigram",
    "rwkv": "RWKV",
    "plamo2": "PLaMo-2",
}
_TOKEN_KEY: Final = ("tokenizer.ggml.", "_token_id")
_LISTED: Final = 12
"""The most entries shown of a list, such as tags."""

_WRITTEN_OUT: Final = 1e15
"""Integral floats below this are shown without an exponent."""

_FLOAT32_DIGITS: Final = 9
"""The significant digits that represent any float32 uniquely."""

_GUESSED_FILE_TYPE: Final = 1024
"""Flag in `general.file_type` for a guessed file type (LLAMA_FTYPE_GUESSED). Source: `llama.h`."""


def describe(file: GGUFFile) -> Lines:
    """All lines of the default view above its tables, as (label, text)."""
    for section in (_identity, _numbers, _shape, _tokenizer, _quantization):
        yield from section(file)


def parameters(file: GGUFFile) -> int:
    """The number of weights in all tensors."""
    return sum(tensor.size for tensor in file.tensors.values())


def bits_per_weight(file: GGUFFile) -> float | None:
    """Bits of tensor data per weight, without headers and padding; None without weights."""
    weights = parameters(file)
    return 8 * sum(tensor.nbytes for tensor in file.tensors.values()) / weights if weights else None


def short_value(field: Field, *, items: int = 5, characters: int = 100) -> str:
    """A metadata value on one line. Long strings and arrays are truncated, with their length."""
    if field.type == ValueType.STRING:
        return _begun(field.value, characters)
    if field.element is None:
        return _number(field.type, field.value)
    text = field.element == ValueType.STRING
    shown = [f"'{_begun(value, 30)}'" if text else _number(field.element, value) for value in field.elements(stop=items)]
    more = field.count - len(shown)
    return f"[{', '.join(shown)}{f', ... {more:,} more' if more else ''}]"


def type_name(field: Field) -> str:
    """The type of a metadata value: `uint32`, `string[32000]`."""
    if field.element is None:
        return field.type.name.lower()
    return f"{field.element.name.lower()}[{field.count}]"


def file_type_name(file: GGUFFile) -> str | None:
    """The recipe of `general.file_type`, or None where that is absent."""
    from quantcli.conversion.roles import file_type_names

    number = file.get("general.file_type")
    if not isinstance(number, int):
        return None
    return file_type_names().get(number % _GUESSED_FILE_TYPE, f"file type {number}")


def _identity(file: GGUFFile) -> Lines:
    kind = _string(file, "general.type")
    if kind and kind != "model":
        yield "Kind", kind
    shard, shards = file.split
    if len(file.paths) > 1:
        yield "Shards", counted(shards, "file")
    elif shards > 1:
        yield "Shard", f"{shard} of {shards}; this summary is of this shard alone"
    yield from _present(
        file,
        ("Architecture", "general.architecture"),
        ("Description", "general.description"),
        ("Author", "general.author"),
        ("Organization", "general.organization"),
        ("Version", "general.version"),
        ("Fine-tune", "general.finetune"),
        ("Base model", "general.base_model.0.name"),
        ("Licence", "general.license"),
        ("Languages", "general.languages"),
        ("Tags", "general.tags"),
        ("Source", "general.source.url"),
        ("Source", "general.source.huggingface.repository"),
    )


def _numbers(file: GGUFFile) -> Lines:
    bits = bits_per_weight(file)
    if bits is not None:
        yield "Parameters", f"{decimal_count(parameters(file))} in {counted(len(file.tensors), 'tensor')}"
    size = [binary_size(file.file_bytes), f"{bits:.2f} bits per weight" if bits is not None else None]
    yield "Size", ", ".join(part for part in (*size, file_type_name(file)) if part)


def _shape(file: GGUFFile) -> Lines:
    """The hyperparameters, whose keys have the architecture as prefix."""

    def of(key: str) -> str | None:
        field = file.metadata.get(f"{file.architecture}.{key}")
        return None if field is None else _range(field)

    def line(label: str, *parts: tuple[str, str]) -> Lines:
        """A line of parts, each a key and a format string for its value. Parts without a value are left out."""
        said = [text.format(value) for key, text in parts if (value := of(key)) is not None]
        if said:
            yield label, ", ".join(said)

    yield from line("Context", ("context_length", "{} tokens"), ("attention.sliding_window", "window of {}"))
    yield from line(
        "Layers",
        ("block_count", "{}"),
        ("embedding_length", "embedding {}"),
        ("feed_forward_length", "feed-forward {}"),
    )
    yield from line(
        "Attention",
        ("attention.head_count", "{} heads"),
        ("attention.head_count_kv", "{} key-value heads"),
        ("attention.key_length", "head size {}"),
    )
    yield from line(
        "Experts",
        ("expert_count", "{}"),
        ("expert_used_count", "{} used per token"),
        ("expert_shared_count", "{} shared"),
        ("expert_feed_forward_length", "feed-forward {}"),
    )
    yield from line(
        "Rotary embedding",
        ("rope.freq_base", "base {}"),
        ("rope.dimension_count", "{} dimensions"),
        ("rope.scaling.type", "scaling {}"),
        ("rope.scaling.factor", "factor {}"),
        ("rope.scaling.original_context_length", "trained on {} tokens"),
    )


def _tokenizer(file: GGUFFile) -> Lines:
    model = _string(file, vocabulary.MODEL)
    if model is None:
        return
    tokens, merges = _string_count(file, vocabulary.TOKENS), _string_count(file, vocabulary.MERGES)
    said = [f"{tokens:,} tokens", f"{_ALGORITHMS.get(model, 'model')} ({model})"]
    if merges:
        said.append(f"{merges:,} merges")
    if pre := _string(file, vocabulary.PRE_TOKENIZER):
        said.append(f"pre-tokenizer {pre}")
    elif model == "gpt2":
        said.append("no pre-tokenizer key")
    yield "Tokenizer", ", ".join(said)
    yield from _special_tokens(file)


def _special_tokens(file: GGUFFile) -> Lines:
    prefix, suffix = _TOKEN_KEY
    count = _string_count(file, vocabulary.TOKENS)
    named = []
    for key, field in file.metadata.items():
        if key.startswith(prefix) and key.endswith(suffix) and isinstance(field.value, int):
            role = key.removeprefix(prefix).removesuffix(suffix).replace("_", " ")
            known = 0 <= field.value < count
            text = file.metadata[vocabulary.TOKENS].elements(field.value, field.value + 1) if known else []
            named.append(" ".join([role, str(field.value), *text]))
    if named:
        yield "Special tokens", ", ".join(named)
    added = [role for role, key in vocabulary.ADD_SPECIAL_TOKENS.items() if file.get(key) is True]
    if added:
        yield "Added to prompts", ", ".join(added)


def _quantization(file: GGUFFile) -> Lines:
    yield from _present(
        file,
        ("Quantized by", "general.quantized_by"),
        ("Imatrix file", "quantize.imatrix.file"),
        ("Imatrix dataset", "quantize.imatrix.dataset"),
        ("Imatrix chunks", "quantize.imatrix.chunks_count"),
        ("Imatrix entries", "quantize.imatrix.entries_count"),
        ("Datasets", "imatrix.datasets"),
        ("Chunks", "imatrix.chunk_count"),
        ("Chunk size", "imatrix.chunk_size"),
    )


def _present(file: GGUFFile, *lines: tuple[str, str]) -> Lines:
    for label, key in lines:
        field = file.metadata.get(key)
        if field is None:
            continue
        if field.type == ValueType.ARRAY:
            yield label, ", ".join(str(value) for value in field.elements(stop=_LISTED))
        else:
            yield label, short_value(field, characters=400)


def _string(file: GGUFFile, key: str) -> str | None:
    value = file.get(key)
    return value if isinstance(value, str) else None


def _string_count(file: GGUFFile, key: str) -> int:
    field = file.metadata.get(key)
    return field.count if field and field.element == ValueType.STRING else 0


def _range(field: Field) -> str:
    """A hyperparameter. Of an array with a value per layer, the smallest and largest."""
    if ValueType.STRING in {field.type, field.element}:
        return short_value(field)
    if field.element is None:
        return _grouped(_number(field.type, field.value))
    values = field.elements()
    ends = sorted({min(values), max(values)}) if values else []
    return " to ".join(_grouped(_number(field.element, value)) for value in ends) or "none"


def _begun(text: str, characters: int) -> str:
    shown = text[:characters]
    return shown if len(text) <= characters else f"{shown}... ({len(text):,} characters)"


def _number(kind: ValueType, value: Any) -> str:
    """A number for display: a float in the fewest digits that round-trip in its own precision."""
    if kind == ValueType.BOOL:
        return "true" if value else "false"
    if abs(value) < _WRITTEN_OUT and int(value) == value:
        return str(int(value))
    return _shortest(value) if kind == ValueType.FLOAT32 and math.isfinite(value) else str(value)


def _shortest(value: float) -> str:
    """A float32 in the fewest digits that round-trip."""
    texts = (f"{value:.{digits}g}" for digits in range(1, _FLOAT32_DIGITS + 1))
    return str(next((number for number in map(float, texts) if array("f", [number])[0] == value), value))


def _grouped(number: str) -> str:
    return f"{int(number):,}" if number.isdigit() else number
