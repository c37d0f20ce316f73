"""The tensors of a quantized checkpoint, while a method groups them by module and replaces them by weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quantcli.core.errors import ModelError, shown
from quantcli.core.listing import listed
from quantcli.formats.prequantized.transposed import block_cache
from quantcli.tensors.array_cache import ArrayCache
from quantcli.tensors.files import DataFile
from quantcli.tensors.tensor import StoredTensor, Tensor


@dataclass
class Companions:
    """The tensors of a checkpoint, its `quantization_config`, and the weights that its method makes of them.

    A method takes the tensors it knows and puts weights in their places. It raises a fault of a module as ValueError within
    `module`. `result` reports all faults at once.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    cache: ArrayCache = field(default_factory=block_cache)
    _taken: set[str] = field(default_factory=set)
    _made: dict[str, Tensor] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)

    def stems(self, *suffixes: str) -> Iterator[str]:
        """The names of remaining tensors that end with one of `suffixes`, without the suffix."""
        for name in self.tensors:
            if name not in self._taken:
                yield from (name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix))

    def is_left(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name that was not taken yet."""
        return name in self.tensors and name not in self._taken

    def find(self, name: str) -> Tensor | None:
        """Take the tensor of that name from the checkpoint; None if there is no such tensor."""
        found = self.tensors.get(name)
        if found is not None:
            self._taken.add(name)
        return found

    def take(self, name: str, kinds: Collection[str], dimensions: int | None = None) -> Tensor:
        """Take the tensor of that name, of one of the element types `kinds` and with so many `dimensions` (None: any).

        Raises:
            ValueError: if there is no such tensor.
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
        """Announce that the small tensors with these suffixes will be read: see `DataFile.expect`."""
        positions: dict[DataFile, list[int]] = {}
        for name, tensor in self.tensors.items():
            if name.endswith(suffixes) and isinstance(tensor, StoredTensor):
                positions.setdefault(tensor.file, []).append(tensor.offset)
        for file, places in positions.items():
            file.expect(places)

    def put(self, place: str, tensor: Tensor) -> None:
        """Put `tensor` in the place of the checkpoint's tensor `place`."""
        if tensor.name != place and tensor.name in self.tensors:
            raise ValueError(f"there is {tensor.name} as well")
        self._taken.add(place)
        self._made[place] = tensor

    def drop(self, *suffixes: str) -> None:
        """Drop the tensors with these suffixes: scales of activations and of the KV cache, which no weight depends on."""
        self._taken.update(name for name in self.tensors if name.endswith(suffixes))

    @contextmanager
    def module(self, stem: str) -> Iterator[None]:
        """Collect a ValueError as a fault of the module `stem`."""
        try:
            yield
        except ValueError as error:
            self._faults.append(f"{stem}: {error}")

    def setting(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the configuration.

        Raises:
            ModelError: if it is of another type.
        """
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.misconfigured(key, value, kind.__name__)
        return value

    def misconfigured(self, key: str, value: Any, expected: str) -> ModelError:
        """The error for an invalid value of the configuration."""
        return ModelError(f"config.json: {key} of the quantization_config is {shown(value)}, expected {expected}")

    def result(self, method: str) -> dict[str, Tensor]:
        """The tensors of the checkpoint, with weights in place of the tensors they were made of.

        Raises:
            ModelError: if there were faults. The message lists them.
        """
        faults = self._faults + [
            f"{name}: {tensor.type.name} numbers without scales or other tensors that they need"
            for name, tensor in self.tensors.items()
            if _must_be_a_weight(name, tensor) and tensor.type.family is None and self.is_left(name)
        ]
        if faults:
            raise ModelError(
                f"the checkpoint's tensors do not have the layout of {method}: {listed(faults, most=5, separator='; ')}",
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
    """Whether a tensor is a weight, rather than a mask or positions, which a checkpoint may have too."""
    return name.endswith(".weight") or (len(tensor.shape) > 2 and tensor.type.name in ("I8", "I16", "I32"))


Method = Callable[[Companions], None]
"""A quantization method: replaces its tensors in a checkpoint by weights."""
