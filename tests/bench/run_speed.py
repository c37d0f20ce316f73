"""How fast does `quantize run` generate and read? Ours against llama.cpp on the same file, in the same run, in turns.

    python tests/bench/run_speed.py MODEL.gguf [--threads 2] [--prompt 128] [--tokens 32] [--repeats 3] [--context N ...]

Prints a Markdown table of tokens per second, the best of the repeats, and ours as a share of llama.cpp's. `--context` adds
rows for generation after so many tokens. `random_model.py` beside this makes a file of real size. llama.cpp runs without
its repacked weights where they crash (`--plain`): AMX on some virtual machines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np


def main() -> None:
    options = _arguments()
    ours, theirs = Ours(options.model, options.threads), Reference(options.model, options.threads, options.plain)
    random = np.random.default_rng(0)
    prompt = random.integers(3, ours.vocabulary, options.prompt).tolist()
    measures: list[tuple[str, Callable[[Any], float]]] = [
        (f"prompt of {options.prompt}", lambda engine: len(prompt) / engine.read(prompt)),
        (f"generate {options.tokens}", lambda engine: options.tokens / engine.generate([1], options.tokens)),
    ]
    for context in options.context:
        past = random.integers(3, ours.vocabulary, context).tolist()
        name = f"generate {options.tokens} after {context}"
        measures.append((name, lambda engine, past=past: options.tokens / engine.generate(past, options.tokens)))
    print(f"{options.model}, {options.threads} threads, best of {options.repeats}, tokens per second\n")
    print("| what | llama.cpp | quantcli | share |")
    print("| --- | ---: | ---: | ---: |")
    for name, measure in measures:
        measure(ours)
        best = [0.0, 0.0]
        for _ in range(options.repeats):
            for place, engine in enumerate((theirs, ours)):
                best[place] = max(best[place], measure(engine))
        print(f"| {name} | {best[0]:.1f} | {best[1]:.1f} | {best[1] / best[0]:.2f} |", flush=True)


class Ours:
    """quantcli's runner."""

    def __init__(self, path: str, threads: int) -> None:
        from quantcli.formats.gguf_reader import open_gguf
        from quantcli.kernels.jit import use_threads
        from quantcli.runner.model import Model

        use_threads(threads)
        self._model = Model(open_gguf(path))
        self.vocabulary = self._model.vocabulary

    def read(self, tokens: Sequence[int]) -> float:
        """Seconds to read a prompt."""
        cache = self._cache(len(tokens))
        start = perf_counter()
        self._model.forward(tokens, cache)
        return perf_counter() - start

    def generate(self, past: Sequence[int], count: int) -> float:
        """Seconds to generate after `past`, greedily."""
        cache = self._cache(len(past) + count)
        token = int(np.argmax(self._model.forward(past, cache)))
        start = perf_counter()
        for _ in range(count):
            token = int(np.argmax(self._model.forward([token], cache)))
        return perf_counter() - start

    def _cache(self, context: int) -> Any:
        from quantcli.runner.cache import Cache

        return Cache(self._model.sizes, context)


class Reference:
    """llama.cpp by its C interface, which needs no vocabulary."""

    def __init__(self, path: str, threads: int, plain: bool) -> None:
        from llama_cpp import llama_cpp

        self._library = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = not plain
        model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if model is None:
            sys.exit(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_threads, settings.n_threads_batch = 4096, 4096, threads, threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def read(self, tokens: Sequence[int]) -> float:
        """Seconds to read a prompt."""
        self._forget()
        start = perf_counter()
        self._decode(tokens)
        return perf_counter() - start

    def generate(self, past: Sequence[int], count: int) -> float:
        """Seconds to generate after `past`, greedily."""
        self._forget()
        token = self._decode(past)
        start = perf_counter()
        for _ in range(count):
            token = self._decode([token])
        return perf_counter() - start

    def _forget(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def _decode(self, tokens: Sequence[int]) -> int:
        ids = (self._library.llama_token * len(tokens))(*tokens)
        if self._library.llama_decode(self._context, self._library.llama_batch_get_one(ids, len(tokens))):
            sys.exit("llama.cpp fails to decode")
        logits = self._library.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocabulary,))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--context", type=int, nargs="*", default=[])
    parser.add_argument("--plain", action="store_true", help="no repacked weights in llama.cpp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
