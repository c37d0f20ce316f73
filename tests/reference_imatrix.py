"""What llama-imatrix collects, by llama.cpp's evaluation callback (`cb_eval`) and `tools/imatrix/imatrix.cpp`'s rules."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Sums = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]

F32 = 0


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def _values(tensor: Tensor, ctype: type, dtype: type) -> NDArray:
    """A tensor's data, axes outermost first."""
    span = sum((n - 1) * stride for n, stride in zip(tensor.ne, tensor.nb, strict=True)) + ctypes.sizeof(ctype)
    data = np.frombuffer((ctypes.c_uint8 * span).from_address(tensor.data), dtype)
    return np.lib.stride_tricks.as_strided(data, tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1])


def reference_imatrix(path: Path, chunks: Sequence[Sequence[int]]) -> Sums:
    """The sums of squares (matrices, n) and the counts of each tensor, with a KV cache in F32."""
    sums: Sums = {}
    _run(path, chunks, _collector(sums))
    return sums


def _collector(sums: Sums) -> Callable[[int, bool, int], bool]:
    def collect(pointer: int, ask: bool, _: int) -> bool:
        tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        weights, inputs = tensor.src[0], tensor.src[1]
        if not weights or not inputs:
            return False
        weights, inputs = weights.contents, inputs.contents
        name = weights.name.decode()
        by_expert = "_exps." in name
        if not name.endswith(".weight") or not name.startswith("blk.") or inputs.type != F32:
            return False
        if weights.ne[0] != inputs.ne[0] or weights.ne[1] != tensor.ne[0] or (inputs.ne[1] < 16 and not by_expert):
            return False  # not a matrix product, or of too few tokens
        if ask:
            return True
        matrices = weights.ne[2] * weights.ne[3]
        squares, counts = sums.setdefault(
            name, (np.zeros((matrices, weights.ne[0])), np.zeros(matrices if by_expert else 1, np.int64))
        )
        x = _values(inputs, ctypes.c_float, np.float32).astype(np.float64) ** 2
        if by_expert:
            chosen = _values(tensor.src[2].contents, ctypes.c_int32, np.int32)[0, 0]
            for token in range(chosen.shape[0]):
                for place in range(chosen.shape[1]):
                    squares[chosen[token, place]] += x[0, token, place % x.shape[2]]
                    counts[chosen[token, place]] += 1
        else:
            for matrix in range(x.shape[1]):
                squares[matrix % matrices] += x[0, matrix].sum(0)
            counts += x.shape[2]
        return True

    return collect


def _run(path: Path, chunks: Sequence[Sequence[int]], collect: Callable[[int, bool, int], bool]) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    settings = llama_cpp.llama_context_default_params()
    length = len(chunks[0])
    settings.n_ctx = settings.n_batch = settings.n_ubatch = length
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    callback = llama_cpp.ggml_backend_sched_eval_callback(collect)
    settings.cb_eval = callback
    state = llama_cpp.llama_init_from_model(model, settings)
    for chunk in chunks:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        batch = llama_cpp.llama_batch_init(length, 0, 1)
        batch.n_tokens = length
        for place, token in enumerate(chunk):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        assert llama_cpp.llama_decode(state, batch) == 0
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(model)
