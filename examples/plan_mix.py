"""Choose the types of some tensors yourself, and see the changes and the size of the file without writing it.

    python examples/plan_mix.py                              the small model beside this file
    python examples/plan_mix.py MODEL attn_v=Q8_0 ffn=Q4_K

To write the file: `quantize MODEL --type Q4_K_M --tensor-type attn_v=Q8_0 --tensor-type ffn=Q4_K`, or `convert` without
`dry_run`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantcli import convert
from quantcli.conversion.plan import PlanOptions, parse_override

STORYTELLER = Path(__file__).resolve().parent / "storyteller"
RECIPE = "Q4_K_M"
MIX = ("attn_v=Q8_0", "ffn=Q4_K")


def main(model: str, mix: list[str]) -> None:
    """Print the tensors whose type `mix` changes, and both file sizes."""
    options = PlanOptions(overrides=[parse_override(text) for text in mix])
    usual = convert(model, RECIPE, dry_run=True)[0]
    mixed = convert(model, RECIPE, options=options, dry_run=True)[0]
    for before, after in zip(usual.plan, mixed.plan, strict=True):
        if before.type is not after.type:
            print(f"{after.name:28} {before.type.name:>6} -> {after.type.name:6} {after.reason}")
    print()
    for name, result in ((RECIPE, usual), ("mixed", mixed)):
        print(f"{name:8} {result.output_bytes:12,} bytes {result.bits_per_weight:7.2f} bits per weight")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0] if words else str(STORYTELLER), words[1:] or list(MIX))
