"""One file per family of block types. Each holds what its types compute, and lists it in `CODECS`.

A type has one reader of its packed bytes, from which dequantizing and matrix products are derived, one quantizer, and where
its codes are scalars, a writer of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import CodeWriter, PackedReader, PlainReader


@dataclass(frozen=True, slots=True)
class Codec:
    """What a block type computes.

    quantize(x, out)                        x float32 (rows, n), out uint8 (rows, bytes_per_row)
    quantize_weighted(x, importance, out)   importance float32 (n,); None where importance changes nothing
    reader                                  how the weights of a block are read
    writer                                  how codes are packed under the scales of a block; None for plain types and for
                                            lattice types, whose codes stand for several weights

    The first two are serial kernels that release the GIL and keep no state. `quantize` is None for the types the reference
    refuses to make without an importance matrix. All arrays are C-contiguous and n is a multiple of the block length;
    callers check, kernels do not.
    """

    quantize: Callable[..., None] | None
    quantize_weighted: Callable[..., None] | None
    reader: PlainReader | PackedReader
    writer: CodeWriter | None = None


def codec(block_type: BlockType) -> Codec:
    """The functions of a type, from its family's file.

    Raises:
        ValueError: for a type that is only stored.
    """
    if block_type.family is None:
        raise ValueError(f"{block_type.name} is only stored: nothing converts it")
    codecs: Mapping[str, Codec] = import_module(f"{__name__}.{block_type.family}").CODECS
    return codecs[block_type.name]
