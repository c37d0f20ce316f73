"""How fast does `quantize run` generate and read? Ours against llama.cpp on the same files, in the same run, in turns.

    python tests/bench/run_speed.py MODEL.gguf ... [--threads 2] [--prompt 128 ...] [--tokens 32] [--repeats 5]
                                    [--context N ...] [--processor-time] [--reread] [--busy N]
                                    [--llama-bench PROGRAM]

Measured as llama-bench does: a prompt of random tokens into an empty cache; so many tokens from an empty cache, one after
another. Prints a Markdown table of tokens per second, the medians of the repeats, and the median, least and most of the
share of llama.cpp's that ours is in each pair of turns. `--context` adds rows for generation after so many tokens.
`--processor-time` counts what the process computed instead of what the clock showed: for one thread, on a machine that has
other work too. `random_model.py` beside this makes a file of real size. llama.cpp runs without its repacked weights where
they crash (`--plain`): AMX on some virtual machines. `--reread` reads each file anew first: pages of a file that was
written in pieces may lie scattered in memory, and a mapping of them is read at half the speed then. `--busy N` measures
beside N processes that compute without end, as on a machine that somebody works on; compare with `--threads 1`.

Prompts with weights in plain types, in processor time of one thread, then in wall time of two:

    for type in BF16 F16 F32; do python tests/bench/random_model.py /tmp/tiny-$type.gguf $type; done
    python tests/bench/run_speed.py /tmp/tiny-{BF16,F16,F32}.gguf --prompt 128 512 --threads 1 --processor-time
    python tests/bench/run_speed.py /tmp/tiny-{BF16,F16,F32}.gguf --prompt 128 512
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

Engine = Any
Measure = Callable[[Engine], float]


def main() -> None:
    options = _arguments()
    clock = process_time if options.processor_time else perf_counter
    counted = "processor time" if options.processor_time else "wall time"
    print(f"{options.threads} threads, median of {options.repeats} pairs of turns, tokens per second of {counted}\n")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        _compare(options, clock)
    finally:
        for process in busy:
            process.kill()


def _compare(options: argparse.Namespace, clock: Callable[[], float]) -> None:
    print("| model | what | llama.cpp | quantcli | share | least | most |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for path in options.models:
        if options.reread:
            _reread(path)
        ours = Ours(path, options.threads, clock)
        if options.llama_bench:
            theirs: Engine = Program(path, options.threads, options.llama_bench)
        else:
            theirs = Reference(path, options.threads, options.plain, clock)
        for name, measure in _measures(options, ours.vocabulary):
            measure(ours)
            speeds = [(measure(theirs), measure(ours)) for _ in range(options.repeats)]
            shares = [own / other for other, own in speeds]
            their_speed, our_speed = (median(column) for column in zip(*speeds, strict=True))
            print(
                f"| {Path(path).stem} | {name} | {their_speed:.1f} | {our_speed:.1f} | {median(shares):.2f} "
                f"| {min(shares):.2f} | {max(shares):.2f} |",
                flush=True,
            )
        theirs.close()


def _reread(path: str) -> None:
    """Have the system forget the file's pages and read it again, in order. Linux alone has the call."""
    with Path(path).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass


def _measures(options: argparse.Namespace, vocabulary: int) -> list[tuple[str, Measure]]:
    """What to measure: names, and functions from an engine to its tokens per second."""
    random = np.random.default_rng(0)

    def reading(count: int) -> Measure:
        prompt = random.integers(3, vocabulary, count).tolist()
        return lambda engine: count / engine.read(prompt)

    def generating(past: int) -> Measure:
        context = random.integers(3, vocabulary, past).tolist() if past else [1]
        return lambda engine: options.tokens / engine.generate(context, options.tokens)

    return [
        *((f"prompt of {count}", reading(count)) for count in options.prompt),
        (f"generate {options.tokens}", generating(0)),
        *((f"generate {options.tokens} after {past}", generating(past)) for past in options.context),
    ]


class Ours:
    """quantcli's runner."""

    def __init__(self, path: str, threads: int, clock: Callable[[], float]) -> None:
        from quantcli.formats.gguf.reader import open_gguf
        from quantcli.kernels.threads import use_threads
        from quantcli.runner.model import Model

        use_threads(threads)
        self._clock = clock
        self._model = Model(open_gguf(path))
        self.vocabulary = self._model.vocabulary

    def read(self, tokens: Sequence[int]) -> float:
        """Seconds to read a prompt."""
        cache = self._cache(len(tokens))
        start = self._clock()
        self._model.forward(tokens, cache)
        return self._clock() - start

    def generate(self, past: Sequence[int], count: int) -> float:
        """Seconds to generate after `past`, greedily."""
        cache = self._cache(len(past) + count)
        token = int(np.argmax(self._model.forward(past, cache)))
        start = self._clock()
        for _ in range(count):
            token = int(np.argmax(self._model.forward([token], cache)))
        return self._clock() - start

    def _cache(self, context: int) -> Any:
        from quantcli.runner.cache import Cache

        return Cache(self._model.sizes, context)


class Program:
    """llama.cpp by `llama-bench`, which loads the model and warms up each time; neither is measured."""

    def __init__(self, path: str, threads: int, program: str) -> None:
        self._command = [program, "-m", path, "-t", str(threads), "-r", "1", "-o", "json"]

    def read(self, tokens: Sequence[int]) -> float:
        """Seconds to read a prompt of as many tokens."""
        return self._seconds(len(tokens), ["-p", str(len(tokens)), "-n", "0"])

    def generate(self, past: Sequence[int], count: int) -> float:
        """Seconds to generate after as many tokens as `past` has; a single one counts as none."""
        depth = len(past) if len(past) > 1 else 0
        return self._seconds(count, ["-p", "0", "-n", str(count), "-d", str(depth)])

    def close(self) -> None:
        """Nothing is held."""

    def _seconds(self, count: int, arguments: Sequence[str]) -> float:
        printed = subprocess.run([*self._command, *arguments], check=True, capture_output=True, text=True).stdout
        return count / float(json.loads(printed)[0]["avg_ts"])


class Reference:
    """llama.cpp by its C interface, which needs no vocabulary."""

    def __init__(self, path: str, threads: int, plain: bool, clock: Callable[[], float]) -> None:
        from llama_cpp import llama_cpp

        self._library, self._clock = llama_cpp, clock
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = not plain
        model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if model is None:
            sys.exit(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = 8448
        settings.n_threads = settings.n_threads_batch = threads
        self._model = model
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def read(self, tokens: Sequence[int]) -> float:
        """Seconds to read a prompt."""
        self._forget()
        start = self._clock()
        self._decode(tokens)
        return self._clock() - start

    def generate(self, past: Sequence[int], count: int) -> float:
        """Seconds to generate after `past`, greedily."""
        self._forget()
        token = self._decode(past)
        start = self._clock()
        for _ in range(count):
            token = self._decode([token])
        return self._clock() - start

    def close(self) -> None:
        """Give its memory back."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

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
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, nargs="*", default=[128])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--context", type=int, nargs="*", default=[])
    parser.add_argument("--processor-time", action="store_true", help="count what the process computed")
    parser.add_argument("--reread", action="store_true", help="read each file anew before it is measured")
    parser.add_argument("--llama-bench", metavar="PROGRAM")
    parser.add_argument("--busy", type=int, default=0, help="beside so many processes that compute")
    parser.add_argument("--plain", action="store_true", help="no repacked weights in llama.cpp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
