"""IQ1, IQ2, IQ3: super-blocks of 256 weights whose groups of eight or four are rounded to the points of a codebook.

The codebooks are in `codebooks`. `lattice_unpack` reads the blocks of all seven types, `lattice_magnitude` makes those of
IQ2 and IQ3, `lattice_ternary` those of IQ1.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from quantcli.kernels.blocks import Codec, lattice_magnitude, lattice_ternary
from quantcli.kernels.blocks.lattice_unpack import DEQUANTIZE

_WEIGHTED: Final = lattice_magnitude.QUANTIZE_WEIGHTED | lattice_ternary.QUANTIZE_WEIGHTED

CODECS: Final = MappingProxyType(
    {name: Codec(lattice_magnitude.QUANTIZE.get(name), _WEIGHTED[name], unpack) for name, unpack in DEQUANTIZE.items()}
)
