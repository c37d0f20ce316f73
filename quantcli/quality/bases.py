"""The recipes that are usual for quantized files."""

from __future__ import annotations

from typing import Final

BASES: Final = (
    "Q4_K_M", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
)  # fmt: skip
"""Of these, the one with the nearest size gives the types that a target does not allocate, and the file type. `estimate`
recommends one of them."""
