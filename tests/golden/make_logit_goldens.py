"""Make tests/golden/logits.npz with llama.cpp, as vendored in llama-cpp-python 0.3.36: what it answers in the tiny models
of `logit_cases.py`.

    python tests/golden/make_logit_goldens.py [CASE ...]

Per case: `NAME.tokens`, the 64 tokens it goes on with, greedily, after `tiny_model.PROMPT`; `NAME.logits`, its logits
after the tokens of `POSITIONS`, of every eighth entry of the vocabulary; `NAME.range`, from the least to the greatest of
them all.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from reference_logits import generate  # noqa: E402
from tiny_model import PROMPT, write_model  # noqa: E402

from quantcli.formats.gguf.spec import f32  # noqa: E402

POSITIONS = (0, 23, 50, 86)
MENDED = {"exaone": {"exaone.attention.layer_norm_rms_epsilon": f32(1e-5)}}
"""What llama.cpp asks for and its converter does not write; the number is under another key in these files."""


def main(wanted: list[str]) -> None:
    path = HERE / "logits.npz"
    goldens = dict(np.load(path)) if path.exists() else {}
    for name, case in runpy.run_path(str(HERE / "logit_cases.py"))["CASES"].items():
        if wanted and name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as place:
            rows, tokens = generate(write_model(Path(place), *case, MENDED.get(name)), PROMPT.tolist(), 64)
        goldens[f"{name}.tokens"] = np.array(tokens, np.uint16)
        goldens[f"{name}.logits"] = rows[list(POSITIONS), ::8]
        goldens[f"{name}.range"] = np.float32(np.ptp(rows))
        print(name, tokens[:8])
    np.savez_compressed(path, **goldens)


if __name__ == "__main__":
    main(sys.argv[1:])
