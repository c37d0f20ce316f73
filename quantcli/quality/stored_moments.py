"""Second moments on disk: a directory with one safetensors file for each layer, and one for the output matrix.

Each file has what the rounding of its tensors needs, so that a layer can be read alone. Of a symmetric matrix only the part
on and above the diagonal is stored, row by row. The moments decide the bytes of a conversion: every machine writes the same
file from the same directory. An interrupted run continues after the last complete layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import FormatError
from quantcli.formats.output_file import OutputFile
from quantcli.quality.gradients import Gradients, OutputGradients
from quantcli.quality.moments import Inputs

Floats = NDArray[np.float32]

Found = dict[tuple[str, int], Inputs]

_KEY: Final = "quantcli.moments"
_GRADIENTS: Final = "gradients.safetensors"


@dataclass(frozen=True)
class StoredMoments:
    """A directory of second moments.

    made_from  what they are made from: the model's and the texts' digests, and the number of tokens. Files made from
               something else are refused
    """

    directory: Path
    made_from: Mapping[str, str]

    def path(self, layer: int) -> Path:
        """The file of a layer."""
        return self.directory / f"layer-{layer:05}.safetensors"

    def is_complete(self, layers: int) -> bool:
        """Whether there is a file for each of `layers` layers and for the output matrix: nothing is left to be run."""
        return all(self.path(layer).exists() for layer in range(layers + 1))

    def read(self, layer: int) -> Found | None:
        """The inputs of a layer's products; None where it is not stored yet.

        Raises:
            FormatError: for a damaged file, or one that is made from something else.
        """
        path = self.path(layer)
        if not path.exists():
            return None
        with _opened(path) as (file, document):
            self._check(path, document["made_from"])
            return _found(document["inputs"], file)

    def write(self, layer: int, found: Found) -> None:
        """Store the inputs of a layer's products."""
        groups: dict[int, tuple[Inputs, list[tuple[str, int]]]] = {}
        for key, inputs in found.items():
            groups.setdefault(id(inputs), (inputs, []))[1].append(key)
        arrays, described = {}, []
        for number, (inputs, keys) in enumerate(groups.values()):
            arrays[f"{number}.moment"] = inputs.moment[np.triu_indices(len(inputs.moment))]
            arrays[f"{number}.held_out"] = inputs.held_rows
            described.append({"products": keys, "count": inputs.count, "columns": len(inputs.moment)})
        self._save(self.path(layer), arrays, {"inputs": described})

    def read_gradients(self) -> Gradients | None:
        """The gradients, each read when it is asked for; None where they are not stored yet.

        Raises:
            FormatError: for a damaged file, or one that is made from something else.
        """
        path = self.directory / _GRADIENTS
        if not path.exists():
            return None
        with _opened(path) as (_, document):
            self._check(path, document["made_from"])
            return _StoredGradients(path, {str(name): int(count) for name, count in document["tokens"].items()})

    def write_gradients(self, gradients: Mapping[str, OutputGradients]) -> None:
        """Store the gradients."""
        arrays: dict[str, Floats] = {}
        for name, found in gradients.items():
            arrays[f"{name}.moment"] = found.moment[np.triu_indices(len(found.moment))]
            arrays[f"{name}.held_out"] = found.sketch
        counts = {name: found.count for name, found in gradients.items()}
        self._save(self.directory / _GRADIENTS, arrays, {"tokens": counts})

    def _save(self, path: Path, arrays: dict[str, Floats], described: dict[str, Any]) -> None:
        from safetensors.numpy import save

        self.directory.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"made_from": dict(self.made_from), **described})
        data = save(arrays, {_KEY: note})
        with OutputFile(path, len(data), overwrite=True) as file:
            file.write_at(memoryview(data), 0)

    def _check(self, path: Path, made_from: Any) -> None:
        for what, value in self.made_from.items():
            if made_from.get(what) != value:
                raise FormatError(path, f"made from another {what}", hint="give another directory, or remove this one")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The tensors of a file, and what it says of them. An error while they are read is one that names the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file, json.loads((file.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise FormatError(path, f"not a file of moments, or damaged: {error}") from error


@dataclass(frozen=True)
class _StoredGradients(Mapping[str, OutputGradients]):
    """The gradients in a file, by tensor.

    counts   of how many tokens each one's are
    """

    path: Path
    counts: Mapping[str, int]

    def __getitem__(self, name: str) -> OutputGradients:
        count = self.counts[name]
        with _opened(self.path) as (file, _):
            sketch = file.get_tensor(f"{name}.held_out")
            return OutputGradients(_symmetric(file.get_tensor(f"{name}.moment"), sketch.shape[1]), count, sketch)

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)


def _symmetric(upper: Floats, n: int) -> Floats:
    """The part on and above the diagonal of an n x n matrix, row by row, as a matrix."""
    matrix = np.zeros((n, n), np.float32)
    matrix[np.triu_indices(n)] = upper
    return matrix


def _found(described: Any, file: Any) -> Found:
    found: Found = {}
    for number, entry in enumerate(described):
        moment = _symmetric(file.get_tensor(f"{number}.moment"), int(entry["columns"]))
        inputs = Inputs(moment, int(entry["count"]), [file.get_tensor(f"{number}.held_out")])
        found |= {(str(name), int(index)): inputs for name, index in entry["products"]}
    return found
