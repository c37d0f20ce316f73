"""llama.cpp's logits, by the low-level interface of llama-cpp-python, one token at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def generate(path: Path, prompt: list[int], count: int = 0, context: int = 256) -> tuple[NDArray[np.float32], list[int]]:
    """Its logits after every token of a prompt and of the `count` that it goes on with, greedily; and those.

    The cache is in F32, and attention is the plain one: the other rounds queries to halves.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    # Repacked weights crash on virtual machines that announce AMX and do not have it.
    parameters.use_extra_bufts = False
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert loaded, f"llama.cpp does not load {path}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = context, 1, 1
    settings.type_k = settings.type_v = 0  # F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    state = llama_cpp.llama_init_from_model(loaded, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    rows, tokens = [], list(prompt)
    for place in range(len(prompt) + count):
        ids = (llama_cpp.llama_token * 1)(tokens[place])
        assert llama_cpp.llama_decode(state, llama_cpp.llama_batch_get_one(ids, 1)) == 0
        pointer = llama_cpp.llama_get_logits_ith(state, -1)
        rows.append(np.ctypeslib.as_array(pointer, (vocabulary,)).copy())
        if len(prompt) <= place + 1 < len(prompt) + count:
            tokens.append(int(rows[-1].argmax()))
    last = [int(rows[-1].argmax())] if count else []
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(loaded)
    return np.array(rows), [*tokens, *last][len(prompt) : len(prompt) + count]
