"""Make tests/golden/prequantized/*.json with the reference converter.

    python tests/golden/make_prequantized_goldens.py PATH_OF_LLAMA_CPP TOKENIZER_MODEL [CASE ...]

As `make_architecture_goldens.py`, for the table CASES of `prequantized_cases.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from make_architecture_goldens import leave_out_vocabularies, make_golden  # noqa: E402
from prequantized_cases import CASES  # noqa: E402


def main() -> None:
    """See the module's description."""
    reference, tokenizer, *names = sys.argv[1:]
    sys.path[:0] = [reference, str(Path(reference) / "gguf-py")]
    leave_out_vocabularies()
    for name in names or CASES:
        make_golden(Path(reference), Path(tokenizer), name, CASES[name], "prequantized", ("f32",))


if __name__ == "__main__":
    main()
