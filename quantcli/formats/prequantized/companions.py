"""The tensors of a quantized checkpoint while they are sorted out: which belong together, what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quantcli.core.errors import ModelError, shown
from quantcli.core.listing import listed
from quantcli.formats.prequantized.strips import strip_cache
from quantcli.tensors.array_cache import ArrayCache
from quantcli.tensors.files import DataFile
from quantcli.tensors.tensor import StoredTensor, Tensor


@dataclass
class Companions:
    """The tensors of a checkpoint, its `quantization_config`, and what its method makes of them.

    A method takes the tensors it knows and puts weights in their places. What it finds wrong with a module it raises as
    ValueError within `module`; all of it is told at once by `result`.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    cache: ArrayCache = field(default_factory=strip_cache)
    _taken: set[str] = field(default_factory=set)
    _made: dict[str, Tensor] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)

    def stems(self, *suffixes: str) -> Iterator[str]:
        """What stands before one of `suffixes` in the names of tensors that nothing was made of yet."""
        for name in self.tensors:
            if name not in self._taken:
                yield from (name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix))

    def is_left(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name that nothing was made of yet."""
        return name in self.tensors and name not in self._taken

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name, if there is one; it is no longer part of the checkpoint."""
        found = self.tensors.get(name)
        if found is not None:
            self._taken.add(name)
        return found

    def take(self, name: str, kinds: Collection[str], dimensions: int | None = None) -> Tensor:
        """The tensor of that name, of one of the element types `kinds` and of so many `dimensions`.

        Raises:
            ValueError: if there is none, or another.
        """
        found = self.find(name)
        if found is None:
            raise ValueError(f"{name} is missing")
        if found.type.name not in kinds:
            raise ValueError(f"{name} is {found.type.name}, expected {' or '.join(kinds)}")
        if dimensions is not None and len(found.shape) != dimensions:
            raise ValueError(f"{name} has the shape {list(found.shape)}, expected {dimensions} dimensions")
        return found

    def expect(self, *suffixes: str) -> None:
        """Say that the small tensors whose names end so will be read: see `DataFile.expect`."""
        positions: dict[DataFile, list[int]] = {}
        for name, tensor in self.tensors.items():
            if name.endswith(suffixes) and isinstance(tensor, StoredTensor):
                positions.setdefault(tensor.file, []).append(tensor.offset)
        for file, places in positions.items():
            file.expect(places)

    def put(self, place: str, tensor: Tensor) -> None:
        """Have `tensor` where the checkpoint has the tensor called `place`."""
        if tensor.name != place and tensor.name in self.tensors:
            raise ValueError(f"there is {tensor.name} as well")
        self._taken.add(place)
        self._made[place] = tensor

    def drop(self, *suffixes: str) -> None:
        """Leave out the tensors whose names end so: scales of activations and caches, which no weight depends on."""
        self._taken.update(name for name in self.tensors if name.endswith(suffixes))

    @contextmanager
    def module(self, stem: str) -> Iterator[None]:
        """Collect what is wrong with the module `stem`."""
        try:
            yield
        except ValueError as error:
            self._faults.append(f"{stem}: {error}")

    def setting(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the configuration.

        Raises:
            ModelError: if it is of another kind.
        """
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.misconfigured(key, value, kind.__name__)
        return value

    def misconfigured(self, key: str, value: Any, expected: str) -> ModelError:
        """The error to raise where a value of the configuration is no good."""
        return ModelError(f"config.json: {key} of the quantization_config is {shown(value)}, expected {expected}")

    def result(self, method: str) -> dict[str, Tensor]:
        """The checkpoint with weights in place of what they were made of.

        Raises:
            ModelError: if anything was wrong; the message lists it.
        """
        faults = self._faults + [
            f"{name}: {tensor.type.name} numbers, without scales or what else belongs to them"
            for name, tensor in self.tensors.items()
            if _must_be_a_weight(name, tensor) and tensor.type.family is None and self.is_left(name)
        ]
        if faults:
            raise ModelError(
                f"the checkpoint's tensors are not as {method} has them: {listed(faults, most=5, separator='; ')}",
                hint="Is this config.json the checkpoint's own? Its quantization_config says how the tensors are stored.",
            )
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            if name in self._made:
                tensors[self._made[name].name] = self._made[name]
            elif name not in self._taken:
                tensors[name] = tensor
        return tensors


def _must_be_a_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is none of the masks and positions that a checkpoint may hold beside its weights."""
    return name.endswith(".weight") or (len(tensor.shape) > 2 and tensor.type.name in ("I8", "I16", "I32"))


Method = Callable[[Companions], None]
"""Takes what it knows of a checkpoint and puts weights in its place."""
