"""AutoRound (`auto-round`): the tensors of GPTQ or AWQ, depending on `packing_format`.

Its own layout and that for GPTQModel store zero points unchanged, that for AutoGPTQ stores them minus one. Source:
`dynamic_import_quant_linear_for_packing` and `pack` of `qlinear_torch` and `qlinear_torch_zp` in auto-round.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Final

from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized import awq, gptq
from quantcli.formats.prequantized.companions import Companions, Method

_OWN: Final = "auto_round"
_QUANTIZED_INPUTS: Final = 8


def _take_gptq(companions: Companions, zero_offset: int) -> None:
    bits = None if companions.config.get("extra_config") else companions.setting("bits", int)
    gptq.take_modules(companions, bits, zero_offset)


_LAYOUTS: Final = MappingProxyType[str, Method](
    {
        "auto_awq": awq.take,
        "auto_gptq": partial(_take_gptq, zero_offset=1),
        "auto_round": partial(_take_gptq, zero_offset=0),
        "gptqmodel": partial(_take_gptq, zero_offset=0),
    }
)

_KERNELS: Final = ("exllamav2", "tritonv2")
"""Names of inference kernels that may follow the name of a layout."""


def take(companions: Companions) -> None:
    """Dequantize every module that has a `qweight`."""
    layout = companions.setting("packing_format", str, companions.setting("backend", str, "auto_round:auto_gptq"))
    parts = [part for part in layout.split(":") if part not in _KERNELS]
    name = parts[-1] if parts else ""
    if name not in _LAYOUTS or parts[:-1] not in ([], [_OWN]):
        raise UnsupportedError(
            f"config.json: auto-round in the layout {shown(layout)} is not supported, only {', '.join(_LAYOUTS)}",
            hint="Use the original checkpoint, or one that was exported in another format.",
        )
    if companions.setting("act_bits", int, 16) <= _QUANTIZED_INPUTS:
        raise UnsupportedError(
            f"config.json: auto-round with act_bits {companions.config['act_bits']} is not supported",
            hint="Use the original checkpoint.",
        )
    _LAYOUTS[name](companions)


METHODS: Final = MappingProxyType({"auto-round": take, "intel/auto-round": take})
