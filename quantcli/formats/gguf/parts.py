"""One model in several GGUF files: what its parts are called, what their metadata say, which tensors each holds.

Every part is a GGUF file. The first has the metadata of the model; all have three keys that say which part it is, of how
many parts and tensors. Source: `llama_split_path` in `llama.cpp`, and `tools/gguf-split/gguf-split.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from quantcli.core.errors import UsageError, clipped
from quantcli.formats.gguf.spec import DEFAULT_ALIGNMENT, Field, Metadata, align, i32, replace_keys, u16
from quantcli.tensors.tensor import TensorInfo

NUMBER_KEY: Final = "split.no"
"""Which part a file is, counted from zero; in names and messages parts are counted from one."""
COUNT_KEY: Final = "split.count"
"""How many parts there are. In a model that was merged it is zero."""
TENSORS_KEY: Final = "split.tensors.count"
"""How many tensors all parts have together."""
KEYS: Final = (NUMBER_KEY, COUNT_KEY, TENSORS_KEY)

MAX_PARTS: Final = (1 << 16) - 1
"""What the type of `split.count` can count."""

_NAME: Final = re.compile(r"(?P<prefix>.+)-\d{5}-of-\d{5}\.gguf")
_SUFFIX: Final = ".gguf"
_UNITS: Final[Mapping[str, int]] = MappingProxyType({"": 1, "K": 10**3, "M": 10**6, "G": 10**9})
_SIZE: Final = re.compile(rf"(?P<count>[0-9]{{1,18}})(?P<unit>[{''.join(_UNITS)}]?)", re.IGNORECASE)

Parts = Sequence[Sequence[TensorInfo]]
"""The tensors of each part."""
Partition = Callable[[Sequence[TensorInfo]], Parts]
"""Decides which tensors go into which part; their order stays."""


def part_path(prefix: Path, number: int, count: int) -> Path:
    """The path of part `number`, from one, of a model whose parts' names begin with `prefix`."""
    return prefix.with_name(f"{prefix.name}-{number:05}-of-{count:05}{_SUFFIX}")


def part_paths(prefix: Path, count: int) -> list[Path]:
    """The paths of all parts."""
    return [part_path(prefix, number, count) for number in range(1, count + 1)]


def part_prefix(path: Path) -> Path:
    """What the names of a model's parts begin with: the path of a part, or of a whole file, without its ending."""
    named = _NAME.fullmatch(path.name)
    return path.with_name(named["prefix"]) if named else path.with_name(path.name.removesuffix(_SUFFIX) or path.name)


def part_metadata(metadata: Mapping[str, Field], number: int, count: int, tensors: int) -> Metadata:
    """The metadata of part `number`, from one, of a model with `metadata` and so many parts and tensors."""
    own = dict(metadata) if number == 1 else {}
    # In the order in which gguf-split leaves them: it sets the count last, when it is known.
    replace_keys(own, {NUMBER_KEY: u16(number - 1), TENSORS_KEY: i32(tensors), COUNT_KEY: u16(count)})
    return own


def merged_metadata(metadata: Mapping[str, Field]) -> Metadata:
    """The metadata of the file that gguf-split merges from parts of which the first has `metadata`."""
    merged = dict(metadata)
    replace_keys(merged, {COUNT_KEY: u16(0)})
    return merged


def by_size(max_bytes: int) -> Partition:
    """Parts with at most `max_bytes` of tensor data, the metadata not counted. A tensor that is larger gets its own part.

    The partition raises:
        UsageError: if the first tensor is larger, as gguf-split does: nothing would be left for the first part.
    """

    def partition(tensors: Sequence[TensorInfo]) -> Parts:
        parts: list[list[TensorInfo]] = [[]]
        filled = 0
        for info in tensors:
            # gguf-split counts so whatever the file's own alignment is.
            size = align(info.nbytes, DEFAULT_ALIGNMENT)
            if filled + size > max_bytes:
                if not parts[-1]:
                    what = f"the first tensor, {info.name!r}, has {size} bytes, more than a part may have ({max_bytes})"
                    raise UsageError(what, hint="allow larger parts")
                parts.append([])
                filled = 0
            parts[-1].append(info)
            filled += size
        return parts

    return partition


def by_count(max_tensors: int) -> Partition:
    """Parts with `max_tensors` tensors, the last with what is left."""

    def partition(tensors: Sequence[TensorInfo]) -> Parts:
        return [tensors[start : start + max_tensors] for start in range(0, max(1, len(tensors)), max_tensors)]

    return partition


def parse_size(text: str) -> int:
    """Read a size such as `500M` or `2G`, in powers of 1000 as llama.cpp takes it, to bytes.

    Raises:
        UsageError: if it is none, or zero.
    """
    size = _SIZE.fullmatch(text)
    count = int(size["count"]) * _UNITS[size["unit"].upper()] if size else 0
    if not count:
        raise UsageError(f"{clipped(repr(text))} is not a size", hint="for example: 500M, 2G")
    return count
