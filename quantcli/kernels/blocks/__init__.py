"""One file per family of block types, which lists the types' codecs in `CODECS`.

A type has one quantizer and one reader of its packed bytes. Dequantization and matrix products are derived from the reader.
Types with scalar codes also have a writer of codes, and their scale fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import CodeWriter, PackedReader, PlainReader
from quantcli.kernels.blocks.scale_fields import ScaleFields


@dataclass(frozen=True, slots=True)
class Codec:
    """The kernels of a block type.

    quantize(x, out)                        x float32 (rows, n), out uint8 (rows, bytes_per_row)
    quantize_weighted(x, importance, out)   importance float32 (n,); None where the importance matrix has no effect
    reader                                  unpacks the codes and scales of a block
    writer                                  packs codes into a block, keeping its scales; None for plain types and for
                                            lattice types, whose codes stand for several weights
    scales                                  the scale fields of a block; None likewise

    The first two are serial kernels that release the GIL and keep no state. `quantize` is None for the types that
    llama.cpp refuses to quantize without an importance matrix. All arrays are C-contiguous and n is a multiple of the block
    length. Callers check this, kernels do not.
    """

    quantize: Callable[..., None] | None
    quantize_weighted: Callable[..., None] | None
    reader: PlainReader | PackedReader
    writer: CodeWriter | None = None
    scales: ScaleFields | None = None


def codec(block_type: BlockType) -> Codec:
    """The codec of a type, from its family's module.

    Raises:
        ValueError: for a type that is only stored.
    """
    if block_type.family is None:
        raise ValueError(f"{block_type.name} cannot be quantized or dequantized")
    codecs: Mapping[str, Codec] = import_module(f"{__name__}.{block_type.family}").CODECS
    return codecs[block_type.name]
