"""Speed of prompt processing and token generation, as in llama-bench: random tokens, an empty context, no sampling."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.kernels.compilation import running_seconds
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model


@dataclass(frozen=True)
class Task:
    """A benchmark: process a prompt of `prompt` tokens, then generate `generated` tokens, both after `depth` others."""

    prompt: int
    generated: int
    depth: int = 0

    @property
    def context(self) -> int:
        """The number of all its tokens."""
        return self.depth + self.prompt + self.generated

    @property
    def name(self) -> str:
        """The name in llama-bench: `pp512`, `tg128`, `tg128 @ d1024`."""
        parts = [f"{what}{count}" for what, count in (("pp", self.prompt), ("tg", self.generated)) if count]
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a task, for each repetition."""

    task: Task
    samples: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean of the samples."""
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Their standard deviation; 0 for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def measure(model: Model, tasks: Sequence[Task], repeats: int, cache_type: str = "f16") -> Iterator[Speed]:
    """Run each task `repeats` times, after one warm-up run.

    Raises:
        GenerationError: for a task that needs more memory than there is, before the first is run.
    """
    Cache(model.sizes, max(task.context for task in tasks), cache_type)
    return _measured(model, tasks, repeats, cache_type)


def _measured(model: Model, tasks: Sequence[Task], repeats: int, cache_type: str) -> Iterator[Speed]:
    # The tokens do not affect the amount of work. The seed is fixed so that all runs are alike.
    tokens = np.random.default_rng(0)
    for task in tasks:
        past, prompt, generated = (
            tokens.integers(model.vocabulary, size=count).tolist() for count in (task.depth, task.prompt, task.generated)
        )
        cache = Cache(model.sizes, task.context, cache_type)
        _time(model, cache, past, prompt, generated[:1])
        seconds = [_time(model, cache, past, prompt, generated) for _ in range(repeats)]
        yield Speed(task, [(task.prompt + task.generated) / taken for taken in seconds])


def _time(model: Model, cache: Cache, past: Sequence[int], prompt: Sequence[int], generated: Sequence[int]) -> float:
    cache.rewind(0)
    if past:
        model.forward(past, cache)
    start = running_seconds()
    if prompt:
        model.forward(prompt, cache)
    for token in generated:
        model.forward([token], cache)
    return running_seconds() - start
