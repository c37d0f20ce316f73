"""The table of GGUF tensor types and their block layouts: the only definition of these facts.

The module imports nothing heavy, so that commands that only read headers start fast. A row has the type's name, its id in a
GGUF file, the weights per block, the layout of a block, the type of the activations in its dot product, and its module
under `blocks/`. Source: `ggml.h` and `ggml-common.h` of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

SUPER_BLOCK: Final = 256
"""Weights in a super-block of the K, IQ and ternary families."""

Part = tuple[str, str] | tuple[str, str, int]
"""A field of a packed block: its name, the NumPy type code of its items (`<f2`: the digit is the item size), the count."""


@dataclass(frozen=True, eq=False)
class BlockType:
    """One storage type of a tensor.

    packing      the fields of a block of `block_length` weights, in order; for plain types the NumPy type code of a number
    activation   the name of the type of the other operand in its dot product; None where there is none
    family       the module `quantcli.kernels.blocks.<family>` that quantizes and dequantizes it; None for a type that is
                 only stored
    """

    name: str
    id: int
    block_length: int
    packing: str | tuple[Part, ...]
    activation: str | None = None
    family: str | None = None

    @cached_property
    def layout(self) -> np.dtype[Any]:
        """The NumPy dtype of one block: structured for packed types."""
        import numpy as np

        return np.dtype(self.packing if isinstance(self.packing, str) else list(self.packing))

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        parts: tuple[Part, ...] = (("", self.packing),) if isinstance(self.packing, str) else self.packing
        return sum(int(code.lstrip("<fiuV")) * math.prod(count) for _, code, *count in parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight (bpw)."""
        return 8 * self.block_bytes / self.block_length

    @property
    def is_quantized(self) -> bool:
        """True for packed types: those with more than one weight per block."""
        return self.block_length > 1

    def offset(self, field: str) -> int:
        """The byte offset of `field` in a block; -1 if the layout has no such field."""
        fields: Mapping[str, Any] = self.layout.fields or {}
        return int(fields[field][1]) if field in fields else -1

    def row_bytes(self, length: int) -> int:
        """Bytes of a row of `length` weights.

        Raises:
            ValueError: if `length` is not a multiple of the block length.
        """
        if length % self.block_length:
            raise ValueError(f"a row of {length} is not divisible by the {self.name} block of {self.block_length}")
        return length // self.block_length * self.block_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        # Types are compared by identity, so unpickling returns the row of the table, in any process.
        return _known, (self.name,)

    def __repr__(self) -> str:
        return f"BlockType({self.name})"


def _known(name: str) -> BlockType:
    return TYPES.get(name) or OPAQUE_TYPES[name]


_HALF, _FLOAT, _U8, _I8, _U16, _I16 = "<f2", "<f4", "u1", "i1", "<u2", "<i2"
_K = SUPER_BLOCK

_TABLE: Final = (
    BlockType("F32", 0, 1, _FLOAT, "F32", "floats"),
    BlockType("F16", 1, 1, _HALF, "F16", "floats"),
    BlockType("Q4_0", 2, 32, (("d", _HALF), ("qs", _U8, 16)), "Q8_0", "legacy"),
    BlockType("Q4_1", 3, 32, (("d", _HALF), ("m", _HALF), ("qs", _U8, 16)), "Q8_1", "legacy"),
    BlockType("Q5_0", 6, 32, (("d", _HALF), ("qh", _U8, 4), ("qs", _U8, 16)), "Q8_0", "legacy"),
    BlockType("Q5_1", 7, 32, (("d", _HALF), ("m", _HALF), ("qh", _U8, 4), ("qs", _U8, 16)), "Q8_1", "legacy"),
    BlockType("Q8_0", 8, 32, (("d", _HALF), ("qs", _I8, 32)), "Q8_0", "legacy"),
    BlockType("Q8_1", 9, 32, (("d", _HALF), ("s", _HALF), ("qs", _I8, 32))),
    BlockType("Q2_K", 10, _K, (("scales", _U8, 16), ("qs", _U8, 64), ("d", _HALF), ("dmin", _HALF)), "Q8_K", "k_affine"),
    BlockType(
        "Q3_K", 11, _K, (("hmask", _U8, 32), ("qs", _U8, 64), ("scales", _U8, 12), ("d", _HALF)), "Q8_K",
        "k_symmetric",
    ),
    BlockType("Q4_K", 12, _K, (("d", _HALF), ("dmin", _HALF), ("scales", _U8, 12), ("qs", _U8, 128)), "Q8_K", "k_affine"),
    BlockType(
        "Q5_K", 13, _K,
        (("d", _HALF), ("dmin", _HALF), ("scales", _U8, 12), ("qh", _U8, 32), ("qs", _U8, 128)), "Q8_K", "k_affine",
    ),
    BlockType(
        "Q6_K", 14, _K, (("ql", _U8, 128), ("qh", _U8, 64), ("scales", _I8, 16), ("d", _HALF)), "Q8_K",
        "k_symmetric",
    ),
    BlockType("Q8_K", 15, _K, (("d", _FLOAT), ("qs", _I8, 256), ("bsums", _I16, 16))),
    BlockType("IQ2_XXS", 16, _K, (("d", _HALF), ("qs", _U16, 32)), "Q8_K", "i_lattice"),
    BlockType("IQ2_XS", 17, _K, (("d", _HALF), ("qs", _U16, 32), ("scales", _U8, 8)), "Q8_K", "i_lattice"),
    BlockType("IQ3_XXS", 18, _K, (("d", _HALF), ("qs", _U8, 96)), "Q8_K", "i_lattice"),
    BlockType("IQ1_S", 19, _K, (("d", _HALF), ("qs", _U8, 32), ("qh", _U16, 8)), "Q8_K", "i_lattice"),
    BlockType("IQ4_NL", 20, 32, (("d", _HALF), ("qs", _U8, 16)), "Q8_0", "i_nonlinear"),
    BlockType(
        "IQ3_S", 21, _K,
        (("d", _HALF), ("qs", _U8, 64), ("qh", _U8, 8), ("signs", _U8, 32), ("scales", _U8, 4)), "Q8_K", "i_lattice",
    ),
    BlockType("IQ2_S", 22, _K, (("d", _HALF), ("qs", _U8, 64), ("qh", _U8, 8), ("scales", _U8, 8)), "Q8_K", "i_lattice"),
    BlockType(
        "IQ4_XS", 23, _K, (("d", _HALF), ("scales_h", _U16), ("scales_l", _U8, 4), ("qs", _U8, 128)), "Q8_K",
        "i_nonlinear",
    ),
    BlockType("I8", 24, 1, _I8),
    BlockType("I16", 25, 1, _I16),
    BlockType("I32", 26, 1, "<i4"),
    BlockType("I64", 27, 1, "<i8"),
    BlockType("F64", 28, 1, "<f8", None, "floats"),
    BlockType("IQ1_M", 29, _K, (("qs", _U8, 32), ("qh", _U8, 16), ("scales", _U8, 8)), "Q8_K", "i_lattice"),
    BlockType("BF16", 30, 1, _U16, "BF16", "floats"),
    BlockType("TQ1_0", 34, _K, (("qs", _U8, 48), ("qh", _U8, 4), ("d", _HALF)), "Q8_K", "ternary"),
    BlockType("TQ2_0", 35, _K, (("qs", _U8, 64), ("d", _HALF)), "Q8_K", "ternary"),
    BlockType("MXFP4", 39, 32, (("e", _U8), ("qs", _U8, 16)), "Q8_0", "microscale"),
    BlockType("NVFP4", 40, 64, (("d", _U8, 4), ("qs", _U8, 32)), "Q8_0", "microscale"),
    BlockType("Q1_0", 41, 128, (("d", _HALF), ("qs", _U8, 16)), "Q8_0", "legacy"),
    BlockType("Q2_0", 42, 64, (("d", _HALF), ("qs", _U8, 16)), "Q8_0", "legacy"),
)

TYPES: Final[Mapping[str, BlockType]] = MappingProxyType({row.name: row for row in _TABLE})
"""Every tensor type by name."""

TYPES_BY_ID: Final[Mapping[int, BlockType]] = MappingProxyType({row.id: row for row in _TABLE})
"""Every tensor type by its id in a GGUF file."""


_OPAQUE = (
    ("BOOL", 1, 1), ("U8", 1, 1), ("U16", 1, 2), ("U32", 1, 4), ("U64", 1, 8),
    ("C32", 1, 4), ("C64", 1, 8), ("C128", 1, 16),
    ("F8_E4M3", 1, 1), ("F8_E4M3FNUZ", 1, 1), ("F8_E5M2", 1, 1), ("F8_E5M2FNUZ", 1, 1), ("F8_E8M0", 1, 1),
    ("F6_E2M3", 4, 3), ("F6_E3M2", 4, 3), ("F4", 2, 1),
)  # fmt: skip

OPAQUE_TYPES: Final[Mapping[str, BlockType]] = MappingProxyType(
    {name: BlockType(name, -1, length, f"V{size}") for name, length, size in _OPAQUE}
)
"""Element types of checkpoints that GGUF does not have, by their safetensors name, with an id that no GGUF file holds."""

ELEMENT_TYPES: Final[Mapping[str, BlockType]] = MappingProxyType(
    {name: TYPES[name] for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")} | dict(OPAQUE_TYPES)
)
"""Every element type of a checkpoint, by its safetensors name."""

def block_type(name: str) -> BlockType:
    """Look up a type by its name, case-insensitively.

    Raises:
        ValueError: for a name that is not in the table; the message gives the nearest names.
    """
    found = TYPES.get(name.upper())
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name.upper(), TYPES, n=3)
        raise ValueError(f"unknown tensor type {name!r}" + (f", did you mean {', '.join(near)}?" if near else ""))
    return found
