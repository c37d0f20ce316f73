"""Split models: the names of the shards, their metadata, and the tensors that each shard holds.

Every shard is a GGUF file. The first shard has the metadata of the model. All shards have three keys: the number of the
shard, the number of shards, and the number of tensors. Source: `llama_split_path` in `llama.cpp`, and
`tools/gguf-split/gguf-split.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from quantcli.core.errors import UsageError, clipped
from quantcli.formats.gguf.spec import DEFAULT_ALIGNMENT, Field, Metadata, align, i32, replace_keys, u16
from quantcli.formats.leftovers import label_of
from quantcli.tensors.tensor import TensorInfo

NUMBER_KEY: Final = "split.no"
"""The number of the shard, from zero. In names and messages shards are counted from one."""
COUNT_KEY: Final = "split.count"
"""The number of shards. Zero in a merged model."""
TENSORS_KEY: Final = "split.tensors.count"
"""The number of tensors in all shards together."""
KEYS: Final = (NUMBER_KEY, COUNT_KEY, TENSORS_KEY)

MAX_SHARDS: Final = (1 << 16) - 1
"""The largest number that the type of `split.count` can hold."""

_NAME: Final = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_SUFFIX: Final = ".gguf"
_UNITS: Final[Mapping[str, int]] = MappingProxyType({"": 1, "K": 10**3, "M": 10**6, "G": 10**9})
_SIZE: Final = re.compile(rf"(?P<count>[0-9]{{1,18}})(?P<unit>[{''.join(_UNITS)}]?)B?", re.IGNORECASE)

Shards = Sequence[Sequence[TensorInfo]]
"""The tensors of each shard."""
Partition = Callable[[Sequence[TensorInfo]], Shards]
"""Distributes tensors over shards, in the same order."""


def shard_path(prefix: Path, number: int, count: int) -> Path:
    """The path of shard `number`, from one, of `count`. `prefix` is the path without the shard number and `.gguf`."""
    return prefix.with_name(f"{prefix.name}-{number:05}-of-{count:05}{_SUFFIX}")


def shard_paths(prefix: Path, count: int) -> list[Path]:
    """The paths of all shards."""
    return [shard_path(prefix, number, count) for number in range(1, count + 1)]


def shard_prefix(path: Path) -> Path:
    """The path of a shard or of a whole file, without the shard number and `.gguf`."""
    named = _NAME.fullmatch(path.name)
    return path.with_name(named["prefix"]) if named else path.with_name(path.name.removesuffix(_SUFFIX) or path.name)


def first_of(name: str) -> int | None:
    """The number of shards, if `name` is that of the first one of several."""
    named = _NAME.fullmatch(name)
    count = int(named["count"]) if named and int(named["number"]) == 1 else 0
    return count if 1 < count <= MAX_SHARDS else None


def is_temporary_of(prefix: str, label: str) -> bool:
    """Whether `label` is that of a temporary file (`leftovers.label_of`) of a split model with this prefix.

    The number of shards may be another one, since that of an interrupted run is not known.
    """
    named, whole = _NAME.fullmatch(label), shard_path(Path(prefix), 1, 1).name
    if label == label_of(prefix) or (named and named["prefix"] == prefix):
        return True
    return len(label) == len(label_of(whole)) < len(whole) and label.startswith(label_of(f"{prefix}-"))


def shard_metadata(metadata: Mapping[str, Field], number: int, count: int, tensors: int) -> Metadata:
    """The metadata of shard `number`, from one, of `count`, of a model with `metadata` and so many `tensors`."""
    own = dict(metadata) if number == 1 else {}
    # In the order of gguf-split, which sets the count last, when it is known.
    replace_keys(own, {NUMBER_KEY: u16(number - 1), TENSORS_KEY: i32(tensors), COUNT_KEY: u16(count)})
    return own


def merged_metadata(metadata: Mapping[str, Field]) -> Metadata:
    """The metadata of the file that gguf-split merges from shards, the first of which has `metadata`."""
    merged = dict(metadata)
    replace_keys(merged, {COUNT_KEY: u16(0)})
    return merged


def by_size(max_bytes: int) -> Partition:
    """Shards with at most `max_bytes` of tensor data, without the metadata. A larger tensor gets a shard of its own.

    The partition raises:
        UsageError: if the first tensor is larger, as in gguf-split: the first shard would be empty.
    """

    def partition(tensors: Sequence[TensorInfo]) -> Shards:
        shards: list[list[TensorInfo]] = [[]]
        filled = 0
        for info in tensors:
            # As gguf-split, which uses this alignment even if the file has another.
            size = align(info.nbytes, DEFAULT_ALIGNMENT)
            if filled + size > max_bytes:
                if not shards[-1]:
                    what = f"the first tensor, {info.name!r}, has {size} bytes, more than a shard may have ({max_bytes})"
                    raise UsageError(what, hint="allow larger shards")
                shards.append([])
                filled = 0
            shards[-1].append(info)
            filled += size
        return shards

    return partition


def by_count(max_tensors: int) -> Partition:
    """Shards with `max_tensors` tensors, the last one with the rest."""

    def partition(tensors: Sequence[TensorInfo]) -> Shards:
        return [tensors[start : start + max_tensors] for start in range(0, max(1, len(tensors)), max_tensors)]

    return partition


def parse_size(text: str) -> int:
    """Parse a size such as `500M`, `500MB` or `2G` to bytes. The units are powers of 1000, as in llama.cpp.

    Raises:
        UsageError: if it is not a size, or zero.
    """
    size = _SIZE.fullmatch(text)
    count = int(size["count"]) * _UNITS[size["unit"].upper()] if size else 0
    if not count:
        raise UsageError(f"{clipped(repr(text))} is not a size", hint="for example: 500M, 2G")
    return count
