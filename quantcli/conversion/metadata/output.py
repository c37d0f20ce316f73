"""The metadata of a quantized file: those of the source with llama-quantize's changes, in its order.

A key that is set moves to the end, as in `gguf.cpp`, which removes and appends it. Files can only be equal byte for byte if
their keys are in the same order. Source: `llama_model_quantize_impl` of llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from quantcli.conversion.plan import file_order, whole_number
from quantcli.conversion.recipes import RECIPES, Recipe, find_recipe
from quantcli.core.errors import UsageError, clipped
from quantcli.formats.gguf import shards as gguf_shards
from quantcli.formats.gguf.spec import Field, Metadata, boolean, f32, replace_keys, string, u32
from quantcli.formats.imatrix import Imatrix
from quantcli.tensors.tensor import TensorInfo

QUANTIZATION_VERSION: Final = 2
"""The version of the packed types, `GGML_QNT_VERSION` of `ggml.h`."""

GUESSED: Final = 1024
"""Added to a file type that was guessed from the tensors. Source: `LLAMA_FTYPE_GUESSED`."""

_FILE_TYPE: Final = "general.file_type"


def quantized_metadata(
    source: Mapping[str, Field],
    recipe: Recipe,
    imatrix: Imatrix | None = None,
    *,
    overrides: Mapping[str, Field] = MappingProxyType({}),
    tensors: Sequence[TensorInfo] = (),
) -> Metadata:
    """The metadata of the file that `recipe` makes of a source with the metadata `source`.

    overrides   the user's entries, with which the plan must have been made too
    tensors     those of the source, to guess a file type that the recipe keeps and the source does not have
    """
    metadata = dict(source)
    file_type = _kept_file_type(source, tensors) if recipe.file_type is None else recipe.file_type
    replace_keys(metadata, {"general.quantization_version": u32(QUANTIZATION_VERSION), _FILE_TYPE: u32(file_type)})
    for key in gguf_shards.KEYS:
        metadata.pop(key, None)
    replace_keys(metadata, overrides)
    replace_keys(metadata, imatrix.metadata() if imatrix else {})
    return metadata


def parse_metadata_override(text: str) -> tuple[str, Field]:
    """Parse `KEY=TYPE:VALUE`, where the type is `int`, `float`, `bool` or `str`. An `int` becomes UINT32.

    Raises:
        UsageError: if the argument is not of this form, the value is not of the type, or the key describes a split.
    """
    key, separator, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    parse = _OVERRIDE_TYPES.get(kind)
    if not (key and separator and colon and parse):
        hint = f"the types are {', '.join(_OVERRIDE_TYPES)}"
        raise UsageError(f"{clipped(repr(text))} is not of the form KEY=TYPE:VALUE", hint=hint)
    if key in gguf_shards.KEYS:
        raise UsageError(f"{key} is set when a model is split, and cannot be overridden", hint="--split-max-size SIZE")
    try:
        return key, parse(value)
    except ValueError:
        raise UsageError(f"{clipped(repr(text))}: {clipped(repr(value))} is not a value of type {kind}") from None


def _kept_file_type(source: Mapping[str, Field], tensors: Iterable[TensorInfo]) -> int:
    """The file type of a source: its metadata's, else a guess from the most frequent tensor type.

    Of equally frequent types the one that reaches that count first in file order is taken, as in llama.cpp.
    """
    if _FILE_TYPE in source:
        return whole_number(source, _FILE_TYPE, 0)
    counts: Counter[str] = Counter()
    most = ""
    for tensor in sorted(tensors, key=lambda tensor: file_order(tensor.name)):
        counts[tensor.type.name] += 1
        if counts[tensor.type.name] > counts[most]:
            most = tensor.type.name
    try:
        guess = find_recipe(most).file_type
    except UsageError:
        guess = RECIPES["F32"].file_type
    return GUESSED + (guess or 0)


def _unsigned(text: str) -> Field:
    value = int(text)
    if not 0 <= value < 1 << 32:
        raise ValueError(text)
    return u32(value)


def _truth(text: str) -> Field:
    return boolean(("false", "true").index(text) == 1)


_OVERRIDE_TYPES: Final[Mapping[str, Callable[[str], Field]]] = MappingProxyType(
    {"int": _unsigned, "float": lambda text: f32(float(text)), "bool": _truth, "str": string}
)
