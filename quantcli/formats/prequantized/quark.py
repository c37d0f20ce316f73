"""Quark (AMD): FP8 and int8 with a scale for a tensor or for each row, and MXFP4.

`X.weight` with `X.weight_scale`. MXFP4 has two codes in a byte, the first in the lower half, and an exponent (E8M0 as U8)
for each 32. In the configuration:

    global_quant_config                           the data types of all modules
    layer_quant_config, layer_type_quant_config   those of some modules
    algo_config                                   algorithms applied before quantization

Source: `RealQuantizer`, `create_pack_method` and `QParamsLinearWithRotation` of amd-quark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp8 import UNUSED, WEIGHTS, scaled_bytes
from quantcli.formats.prequantized.mxfp4 import MXFP4, repacked
from quantcli.formats.prequantized.numbers import INTEGERS, SCALES, exponents
from quantcli.formats.prequantized.scaled import Decoded, Grid, scale_grid
from quantcli.tensors.tensor import Tensor

_TITLE: Final = "quark"
_BYTES: Final = ("fp8_e4m3", "fp8_e5m2", "int8")
_SCHEMES: Final = ("per_tensor", "per_channel")
_IN_WEIGHTS: Final = ("awq", "smooth", "gptq", "gptaq", "autosmoothquant", "qronos")
"""Algorithms that change only the weights, and nothing during inference."""


def take(companions: Companions) -> None:
    """Dequantize every weight that has a `weight_scale`."""
    _refuse_other_algorithms(companions)
    for settings in _described(companions):
        _refuse_other_types(settings)
    for name in companions.tensors:
        if name.endswith(".weight") and f"{name}_scale" in companions.tensors:
            with companions.module(name):
                companions.put(name, _weight(companions, name))
    companions.drop(*UNUSED, ".input_zero_point", ".output_zero_point")


def _refuse_other_algorithms(companions: Companions) -> None:
    """Raise UnsupportedError for algorithms that change activations during inference."""
    algorithms = companions.config.get("algo_config")
    for algorithm in algorithms if isinstance(algorithms, list) else [] if algorithms is None else [algorithms]:
        name = algorithm.get("name") if isinstance(algorithm, Mapping) else algorithm
        if not isinstance(name, str) or name.lower() not in _IN_WEIGHTS:
            raise UnsupportedError(
                f"config.json: {_TITLE} with the algorithm {shown(name)} is not supported, only {', '.join(_IN_WEIGHTS)}",
                hint="Use the original checkpoint.",
            )


def _described(companions: Companions) -> Iterator[Any]:
    """The settings of weights in the configuration, of all modules and of some."""
    sections = [companions.setting("global_quant_config", dict, {})]
    for key in ("layer_quant_config", "layer_type_quant_config"):
        sections += companions.setting(key, dict, {}).values()
    for section in sections:
        if isinstance(section, Mapping) and section.get("weight") is not None:
            yield section["weight"]


def _refuse_other_types(settings: Any) -> None:
    """Raise UnsupportedError for weights of another data type or scheme than the supported ones."""
    told = settings if isinstance(settings, Mapping) else {"dtype": settings}
    found = {key: told.get(key) for key in ("dtype", "qscheme", "scale_format", "group_size")}
    plain = found["dtype"] in _BYTES and found["qscheme"] in _SCHEMES
    small = found == {"dtype": "fp4", "qscheme": "per_group", "scale_format": "e8m0", "group_size": MXFP4.block_length}
    if not (plain or small):
        raise UnsupportedError(
            f"config.json: {_TITLE} with weights of {shown({k: v for k, v in found.items() if v is not None})} is not "
            f"supported, only {', '.join(_BYTES)} {' or '.join(_SCHEMES)}, and fp4 in groups of 32 with e8m0 scales",
            hint="Use the original checkpoint.",
        )


def _weight(companions: Companions, name: str) -> Decoded:
    weight = companions.take(name, ("I8", "U8", *WEIGHTS))
    if len(weight.shape) < 2 or not weight.size:
        raise ValueError(f"the shape {list(weight.shape)} is not that of a matrix")
    scales = companions.take(f"{name}_scale", SCALES)
    zeros = companions.find(f"{name}_zero_point")
    if weight.type.name != "U8":
        if scales.type.name == "U8":
            raise ValueError(f"{scales.name} is U8, expected floats")
        return scaled_bytes(weight, scale_grid(scales, weight.shape), f"{_TITLE} {_kind(weight)}", _grid_of(zeros, weight))
    shape = (*weight.shape[:-1], weight.shape[-1] * 2)
    if exponents(scales).type.name != "F8_E8M0" or scales.shape != (*shape[:-1], shape[-1] // MXFP4.block_length):
        raise ValueError(f"{scales.type.name} scales of shape {list(scales.shape)} do not fit FP4 weights {list(shape)}")
    if zeros is not None:
        raise ValueError("its floats have zero points, which is not supported")
    return repacked(name, shape, weight, scales)


def _kind(weight: Tensor) -> str:
    return "int8" if weight.type.name == "I8" else "FP8"


def _grid_of(zeros: Tensor | None, weight: Tensor) -> Grid | None:
    if zeros is None:
        return None
    if zeros.type.name not in INTEGERS:
        raise ValueError(f"the zero points are {zeros.type.name}")
    return scale_grid(zeros, weight.shape)


METHODS: Final = MappingProxyType({"quark": take})
