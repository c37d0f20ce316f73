"""BitNet: ternary weights -1, 0 and 1, four to a byte, with one scale.

    X.weight         (outputs / 4, inputs), the code plus one: bits 0 and 1 of each byte are the first quarter of the rows,
                     bits 2 and 3 the second, and so on
    X.weight_scale   codes are divided by it; with the `linear_class` `autobitlinear` they are multiplied

Source: `dequant_bitnet` of llama.cpp's converter, `unpack_weights`, `BitLinear` and `AutoBitLinear` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import FLOATS, integers, read_floats, read_raw, with_rows
from quantcli.formats.prequantized.scaled import Decoded
from quantcli.tensors.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUARTERS: Final = 4
_LEVELS: Final = integers(2, 1)
_INVERSE: Final = {"bitlinear": True, "autobitlinear": False}
"""`linear_class` -> whether codes are divided by their scale."""

_WHILE_RUNNING: Final = {"quantization_mode": "online", "use_rms_norm": True}


def take(companions: Companions) -> None:
    """Dequantize every weight with a scale."""
    kind = companions.setting("linear_class", str, "bitlinear")
    if kind not in _INVERSE:
        raise companions.misconfigured("linear_class", kind, " or ".join(_INVERSE))
    for option, value in _WHILE_RUNNING.items():
        if companions.config.get(option) == value:
            raise UnsupportedError(
                f"config.json: BitNet with {option} {value} is not supported: activations are transformed during inference",
                hint="Use the original checkpoint.",
            )
    for stem in companions.stems("_scale"):
        with companions.module(stem):
            codes = companions.take(stem, ("U8",), 2)
            scale = companions.take(f"{stem}_scale", FLOATS)
            if scale.size != 1:
                raise ValueError(f"{scale.size} scales, expected 1")
            shape = (codes.shape[0] * _QUARTERS, codes.shape[1])
            companions.put(stem, _Ternary(stem, shape, TYPES["F32"], "BitNet", codes, with_rows(scale, 1), _INVERSE[kind]))


@dataclass(frozen=True)
class _Ternary(Decoded):
    """Ternary rows. A byte has the codes of four rows, which are a quarter of the weight's rows apart."""

    codes: Tensor
    scale: Tensor
    inverse: bool

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        values, scale = out.view(np.float32), read_floats(self.scale, 0, 1)
        height = self.codes.shape[0]
        while start < stop:
            quarter, row = divmod(start, height)
            count = min(stop - start, height - row)
            codes = read_raw(self.codes, row, row + count).view(np.uint8) >> (2 * quarter) & 3
            with np.errstate(all="ignore"):
                ternary = np.take(_LEVELS, codes)
                values[:count] = ternary / scale if self.inverse else ternary * scale
            start, values = start + count, values[count:]


METHODS: Final = MappingProxyType({"bitnet": take})
