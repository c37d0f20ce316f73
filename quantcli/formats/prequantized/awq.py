"""AWQ: `qweight`, `qzeros` and `scales` of each linear layer, 4 bits.

    gemm   packs eight outputs into an int32, in the order in which its kernel unpacks them
    gemv   packs eight inputs into an int32, in order, and pads the groups

Source: `WQLinear_GEMM` and `WQLinear_GEMV` of AutoAWQ.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Final

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions, Method
from quantcli.formats.prequantized.gptq import SCALES
from quantcli.formats.prequantized.numbers import Floats, Numbers, Packed, Plain, integers
from quantcli.formats.prequantized.scaled import Grid, Scaled
from quantcli.formats.prequantized.transposed import packed_along_rows, transposed_floats
from quantcli.tensors.tensor import Tensor

_WORDS: Final = ("I32",)
_BITS: Final = 4
_HELD: Final = 32 // _BITS

_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output -> its position in a word of `gemm`, which packs the outputs 0, 2, 4, 6, 1, 3, 5, 7."""


def take(companions: Companions) -> None:
    """Dequantize every module that has a `qweight`. Without zero points the zero point is 8."""
    named = [companions.setting(key, str) for key in ("version", "format", "checkpoint_format")]
    versions = [name.lower() for name in named if name is not None] or ["gemm"]
    foreign = next((version for version in versions if version not in _VERSIONS), None)
    if foreign is not None:
        raise UnsupportedError(
            f"config.json: AWQ in the layout {shown(foreign)} is not supported, only {' and '.join(_VERSIONS)}",
            hint="Use the original checkpoint, or one that was saved for other kernels.",
        )
    bits = companions.setting("bits", int, companions.setting("w_bit", int, _BITS))
    if bits != _BITS:
        raise UnsupportedError(f"config.json: AWQ with {bits} bits is not supported, only {_BITS}")
    _VERSIONS[versions[0]](companions)


def _take_gemm(companions: Companions) -> None:
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            codes, zeros, scales = _module_tensors(companions, stem)
            inputs, outputs, groups = codes.shape[0], codes.shape[1] * _HELD, scales.shape[0]
            fits = zeros is None or zeros.shape == (groups, codes.shape[1])
            if not fits or scales.shape[1] != outputs or not groups or inputs % groups:
                raise _misfit(codes, zeros, scales)
            cache, width = companions.cache, inputs // groups
            unpack = partial(packed_along_rows, bits=_BITS, table=_table(zeros), cache=cache, order=_PLACES)
            numbers = unpack(codes), transposed_floats(scales, cache), zeros if zeros is None else unpack(zeros)
            companions.put(f"{stem}.qweight", _weight(stem, (outputs, inputs), width, *numbers))


def _take_gemv(companions: Companions) -> None:
    given = companions.setting("group_size", int, companions.setting("q_group_size", int, 128))
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            codes, zeros, scales = _module_tensors(companions, stem)
            outputs, inputs = codes.shape[0], codes.shape[1] * _HELD
            width = inputs if given == -1 else given
            groups = inputs // width if width > 0 and inputs % width == 0 else 0
            held = scales.shape[1]
            fits = zeros is None or zeros.shape == (outputs, held // _HELD)
            if not fits or not groups or scales.shape[0] != outputs or held < groups or held % _HELD:
                raise _misfit(codes, zeros, scales)
            table = _table(zeros)
            points = zeros if zeros is None else Packed(zeros, _BITS, held, table)
            numbers = Packed(codes, _BITS, inputs, table), Plain(scales), points
            companions.put(f"{stem}.qweight", _weight(stem, (outputs, inputs), width, *numbers))


_VERSIONS: Final[dict[str, Method]] = {"gemm": _take_gemm, "gemv": _take_gemv}


def _module_tensors(companions: Companions, stem: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """The codes, zero points and scales of a module."""
    without_zeros = companions.setting("zero_point", bool, True) is False and f"{stem}.qzeros" not in companions.tensors
    return (
        companions.take(f"{stem}.qweight", _WORDS, 2),
        None if without_zeros else companions.take(f"{stem}.qzeros", _WORDS, 2),
        companions.take(f"{stem}.scales", SCALES, 2),
    )


def _weight(
    stem: str, shape: tuple[int, int], width: int, codes: Numbers, scales: Numbers, zeros: Numbers | None
) -> Tensor:
    """The weight of a module, with a scale and a zero point for each group of `width` columns of a row."""
    points = None if zeros is None else Grid(zeros, shape[0], 1, width)
    return Scaled(f"{stem}.weight", shape, TYPES["F32"], "AWQ 4-bit", codes, Grid(scales, shape[0], 1, width), points)


def _table(zeros: Tensor | None) -> Floats:
    """The value of each code: the code itself, or without zero points the code minus 8."""
    return integers(_BITS, 0 if zeros else 1 << (_BITS - 1))


def _misfit(codes: Tensor, zeros: Tensor | None, scales: Tensor) -> ValueError:
    shapes = f"qweight {list(codes.shape)}, qzeros {list(zeros.shape) if zeros else None} and scales {list(scales.shape)}"
    return ValueError(f"{shapes} do not fit together")


METHODS: Final = MappingProxyType({"awq": take})
