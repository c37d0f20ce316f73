"""Make tests/golden/embeddings.npz and classifiers.npz with llama.cpp, as vendored in llama-cpp-python 0.3.36: what it
makes of the tokens of `tiny_model.PROMPT` in the tiny encoders and classifiers of `embedding_cases.py`.

    python tests/golden/make_embedding_goldens.py

Per encoder, float32 `(tokens, numbers)`: every fourth number of each token's embedding, not pooled. Per classifier, float32
`(labels,)`: its scores.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from changed_file import write_changed  # noqa: E402
from tiny_model import PROMPT, write_model  # noqa: E402

from quantcli.formats.gguf.spec import u32  # noqa: E402


def run(path: Path, pooling: int) -> llama_cpp.Llama:
    """The model after it has read the prompt."""
    options = {"n_ctx": 64, "n_batch": 64, "n_ubatch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    model = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=pooling, type_k=0, type_v=0, flash_attn=False, **options
    )
    model._batch.set_batch(PROMPT.tolist(), 0, True)
    model._ctx.encode(model._batch)
    return model


def embeddings(path: Path) -> np.ndarray:
    """Float32 `(tokens, width)` of the prompt."""
    model = run(path, llama_cpp.LLAMA_POOLING_TYPE_NONE)
    shape = len(PROMPT), model.n_embd()
    found = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(model.ctx), shape).copy()
    model.close()
    return found


def scores(path: Path) -> np.ndarray:
    """Float32 `(labels,)` of the prompt."""
    model = run(path, llama_cpp.LLAMA_POOLING_TYPE_RANK)
    labels = llama_cpp.llama_model_n_cls_out(model.model)
    found = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(model.ctx, 0), (labels,)).copy()
    model.close()
    return found


def goldens(cases: dict[str, Any], measure: Callable[[Path], np.ndarray]) -> dict[str, np.ndarray]:
    """What llama.cpp computes, by case."""
    found = {}
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as place:
            # A key that llama.cpp asks for comes with a vocabulary, and these models have none.
            segments = {"tokenizer.ggml.token_type_count": u32(2 if "roberta" not in name else 1)}
            path = write_changed(write_model(Path(place), *case), Path(place) / "whole.gguf", segments)
            found[name] = measure(path)
            print(name, found[name].reshape(-1)[:4])
    return found


def main() -> None:
    cases = runpy.run_path(str(HERE / "embedding_cases.py"))
    rows = goldens(cases["CASES"], embeddings)
    np.savez_compressed(HERE / "embeddings.npz", **{name: found[:, ::4] for name, found in rows.items()})
    np.savez_compressed(HERE / "classifiers.npz", **goldens(cases["CLASSIFIERS"], scores))


if __name__ == "__main__":
    main()
