"""AWQ: `qweight`, `qzeros` and `scales` of each linear layer, 4 bits.

`gemm` packs eight outputs into an int32, in the order in which its kernel takes them apart; `gemv` packs eight inputs, in
order, and pads groups. Source: `WQLinear_GEMM` and `WQLinear_GEMV` of AutoAWQ.
"""

from __future__ import annotations

from typing import Final

from quantcli.formats.errors import UnsupportedError
from quantcli.formats.prequantized.companions import Companions, Method
from quantcli.formats.prequantized.gptq import SCALES, WORDS
from quantcli.formats.prequantized.numbers import Packed, Plain, integers
from quantcli.formats.prequantized.scaled import Grid, Scaled
from quantcli.formats.prequantized.strips import packed_across, turned_floats
from quantcli.formats.tensor import Tensor
from quantcli.kernels.types import TYPES

_BITS: Final = 4
_HELD: Final = 32 // _BITS
_ORIGIN: Final = "AWQ 4-bit"

_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word `gemm` keeps the first output, the second, ...: it packs outputs 0, 2, 4, 6, 1, 3, 5, 7."""


def take(companions: Companions) -> None:
    """Every module that has a `qweight`."""
    version = companions.setting("version", str, "gemm").lower()
    if version not in _VERSIONS:
        raise UnsupportedError(
            f"config.json: AWQ in the layout {version!r} is not supported, only {' and '.join(_VERSIONS)}",
            hint="Use the original checkpoint, or one that was saved for other kernels.",
        )
    bits = companions.setting("bits", int, companions.setting("w_bit", int, _BITS))
    if bits != _BITS:
        raise UnsupportedError(f"config.json: AWQ with {bits} bits is not supported, only {_BITS}")
    _VERSIONS[version](companions)


def _take_gemm(companions: Companions) -> None:
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            levels, zeros, scales = _parts(companions, stem)
            inputs, outputs, groups = levels.shape[0], levels.shape[1] * _HELD, scales.shape[0]
            if zeros.shape != (groups, levels.shape[1]) or scales.shape[1] != outputs or inputs % max(1, groups):
                raise _misfit(levels, zeros, scales)
            cache, table, width = companions.cache, integers(_BITS), inputs // groups
            weight = Scaled(
                f"{stem}.weight",
                (outputs, inputs),
                TYPES["F32"],
                _ORIGIN,
                packed_across(levels, _BITS, table, cache, _PLACES),
                Grid(turned_floats(scales, cache), outputs, 1, width),
                Grid(packed_across(zeros, _BITS, table, cache, _PLACES), outputs, 1, width),
            )
            companions.put(f"{stem}.qweight", weight)


def _take_gemv(companions: Companions) -> None:
    given = companions.setting("group_size", int, companions.setting("q_group_size", int, 128))
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            levels, zeros, scales = _parts(companions, stem)
            outputs, inputs = levels.shape[0], levels.shape[1] * _HELD
            width = inputs if given == -1 else given
            groups = inputs // width if width > 0 and inputs % width == 0 else 0
            held = zeros.shape[1] * _HELD
            if not groups or zeros.shape[0] != outputs or scales.shape != (outputs, held) or held < groups:
                raise _misfit(levels, zeros, scales)
            table = integers(_BITS)
            weight = Scaled(
                f"{stem}.weight",
                (outputs, inputs),
                TYPES["F32"],
                _ORIGIN,
                Packed(levels, _BITS, inputs, table),
                Grid(Plain(scales), outputs, 1, width),
                Grid(Packed(zeros, _BITS, held, table), outputs, 1, width),
            )
            companions.put(f"{stem}.qweight", weight)


_VERSIONS: Final[dict[str, Method]] = {"gemm": _take_gemm, "gemv": _take_gemv}


def _parts(companions: Companions, stem: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        companions.take(f"{stem}.qweight", WORDS, 2),
        companions.take(f"{stem}.qzeros", WORDS, 2),
        companions.take(f"{stem}.scales", SCALES, 2),
    )


def _misfit(levels: Tensor, zeros: Tensor, scales: Tensor) -> ValueError:
    shapes = f"qweight {list(levels.shape)}, qzeros {list(zeros.shape)} and scales {list(scales.shape)}"
    return ValueError(f"{shapes} do not fit together")
