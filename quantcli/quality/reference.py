"""Checks that a base is the right reference for a model, from the headers of both files, before anything is computed."""

from __future__ import annotations

from collections import Counter
from typing import Final

from quantcli.core.errors import ModelError, shown, warn
from quantcli.core.listing import listed
from quantcli.formats.gguf.arrays import PackedStrings
from quantcli.formats.gguf.spec import Field
from quantcli.formats.gguf.vocabulary import TOKENS
from quantcli.runner.load import LoadedModel
from quantcli.runner.model_file import ModelFile, metadata_value

HINT: Final = "the base is the same model in a better type"

Described = ModelFile | LoadedModel
"""A model with its path and metadata, opened or loaded."""


def check_reference(file: ModelFile, base: ModelFile) -> None:
    """Check that two files have the same model, in whatever types.

    Raises:
        ModelError: if their tokens, architectures, numbers of layers, or shapes of tensors differ.
    """
    for found, expected in ((_architecture(file), _architecture(base)), (_layers(file), _layers(base))):
        if found != expected:
            raise other_model(file, base, f"{found} and {expected}")
    check_vocabulary(file, base)
    shapes = [
        f"{name!r} has the shapes {tensor.shape} and {base.tensors[name].shape}"
        for name, tensor in file.tensors.items()
        if name in base.tensors and base.tensors[name].shape != tensor.shape
    ]
    if shapes:
        raise other_model(file, base, listed(shapes, most=1))


def check_vocabulary(file: Described, base: Described) -> None:
    """Check that two files have the same tokens.

    Raises:
        ModelError: if they differ, with the first difference.
    """
    if difference := _first_difference(file, base):
        raise ModelError(
            f"{file.path} and {base.path} have different vocabularies ({difference}): their predictions cannot be compared",
            hint=HINT,
        )


def warn_of_quantized_reference(base: ModelFile) -> None:
    """Warn of a base most of whose weights are in quantized types."""
    weights: Counter[str] = Counter()
    for tensor in base.tensors.values():
        weights[tensor.type.name if tensor.type.is_quantized else ""] += tensor.size
    total, plain = weights.total(), weights.pop("", 0)
    if 2 * plain < total:
        most, _ = weights.most_common(1)[0]
        what = f"{1 - plain / total:.0%} of its weights are in quantized types, most of them in {most}"
        warn(f"{base.path}: the base is itself quantized: {what}; divergences do not include its own error")


def _architecture(file: ModelFile) -> str:
    return f"architecture {metadata_value(file, 'general.architecture')!r}"


def _layers(file: ModelFile) -> str:
    architecture = metadata_value(file, "general.architecture")
    return f"{metadata_value(file, f'{architecture}.block_count')} layers"


def other_model(file: Described, base: Described, what: str) -> ModelError:
    """The error of a base that is another model."""
    return ModelError(f"{file.path} and {base.path} are different models: {what}", hint=HINT)


def _first_difference(file: Described, base: Described) -> str | None:
    """How the tokens of two files differ, or None."""
    first, second = file.metadata.get(TOKENS), base.metadata.get(TOKENS)
    if first is None or second is None:
        # Without tokens nothing can be evaluated: loading the tokenizer says so.
        return None if first is second else "one of them has none"
    if first.count != second.count:
        return f"{first.count} and {second.count} tokens"
    if _packed(first) is not None and _packed(first) == _packed(second):
        return None
    pairs = zip(first.elements(), second.elements(), strict=True)
    return next((f"token {index} is {shown(a)} and {shown(b)}" for index, (a, b) in enumerate(pairs) if a != b), None)


def _packed(field: Field) -> bytes | None:
    """All strings in the encoding of a file, which are compared at once. None where they are not encoded."""
    return field.content.data if isinstance(field.content, PackedStrings) else None
