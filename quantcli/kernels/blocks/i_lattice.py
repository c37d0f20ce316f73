"""IQ1, IQ2, IQ3: super-blocks of 256 weights whose groups of eight or four are rounded to the points of a codebook.

The codebooks are in `codebooks`. `lattice_unpack` reads the blocks of all seven types, `lattice_magnitude` makes those of
IQ2 and IQ3, `lattice_ternary` those of IQ1.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.lattice_magnitude import QUANTIZE, QUANTIZE_WEIGHTED
from quantcli.kernels.blocks.lattice_unpack import DEQUANTIZE

CODECS: Final = MappingProxyType(
    {name: Codec(QUANTIZE.get(name), QUANTIZE_WEIGHTED.get(name), unpack) for name, unpack in DEQUANTIZE.items()}
)
