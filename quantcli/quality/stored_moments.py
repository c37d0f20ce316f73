"""Second moments on disk: a directory with one safetensors file for each layer, and one for the output matrix.

Each file has what the rounding of its tensors needs, so that a layer can be read alone. Of a symmetric matrix only the part
on and above the diagonal is stored, row by row. The moments decide the bytes of a conversion: every machine writes the same
file from the same directory. An interrupted run continues after the last complete layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import FormatError
from quantcli.formats.output_file import OutputFile
from quantcli.quality.moments import Inputs

Found = dict[tuple[str, int], Inputs]

_KEY: Final = "quantcli.moments"


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

    def read(self, layer: int) -> Found | None:
        """The inputs of a layer's products; None where it is not stored yet.

        Raises:
            FormatError: for a damaged file, or one that is made from something else.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(layer)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                document = json.loads((file.metadata() or {})[_KEY])
                self._check(path, document["made_from"])
                return _found(document["inputs"], file)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise FormatError(path, f"not a file of second moments, or damaged: {error}") from error

    def write(self, layer: int, found: Found) -> None:
        """Store the inputs of a layer's products."""
        from safetensors.numpy import save

        self.directory.mkdir(parents=True, exist_ok=True)
        groups: dict[int, tuple[Inputs, list[tuple[str, int]]]] = {}
        for key, inputs in found.items():
            groups.setdefault(id(inputs), (inputs, []))[1].append(key)
        arrays, described = {}, []
        for number, (inputs, keys) in enumerate(groups.values()):
            arrays[f"{number}.moment"] = inputs.moment[np.triu_indices(len(inputs.moment))]
            arrays[f"{number}.held_out"] = inputs.held_rows
            described.append({"products": keys, "count": inputs.count, "columns": len(inputs.moment)})
        note = json.dumps({"made_from": dict(self.made_from), "inputs": described})
        data = save(arrays, {_KEY: note})
        with OutputFile(self.path(layer), len(data), overwrite=True) as file:
            file.write_at(memoryview(data), 0)

    def _check(self, path: Path, made_from: Any) -> None:
        for what, value in self.made_from.items():
            if made_from.get(what) != value:
                raise FormatError(path, f"made from another {what}", hint="give another directory, or remove this one")


def _found(described: Any, file: Any) -> Found:
    found: Found = {}
    for number, entry in enumerate(described):
        n = int(entry["columns"])
        moment: NDArray[np.float32] = np.zeros((n, n), np.float32)
        moment[np.triu_indices(n)] = file.get_tensor(f"{number}.moment")
        inputs = Inputs(moment, int(entry["count"]), [file.get_tensor(f"{number}.held_out")])
        found |= {(str(name), int(index)): inputs for name, index in entry["products"]}
    return found
