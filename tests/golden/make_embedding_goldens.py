"""Make tests/golden/embeddings.npz with llama.cpp, as vendored in llama-cpp-python 0.3.36: what it makes of the tokens of
`tiny_model.PROMPT` in the tiny encoders of `embedding_cases.py`.

    python tests/golden/make_embedding_goldens.py

Per case, float32 `(tokens, numbers)`: every fourth number of each token's embedding, not pooled.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from changed_file import write_changed  # noqa: E402
from tiny_model import PROMPT, write_model  # noqa: E402

from quantcli.formats.gguf.spec import u32  # noqa: E402


def embeddings(path: Path) -> np.ndarray:
    """Float32 `(tokens, width)` of the prompt."""
    options = {"n_ctx": 64, "n_batch": 64, "n_ubatch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    model = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE, type_k=0, type_v=0, flash_attn=False,
        **options,
    )  # fmt: skip
    model._batch.set_batch(PROMPT.tolist(), 0, True)
    model._ctx.encode(model._batch)
    shape = len(PROMPT), model.n_embd()
    found = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(model.ctx), shape).copy()
    model.close()
    return found


def main() -> None:
    goldens = {}
    for name, case in runpy.run_path(str(HERE / "embedding_cases.py"))["CASES"].items():
        with tempfile.TemporaryDirectory() as place:
            # A key that llama.cpp asks for comes with a vocabulary, and these models have none.
            segments = {"tokenizer.ggml.token_type_count": u32(2 if "roberta" not in name else 1)}
            path = write_changed(write_model(Path(place), *case), Path(place) / "whole.gguf", segments)
            goldens[name] = embeddings(path)[:, ::4]
            print(name, goldens[name][0, :4])
    np.savez_compressed(HERE / "embeddings.npz", **goldens)


if __name__ == "__main__":
    main()
