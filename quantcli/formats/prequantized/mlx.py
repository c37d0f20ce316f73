"""MLX, as `mlx_lm.convert -q` writes it: integers or small floats packed into 32-bit words, the lowest bits first.

    X.weight         (..., outputs, words), U32
    X.scales         (..., outputs, groups); in the modes `mxfp4`, `mxfp8` and `nvfp4` FP8 stored as U8
    X.biases         (..., outputs, groups), only in mode `affine`: a weight is `code * scale + bias`
    X.global_scale   in mode `nvfp4`, optional: a scale for a whole matrix

config.json has group size, bits and mode under `quantization`, and settings of single modules there under their names.
Linear layers, embeddings and stacked experts have the same layout. transformers' method `metal` is `affine` under other
names. Source: `mlx.core.quantize`, `quantize_model` and `load_model` of mlx-lm, `fp_quantize.metal` of MLX,
`MetalQuantize` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import ELEMENT_TYPES, TYPES
from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp4 import nvfp4
from quantcli.formats.prequantized.mxfp4 import repacked
from quantcli.formats.prequantized.numbers import (
    FLOAT_TABLES,
    Floats,
    Packed,
    Plain,
    exponents,
    integers,
    with_rows,
    words_as_bytes,
)
from quantcli.formats.prequantized.scaled import Grid, Scaled, Shifted
from quantcli.tensors.tensor import MAX_COUNT, Tensor

_BITS: Final = range(1, 9)
_PLAIN: Final = ("F16", "BF16", "F32")
_TITLE: Final = "MLX"
_DEFAULTS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
)
"""Mode -> its default group size and bits."""


@dataclass(frozen=True)
class _Settings:
    """The quantization of a module. `bits` is None if it follows from the tensors."""

    mode: str
    group_size: int
    bits: int | None
    under_one_scale: bool = False


def take(companions: Companions) -> None:
    """Dequantize every module whose weight has `scales`."""
    _take(companions, ".biases")


def take_metal(companions: Companions) -> None:
    """As `take`, with the names of transformers' method `metal`."""
    _take(companions, ".qbiases")


def _take(companions: Companions, offsets: str) -> None:
    common = replace(_settings(companions, companions.config, ""), bits=None)
    for stem in companions.stems(".scales"):
        if f"{stem}.weight" in companions.tensors:
            settings = _own_settings(companions, stem)
            with companions.module(stem):
                biases = companions.find(f"{stem}{offsets}")
                # The common settings may not apply to modules that were already quantized before mlx-lm.
                if settings is None and biases is None:
                    settings = _told_by_scales(companions, stem)
                settings = settings or replace(common, mode="affine")
                companions.put(f"{stem}.weight", _weight(companions, stem, settings, biases))


def _own_settings(companions: Companions, stem: str) -> _Settings | None:
    """The settings of a module in the configuration, by its name with or without prefixes; None if it has none."""
    parts = stem.split(".")
    names = (".".join(parts[i:]) for i in range(len(parts)))
    found = next((name for name in names if isinstance(companions.config.get(name), Mapping)), None)
    return None if found is None else _settings(companions, companions.config[found], f"{found}.")


def _settings(companions: Companions, values: Mapping[str, Any], place: str) -> _Settings:
    """The settings in `values`, for one module or for all. `place` is their key in the configuration.

    Raises:
        ModelError: for an invalid setting.
        UnsupportedError: for a mode that is not supported.
    """
    mode = "affine" if values.get("mode") is None else values["mode"]
    if not isinstance(mode, str) or mode not in _DEFAULTS:
        raise UnsupportedError(
            f"config.json: {_TITLE}'s mode {shown(mode)} is not supported, only {', '.join(_DEFAULTS)}",
            hint="Use the original checkpoint.",
        )
    sizes = []
    for key, default, most in zip(("group_size", "bits"), _DEFAULTS[mode], (MAX_COUNT, _BITS[-1]), strict=True):
        size = default if values.get(key) is None else values[key]
        if type(size) is not int or not 0 < size <= most:
            raise companions.misconfigured(f"{place}{key}", size, f"a number from 1 to {most}")
        sizes.append(size)
    return _Settings(mode, sizes[0], sizes[1], values.get("global_scale") is True)


def _told_by_scales(companions: Companions, stem: str) -> _Settings:
    """The settings of a module without biases. The number of bits that share a scale tells the mode."""
    words, scales = companions.tensors[f"{stem}.weight"], companions.tensors[f"{stem}.scales"]
    under_scale = words.row_length * 32 // max(1, scales.row_length)
    for mode, (size, bits) in _DEFAULTS.items():
        if mode != "affine" and size * bits == under_scale and scales.type.name == "U8":
            return _Settings(mode, size, bits)
    raise ValueError(f"its biases are missing, and no mode without biases has {under_scale} bits for each scale")


def _weight(companions: Companions, stem: str, settings: _Settings, biases: Tensor | None) -> Tensor:
    words = companions.take(f"{stem}.weight", ("U32",))
    kinds = _PLAIN if settings.mode == "affine" else ("U8",)
    scales = companions.take(f"{stem}.scales", kinds, len(words.shape))
    size = settings.group_size
    bits, rest = divmod(words.row_length * 32, max(1, scales.row_length) * size)
    alike = len(words.shape) > 1 and words.size and scales.size and words.shape[:-1] == scales.shape[:-1]
    fits = alike and not rest and bits in _BITS
    if not fits or settings.bits not in (None, bits):
        wanted = f"{settings.bits} bits in " if settings.bits else ""
        raise ValueError(
            f"weight {list(words.shape)} and scales {list(scales.shape)} do not fit together with {wanted}groups of {size}"
        )
    if (biases is None) == (settings.mode == "affine"):
        raise ValueError(f"its biases are {'missing' if biases is None else 'there'}, in mode {settings.mode}")
    module = _Module(f"{stem}.weight", (*words.shape[:-1], scales.row_length * size), words, scales, bits, size)
    if biases is not None:
        return _affine(module, biases)
    if settings.mode == "nvfp4":
        return _nvfp4(module, companions.find(f"{stem}.global_scale"), settings.under_one_scale)
    return _SMALL_FLOATS[settings.mode](module)


@dataclass(frozen=True)
class _Module:
    """The tensors of a module, whose shapes were checked, and the name and shape of its weight."""

    name: str
    shape: tuple[int, ...]
    words: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def grid(self, source: Tensor) -> Grid:
        """The grid of scales or biases, each for a group of columns, in the shape of the scales."""
        return Grid(Plain(with_rows(source, source.row_length)), math.prod(self.shape[:-1]), 1, self.group_size)


def _affine(module: _Module, biases: Tensor) -> Tensor:
    if biases.type.name not in _PLAIN or biases.shape != module.scales.shape:
        wanted = f"{' or '.join(_PLAIN)} {list(module.scales.shape)}"
        raise ValueError(f"biases are {biases.type.name} {list(biases.shape)}, expected {wanted}")
    codes = Packed(module.words, module.bits, module.shape[-1], integers(module.bits))
    origin = f"{_TITLE} {module.bits}-bit"
    return Shifted(module.name, module.shape, TYPES["F32"], origin, codes, module.grid(module.scales), module.grid(biases))


def _mxfp4(module: _Module) -> Tensor:
    return repacked(module.name, module.shape, words_as_bytes(module.words), module.scales)


def _mxfp8(module: _Module) -> Tensor:
    codes = Packed(words_as_bytes(module.words), 8, module.shape[-1], FLOAT_TABLES["F8_E4M3"])
    scales = module.grid(exponents(module.scales))
    return Scaled(module.name, module.shape, TYPES["F32"], f"{_TITLE} MXFP8", codes, scales)


def _nvfp4(module: _Module, whole: Tensor | None, needs_whole: bool) -> Tensor:
    if whole is None and needs_whole:
        raise ValueError("its global_scale is missing, where config.json says that there is one")
    if whole is not None and whole.type.name != "F32":
        raise ValueError(f"global_scale is {whole.type.name}, expected F32")
    scales = replace(module.scales, type=ELEMENT_TYPES["F8_E4M3"])
    return nvfp4(module.name, words_as_bytes(module.words), scales, whole, _TITLE, _under_largest)


def _under_largest(scales: Floats, largest: Floats) -> Floats:
    """Scales times `largest` / (6 * 448): the product of the largest E2M1 and the largest E4M3."""
    return scales * (largest / np.float32(6 * 448))


_SMALL_FLOATS: Final[Mapping[str, Callable[[_Module], Tensor]]] = MappingProxyType({"mxfp4": _mxfp4, "mxfp8": _mxfp8})


METHODS: Final = MappingProxyType({"metal": take_metal, "mlx": take})
