"""IQ1, IQ2, IQ3: super-blocks of 256 weights whose groups of eight or four are rounded to the points of a codebook.

The codebooks are in `codebooks`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.lattice_unpack import DEQUANTIZE

CODECS: Final = MappingProxyType({name: Codec(None, None, dequantize) for name, dequantize in DEQUANTIZE.items()})
