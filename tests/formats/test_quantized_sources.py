"""What docs/quantized-sources.md says is read and refused, row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_prequantized import NAMES, opened

from quantcli.core.block_types import ELEMENT_TYPES
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.formats.prequantized import METHODS, decode

PAGE = Path(__file__).parents[2] / "docs" / "quantized-sources.md"

READ: dict[str, tuple[str, ...]] = {
    "E4M3 or E5M2 under a scale": ("fp8-block", "fp8-block-ragged", "mxfp8", "fp8-usual-block"),
    "scales in F32, BF16": ("fp8-block", "fp8-e8m0-block", "fp8-e8m0-bytes"),
    "scales called": ("fp8-e8m0-named-scale",),
    "FP4 experts": ("fp8-fp4-experts", "fp8-fp4-float-scales"),
    "rows, and stacks of experts by columns": ("fbgemm-fp8", "fbgemm-fp8-experts"),
    "tensors in eight-bit floats without scales": ("fp8-plain",),
    "`_blocks` and `_scales`": ("mxfp4",),
    "`affine` of": tuple(f"mlx-{bits}-bit" for bits in (1, 2, 3, 4, 5, 6, 8)),
    "`mxfp4`, `mxfp8`, `nvfp4`": ("mlx-mxfp4", "mlx-mxfp8", "mlx-nvfp4", "mlx-nvfp4-under-one-scale"),
    "settings of single modules": ("mlx-mixed", "mlx-experts"),
    "2, 4 and 8 bits": ("metal",),
    "`pack-quantized` of": ("ct-int4-g32-sym", "ct-int4-g64-asym", "ct-int3-g32-asym", "ct-int4-channel", "ct-int4-block"),
    "`int-quantized`": ("ct-int8-channel", "ct-int8-group-asym"),
    "`float-quantized`": ("ct-fp8-tensor", "ct-fp8-channel", "ct-fp8-block", "ct-fp8-block-ragged"),
    "`nvfp4-pack-quantized`": ("ct-nvfp4", "ct-mxfp4", "ct-mxfp6", "ct-mxfp8"),
    "`transform_config` of weights only": ("ct-int4-g32-sym",),
    "`FP8`,": ("modelopt-fp8", "modelopt-fp8-blocks"),
    "`NVFP4`,": ("modelopt-nvfp4", "modelopt-nvfp4-experts"),
    "`MXFP8`,": ("modelopt-mxfp8", "modelopt-mxfp4"),
    "`W4A16_AWQ`,": ("modelopt-int4", "modelopt-int8-smooth"),
    "`pre_quant_scale`": ("modelopt-int4-awq", "modelopt-int8-smooth"),
    "2, 3, 4 and 8 bits, `gptq`": ("gptq-2", "gptq-3", "gptq-4", "gptq-8", "gptq-8-v2"),
    "`desc_act`": ("gptq-4-act-order", "gptq-4-ragged"),
    "`pack_dtype`": ("gptq-4-in-int8", "gptq-4-in-int16", "gptq-4-in-int64"),
    "4 bits, `gemm`": ("awq-gemm", "awq-gemv", "awq-symmetric"),
    "`auto_round`,": ("auto-round-own", "auto-round-gptq"),
    "NF4 and FP4": ("bnb-nf4", "bnb-fp4", "bnb-nf4-nested", "bnb-nf4-ragged", "bnb-nf4-in-bfloat16"),
    "int8 by rows": ("bnb-int8",),
    "Float8Tensor": ("torchao-fp8", "torchao-int8", "torchao-int4-in-bytes", "torchao-int4"),
    "`act_pre_scale`": ("torchao-int4-awq",),
    "`fp8_e4m3`,": ("quark-fp8", "quark-mxfp4"),
    "`bitlinear`": ("bitnet", "bitnet-auto"),
}
"""By how an option begins in the table, the fixtures that `test_prequantized.py` decodes for it."""

ONLINE = {"transform_config": {"config_groups": {"R4": {"apply": [{"location": "input"}]}}}}
OFFLINE = {"transform_config": {"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}}}

REFUSED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "other modes": [("mlx-4-bit", {"mode": "affine3"})],
    "`transform_config` of inputs": [("ct-int4-g32-sym", ONLINE)],
    "`marlin-24`": [("ct-int4-g32-sym", {"format": name}) for name in ("marlin-24", "sparse-bitmask", "sparse-24-bitmask")],
    "`NVFP4_SVD`": [("modelopt-nvfp4", {"quant_algo": "NVFP4_SVD"})],
    "`W4A8_AWQ`": [("modelopt-int4", {"quant_algo": "W4A8_AWQ"})],
    "`gptq_p`": [("gptq-4", {"checkpoint_format": name}) for name in ("gptq_p", "marlin", "bitblas")],
    "`rotation`": [("gptq-4", {"rotation": "random"})],
    "`adapter`": [("gptq-4", {"adapter": {"name": "lora"}})],
    "`gemv_fast`": [
        ("awq-gemm", {"version": "gemv_fast"}),
        ("awq-gemm", {"bits": 3}),
        ("awq-gemm", {"version": "llm-awq"}),
    ],
    "other layouts": [("auto-round-own", {"packing_format": "auto_round:llm_compressor"})],
    "`act_bits`": [("auto-round-own", {"act_bits": 8})],
    "other data types": [("quark-fp8", {"global_quant_config": {"weight": {"dtype": "mxfp4"}}})],
    "rotations and other": [("quark-fp8", {"algo_config": [{"name": "quarot"}]})],
    "`quantization_mode: online`": [("bitnet", {"quantization_mode": "online"}), ("bitnet", {"use_rms_norm": True})],
}
"""By how an option begins, fixtures and the settings that ask for it."""

IN_TENSORS = (
    "tensors in eight-bit floats with scales", "zero points of FP4", "int8 in a layout", "MXTensor", "`aqlm`",
)  # fmt: skip
"""Options that are told by tensors or are no option of a method: tests of their own below."""


def rows() -> list[tuple[str, str, str]]:
    """Method, option and verdict of each row of the table."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:] if not line.startswith("| ---")]
    return [(method, option, verdict) for method, option, verdict in cells]


def begun(option: str, names: Any) -> list[str]:
    return [name for name in names if option.startswith(name)]


def test_every_row_is_tested_and_every_test_has_a_row() -> None:
    told = {"read": (*READ,), "refused": (*REFUSED, *IN_TENSORS)}
    for _, option, verdict in rows():
        assert len(begun(option, told[verdict])) == 1, option
    for verdict, names in told.items():
        options = [option for _, option, found in rows() if found == verdict]
        assert all(any(option.startswith(name) for option in options) for name in names)
    assert set().union(*READ.values()) <= set(NAMES)


def test_every_method_is_named() -> None:
    named = {word for method, _, _ in rows() for word in method.replace(",", " ").split() if word.startswith("`")}
    assert named - {"(`quant_method`)"} == {f"`{method}`" for method in METHODS if method != "intel/auto-round"}


@pytest.mark.parametrize("option", REFUSED)
def test_what_is_refused(option: str) -> None:
    for name, settings in REFUSED[option]:
        tensors, config = opened(name)
        with pytest.raises(UnsupportedError, match="not supported"):
            decode(tensors, {**(config or {}), **settings})


def test_transforms_that_are_in_the_weights() -> None:
    tensors, config = opened("ct-int4-g32-sym")
    assert "m.weight" in decode(tensors, {**(config or {}), **OFFLINE})


def test_scales_without_a_method() -> None:
    with pytest.raises(ModelError, match=r"m\.weight: it has scales"):
        decode(opened("fp8-block")[0], None)


@pytest.mark.parametrize("name", ["ct-nvfp4", "ct-mxfp4", "ct-mxfp6"])
def test_small_floats_with_zero_points(name: str) -> None:
    tensors, config = opened(name)
    zeros = replace(tensors["m.weight_scale"], name="m.weight_zero_point")
    with pytest.raises(ModelError, match="its floats have zero points"):
        decode({**tensors, "m.weight_zero_point": zeros}, config)


def test_int8_in_a_layout_for_a_gpu() -> None:
    tensors, config = opened("bnb-int8")
    layout = replace(tensors["m.weight_format"], shape=(1,), offset=tensors["m.SCB"].offset + 3)  # type: ignore[call-arg]
    with pytest.raises(UnsupportedError, match="m: int8 weights in a GPU-specific layout"):
        decode({**tensors, "m.weight_format": layout}, config)


@pytest.mark.parametrize("kind", ["F8_E8M0", "F8_E4M3"])
def test_scales_of_torchao_in_an_order_that_nothing_tells(kind: str) -> None:
    tensors, config = opened("torchao-fp8")
    scales = replace(tensors["m._weight_scale"], type=ELEMENT_TYPES[kind])
    with pytest.raises(ModelError, match=f"m: m._weight_scale is {kind}, expected F32"):
        decode({**tensors, "m._weight_scale": scales}, config)


def test_other_methods() -> None:
    (methods,) = [option for method, option, _ in rows() if method == "other methods"]
    for method in methods.replace("`", "").split(", "):
        with pytest.raises(UnsupportedError, match=f"quantized with {method}, which is not supported"):
            decode({}, {"quant_method": method})
