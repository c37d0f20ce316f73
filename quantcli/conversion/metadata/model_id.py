"""Parse a model's name: organization, base name, size label, version, finetune.

The heuristics, their order and their patterns are those of `gguf-py/gguf/metadata.py` and `utility.py` of llama.cpp, so
that a converted file has the name that llama.cpp's converter gives it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from quantcli.tensors.tensor import TensorInfo

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_KEEPS_ITS_CASE: Final = re.compile(r"v\d+(?:\.\d+)*|\d.*")

_SUFFIXES: Final = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1.0, 1e-3, "K"))
"""The count above which a suffix applies, the factor, the suffix."""


@dataclass(frozen=True)
class ModelId:
    """The components of a model's name; None for those it does not have."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass
class _Word:
    """A word of the name between hyphens, and the components it may belong to."""

    text: str
    kinds: set[str] = field(default_factory=set)


def parse_model_id(model_id: str, parameters: int = 0) -> ModelId:
    """Parse a name such as `meta-llama/Llama-3.2-1B-Instruct`.

    `parameters` is the true number of weights, 0 if unknown. A size that is far from it is taken for part of the finetune's
    name, most often a context length. For an adapter `parameters` is negative: the base model has more weights than that.
    """
    if " " in model_id:
        return ModelId(name=model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    words = [_Word(text) for text in name.split("-") if text]
    for position, word in enumerate(words):
        _classify(word, position, parameters)
    _prefer_numeric_sizes(words)
    _mark_basename(words)

    def joined(kind: str, without: str = "") -> str | None:
        return "-".join(word.text for word in words if kind in word.kinds and without not in word.kinds) or None

    sizes = "-".join(dict.fromkeys(word.text for word in words if "size_label" in word.kinds)) or None
    finetune, version = joined("finetune"), joined("version", without="basename")
    telling = (sizes, finetune, version) != (None, None, None)
    return ModelId(
        name=name,
        organization=organization if slash and not organization.startswith(".") else None,
        basename=joined("basename") if telling else None,
        finetune=finetune,
        version=version,
        size_label=sizes,
    )


def _classify(word: _Word, position: int, parameters: int) -> None:
    if _VERSION.fullmatch(word.text):
        word.kinds.add("version")
    elif _TYPE.fullmatch(word.text):
        word.kinds.add("type")
        word.text = word.text.upper()
    elif position > 0 and _SIZE.fullmatch(word.text):
        _classify_size(word, parameters)
    elif position > 0 and _FINETUNE.fullmatch(word.text):
        word.kinds.add("type" if parameters < 0 and word.text.lower() == "lora" else "finetune")


def _classify_size(word: _Word, parameters: int) -> None:
    text = word.text.replace("_", ".")
    if text[-1].isdecimal():  # as in bloom-7b1
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if text[-2].isdecimal():
        text = text[:-1] + text[-1].upper()
    if parameters and _is_far_off(text, parameters):
        word.kinds.add("finetune")
        text = text[:-1] + text[-1].lower()
    else:
        word.kinds.add("size_label")
    word.text = text


def _is_far_off(size: str, parameters: int) -> bool:
    """Whether a size such as 7B differs from the number of weights by more than 7/8 of it.

    For an adapter: whether it is less than an eighth of the adapted weights. A size in words is never far off.
    """
    try:
        claimed = float(size[:-1]) * 1000.0 ** " KMBT".find(size[-1])
    except ValueError:
        return False
    return claimed < -parameters // 8 if parameters < 0 else abs(claimed - parameters) > 7 * parameters // 8


def _prefer_numeric_sizes(words: Sequence[_Word]) -> None:
    """Discard sizes in words where there is one in numbers."""
    sizes = [word for word in words if "size_label" in word.kinds]
    if any(letter.isdecimal() for word in sizes for letter in word.text):
        for word in sizes:
            if word.text.isalpha():
                word.kinds.discard("size_label")


def _mark_basename(words: Sequence[_Word]) -> None:
    """Mark the base name, which is at the front. Later words without a kind belong to the finetune."""
    at_start = True
    for word in words:
        if at_start and ((not word.kinds and word.text[0].isalpha()) or "version" in word.kinds):
            word.kinds.add("basename")
        else:
            at_start = False
            if not word.kinds:
                word.kinds.add("finetune")
    for word in reversed(words):  # a version at the end of the base name is not part of it
        if "basename" not in word.kinds or len(word.kinds) == 1:
            break
        word.kinds.discard("basename")


def title(name: str) -> str:
    """A name in title case. Versions, acronyms and words in mixed case stay."""
    words = name.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _KEEPS_ITS_CASE.fullmatch(word) else word for word in words)


def count_parameters(tensors: Sequence[TensorInfo]) -> tuple[int, str]:
    """The number of weights, and the size label: `1.1B`, or `8x7B` for a mixture of experts.

    The label of a mixture of experts counts one expert of each layer, as is usual in names of models.
    """
    experts = [tensor for tensor in tensors if "_exps." in tensor.name and len(tensor.shape) >= 3 and tensor.size]
    total = sum(tensor.size for tensor in tensors)
    if not experts:
        return total, rounded(total)
    counts = [tensor.shape[-2 if ".bias" in tensor.name else -3] for tensor in experts]
    one_path = total - sum(tensor.size - tensor.size // count for tensor, count in zip(experts, counts, strict=True))
    return total, f"{sum(counts) // len(counts)}x{rounded(one_path)}"


def rounded(count: int, digits: int = 2) -> str:
    """A count with at least `digits` digits and a suffix: 1.1B, 135M, 260K."""
    factor, suffix = next((factor, suffix) for above, factor, suffix in _SUFFIXES if count > above)
    scaled = count * factor
    decimals = max(digits - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{suffix}"
