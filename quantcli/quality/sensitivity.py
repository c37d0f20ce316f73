"""How sensitive a model's predictions are to the types of its tensors, measured on calibration text.

For each tensor: its error in each candidate type, on the inputs held out of the calibration. And the divergence of the
model's predictions where only this tensor is quantized, to one or two types. The model then runs from the tensor's layer
on, with the original weights of all later layers. The divergence of other types is scaled by their errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.encode import Encoder
from quantcli.conversion.execute import row_chunks
from quantcli.core.block_types import TYPES, BlockType
from quantcli.formats.gguf.spec import Metadata, layer_number
from quantcli.kernels import rows
from quantcli.kernels.scoring import compare
from quantcli.quality.calibrate import held_out_loss, sampled_errors
from quantcli.quality.moments import Inputs
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model
from quantcli.runner.model_file import ModelFile
from quantcli.tensors.tensor import Tensor, TensorInfo

Floats = NDArray[np.float32]

LOGITS: Final = 1 << 25
"""About how many logits of the base are held. A model with a large vocabulary is compared at fewer positions."""

WORST: Final = 1e3
"""The divergence of a type that breaks the model, in nats."""

SLOPES: Final = (0.5, 1.5)
"""The divergence grows about as the error does. Measured slopes of the logarithms beyond these are noise."""


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of one tensor.

    errors        type -> squared error of the outputs, in any unit
    divergences   type -> mean divergence of the predictions in nats, for the types that were measured
    """

    errors: Mapping[str, float]
    divergences: Mapping[str, float] = field(default_factory=dict)

    def loss(self, type: str) -> float:
        """The divergence that a type causes, in nats: measured, or scaled by the error."""
        if type in self.divergences:
            return self.divergences[type]
        error = self.errors[type]
        if error <= 0:
            return 0.0
        known = sorted((self.errors[name], name) for name in self.divergences if self.errors[name] > 0)
        if not known:
            return 0.0
        above = [pair for pair in known if pair[0] >= error]
        below = [pair for pair in known if pair[0] < error]
        if above and below:
            return self._between(error, below[-1], above[0])
        near, name = above[0] if above else below[-1]
        return self.divergences[name] * error / near

    def _between(self, error: float, below: tuple[float, str], above: tuple[float, str]) -> float:
        """Interpolated in logarithms."""
        low, high = self.divergences[below[1]], self.divergences[above[1]]
        if low <= 0 or high <= 0:
            return max(low, high) * error / (below[0] if low > 0 else above[0])
        slope = math.log(high / low) / math.log(above[0] / below[0])
        slope = min(max(slope, SLOPES[0]), SLOPES[1])
        return low * math.exp(slope * math.log(error / below[0]))


def completed(found: Mapping[str, Sensitivity]) -> dict[str, Sensitivity]:
    """The sensitivities, with divergences for tensors that have none: by the ratio of divergence to error of the same
    tensor in the layers before and after."""
    return {name: one if one.divergences else _interpolated(name, one, found) for name, one in found.items()}


def _interpolated(name: str, one: Sensitivity, found: Mapping[str, Sensitivity]) -> Sensitivity:
    layer, role = layer_number(name), name.split(".", 2)[-1]
    measured = sorted(
        (abs((layer_number(other) or 0) - (layer or 0)), other)
        for other, its in found.items()
        if its.divergences and layer_number(other) is not None and other.split(".", 2)[-1] == role
    )
    if layer is None or not measured:
        return one
    nearest = measured[0][0]
    ratios: dict[str, list[float]] = {}
    for distance, other in measured:
        if distance > nearest:
            break
        for type, divergence in found[other].divergences.items():
            if type in one.errors and found[other].errors[type] > 0:
                ratios.setdefault(type, []).append(max(divergence, 1e-12) / found[other].errors[type])
    return replace(
        one,
        divergences={type: one.errors[type] * float(np.exp(np.log(near).mean())) for type, near in ratios.items()},
    )


def output_error(tensor: Tensor, encoder: Encoder, kind: BlockType, inputs: Sequence[Inputs | None]) -> float:
    """The squared error of a tensor's outputs on the inputs that were held out; of its weights, where there are none."""
    if any(given is not None and given.held for given in inputs):
        return held_out_loss(tensor, kind, encoder, inputs)
    return float(np.square(sampled_errors(tensor, 0, kind, encoder)).sum())


@dataclass(frozen=True, eq=False)
class _Replaced:
    """A model file with other data for one tensor."""

    file: ModelFile
    info: TensorInfo
    data: NDArray[np.uint8]

    @property
    def path(self) -> Path:
        """See `ModelFile`."""
        return self.file.path

    @property
    def metadata(self) -> Metadata:
        """See `ModelFile`."""
        return self.file.metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `ModelFile`."""
        return {**self.file.tensors, self.info.name: self.info}

    def map(self, tensor: TensorInfo, /) -> NDArray[np.uint8]:
        """See `ModelFile`."""
        return self.data if tensor.name == self.info.name else self.file.map(self.file.tensors[tensor.name])


class Probe:
    """Measures how far predictions diverge where one tensor of a model is replaced. It follows the model layer by layer."""

    def __init__(self, model: Model, file: ModelFile, chunks: Sequence[Sequence[int]], threads: int) -> None:
        """`chunks` are the tokens whose predictions are compared."""
        self._model, self._file, self._chunks, self._threads = model, file, chunks, threads
        self._cache = Cache(model.sizes, max(map(len, chunks)), "f32")
        most = max(1, LOGITS // model.vocabulary // len(chunks))
        self._positions = [np.unique(np.linspace(0, len(chunk) - 1, most).astype(np.int64)) for chunk in chunks]
        self._layer, self._hidden = 0, [model.embed(chunk) for chunk in chunks]
        self._base = self._logits(model, 0, self._hidden)

    @np.errstate(all="ignore")
    def advance_to(self, layer: int) -> None:
        """Follow the model to the inputs of a layer; of the output norm, for the number of layers."""
        while self._layer < layer:
            for states in self._hidden:
                self._cache.rewind(0)
                self._model.run_layer(self._layer, states, self._cache)
            self._layer += 1

    def divergence(self, tensor: Tensor, encoder: Encoder, kind: BlockType) -> float:
        """The mean divergence in nats where a tensor is quantized. It is of the layer that was advanced to, or outside of
        all layers."""
        held = TYPES["F32" if tensor.type.name == "F32" else "F16"]
        data = _rounded(tensor, encoder, kind, held, self._threads)
        changed = TensorInfo(tensor.name, tensor.shape, held)
        model = self._model.with_tensor(_Replaced(self._file, changed, data), tensor.name)
        if tensor.name == self._model.embedding.name:
            logits = self._logits(model, 0, [model.embed(chunk) for chunk in self._chunks])
        else:
            logits = self._logits(model, self._layer, self._hidden)
        total = [float(_divergences(mine, base).sum()) for mine, base in zip(logits, self._base, strict=True)]
        mean = sum(total) / sum(map(len, self._positions))
        return min(max(mean, 0.0), WORST) if math.isfinite(mean) else WORST

    @np.errstate(all="ignore")
    def _logits(self, model: Model, first: int, hidden: Sequence[Floats]) -> list[Floats]:
        """The logits at the positions that are compared, for the inputs of layer `first`, which are not changed."""
        found = []
        for given, positions in zip(hidden, self._positions, strict=True):
            states = given.copy()
            self._cache.rewind(0)
            for layer in range(first, len(model.layers)):
                model.run_layer(layer, states, self._cache)
            found.append(model.logits(states[positions]))
        return found


def _divergences(logits: Floats, base: Floats) -> NDArray[np.float64]:
    count = len(logits)
    losses, tops, divergences = np.empty((2, count)), np.empty((2, count), np.int32), np.empty(count)
    compare(logits, base, np.zeros(count, np.int64), losses, tops, divergences)
    return divergences


def _rounded(tensor: Tensor, encoder: Encoder, kind: BlockType, held: BlockType, threads: int) -> NDArray[np.uint8]:
    """The weights of a tensor after a round trip through `kind`, stored in the float type `held`.

    They are not left in `kind`: products would then round activations too, which every quantized type does alike.
    """
    out = np.empty((tensor.rows, held.row_bytes(tensor.row_length)), np.uint8)

    def work(piece: tuple[int, int]) -> None:
        start, stop = piece
        raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
        tensor.read(start, stop, raw)
        data = np.empty((stop - start, kind.row_bytes(tensor.row_length)), np.uint8)
        encoder.encode(rows.dequantize(raw, tensor.type), start, data)
        values = np.ascontiguousarray(rows.dequantize(data, kind), held.layout)
        out[start:stop] = values.view(np.uint8)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, row_chunks(tensor.rows, tensor.row_length, tensor.shape[-2])):
            pass
    out.flags.writeable = False
    return out
