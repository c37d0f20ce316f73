"""Second moments of the gradients of outputs, by torch: what an error of each output costs.

For every linear layer the mean of g g^T, where g is the gradient of -log p(y) at the layer's output and y is sampled from
the model's own predictions: the output's part of K-FAC's approximation of the Fisher information (arXiv:1503.05671).
Rounding with error feedback between rows (`kernels.rounding.row_feedback`) minimizes the loss under it.

torch and transformers are the extra `quantcli-gguf[calibrate]`. All layers' moments are collected in one pass.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import QuantcliError, UnsupportedError, clipped
from quantcli.formats.gguf.spec import MAGIC
from quantcli.quality.checkpoint_rows import checkpoint_rows

Floats = NDArray[np.float32]

PACKAGES: Final = ("torch", "transformers")
EXTRA: Final = "quantcli-gguf[calibrate]"

SKETCHED: Final = 64
"""Random sums of the gradients that are held out: S^T S / count is an unbiased estimate of their second moment."""

MOST_UNASKED: Final = 4 << 30
"""Bytes of weights and moments for which gradients are taken without being asked for. Beyond it they cost more time and
memory than all the rest of a conversion."""

_SEED: Final = 0
_MEMORY_SHARE: Final = 0.7
"""The part of the free memory that they may then use."""


@dataclass(frozen=True, eq=False)
class OutputGradients:
    """The gradients at the outputs of one product.

    moment   float32 (rows, rows): the sum of g g^T
    count    of how many tokens
    sketch   float32 (SKETCHED, rows): sums of held-out gradients with random signs
    """

    moment: Floats
    count: int
    sketch: Floats


Gradients = Mapping[str, OutputGradients]
"""By GGUF name. Matrices that are stacked, or joined of several layers, have none."""


def is_installed() -> bool:
    """Whether the extra is installed."""
    return all(find_spec(name) is not None for name in PACKAGES)


def check_unasked(weights: int, heights: Iterable[int], logits: int) -> None:
    """Refuse a model whose gradients cost too much to take them without being asked for.

    weights   of the model
    heights   rows of the matrices whose gradients are wanted
    logits    of one chunk of tokens

    Raises:
        UnsupportedError: naming the memory.
    """
    kept, free = 4 * (weights + sum(height * height for height in heights)), _free_memory()
    need = kept + 4 * 4 * logits  # the logits, their gradient, and what sampling from them needs
    if kept > MOST_UNASKED or (free is not None and need > free * _MEMORY_SHARE):
        raise UnsupportedError(f"gradients take {need / 2**30:.1f} GiB of memory; --gradients cpu takes them all the same")


def collect_gradients(
    path: Path,
    chunks: Sequence[Sequence[int]],
    is_held_out: Callable[[int], bool],
    wanted: Callable[[str], bool],
    *,
    device: str,
    threads: int | None = None,
    architecture_file: Path | None = None,
    begin: Callable[[str, int], Callable[[int], Any]] = lambda what, chunks: lambda done: None,
) -> dict[str, OutputGradients]:
    """Run a model forward and backward on chunks of tokens, and collect the moments of its gradients.

    Args:
        path: a checkpoint's directory, or a GGUF file that transformers reads.
        chunks: the tokens.
        is_held_out: whether a chunk, by number, is held out.
        wanted: whether a GGUF tensor is wanted.
        device: of torch.
        threads: of torch on the processor; None for its own choice.
        architecture_file: describes an unknown architecture.
        begin: called before the first chunk, with what is done and the number of chunks. What it returns is called with 1
            after each chunk.

    Raises:
        UnsupportedError: if the extra is not installed, or the model does not run in it.
    """
    if not is_installed():
        raise UnsupportedError("gradients need torch and transformers", hint=f"pip install '{EXTRA}'")
    with _foreign_errors(), _passive_waiting(), _quiet(), _torch_threads(threads):
        model = _loaded(path)
        collector = _Collector(model, _products(model, wanted, architecture_file))
        model.to(device)
        advance = begin("gradients", len(chunks))
        for number, chunk in enumerate(chunks):
            collector.holding = is_held_out(number)
            collector.run(chunk)
            advance(1)
        return collector.result()


class _Collector:
    """Runs a model of transformers, and accumulates the moments of the gradients at the outputs of its linear layers."""

    def __init__(self, model: Any, products: Sequence[tuple[str, Any, NDArray[np.int64]]]) -> None:
        import torch

        self.holding, self._model, self._torch, self._count = False, model, torch, 0
        self._draw = torch.Generator().manual_seed(_SEED)
        self._moments: dict[str, Any] = {}
        self._sketches: dict[str, Any] = {}
        self._signs: Any = None
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name, module, rows in products:
            module.register_forward_hook(self._hook(name, torch.from_numpy(rows)))

    def run(self, chunk: Sequence[int]) -> None:
        """Send a chunk of tokens forward and backward."""
        torch, model = self._torch, self._model
        tokens = torch.tensor([list(chunk)], device=model.device)
        embedded = model.get_input_embeddings()(tokens).requires_grad_()
        signs = torch.randint(0, 2, (SKETCHED, len(chunk)), generator=self._draw)
        self._signs = (2 * signs - 1).to(model.device, torch.float32)
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        # The gradient of -log p(y) at the logits: p, less one at y.
        slope = torch.softmax(logits.detach()[0].float(), -1)
        sums = slope.cumsum(-1)  # torch.multinomial draws a random number for each token of the vocabulary
        drawn = torch.rand(len(chunk), 1, generator=self._draw).to(slope.device) * sums[:, -1:]
        sampled = torch.searchsorted(sums, drawn).clamp_(max=slope.shape[-1] - 1)
        del sums
        slope.scatter_add_(1, sampled, torch.full_like(slope[:, :1], -1.0))
        logits.backward(slope[None].to(logits.dtype))
        self._count += 0 if self.holding else len(chunk)

    def result(self) -> dict[str, OutputGradients]:
        """What was collected, of the products that have gradients."""
        return {
            name: OutputGradients(moment.cpu().numpy(), self._count, self._sketch(name, len(moment)))
            for name, moment in self._moments.items()
            if self._torch.isfinite(moment).all()
        }

    def _sketch(self, name: str, rows: int) -> Floats:
        found = self._sketches.get(name)
        return np.zeros((SKETCHED, rows), np.float32) if found is None else found.cpu().numpy()

    def _hook(self, name: str, rows: Any) -> Callable[..., None]:
        def add(gradient: Any) -> None:
            ordered = gradient.reshape(-1, gradient.shape[-1])[:, rows.to(gradient.device)].float()
            if self.holding:
                found, left = self._sketches, self._signs
            else:
                found, left = self._moments, ordered.T
            total = left @ ordered
            found[name] = found[name].add_(total) if name in found else total

        def watch(module: Any, inputs: Any, output: Any) -> None:
            output.register_hook(add)

        return watch


def _loaded(path: Path) -> Any:
    """The model of transformers, float32."""
    import torch
    import transformers

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        place = {"pretrained_model_name_or_path": str(path.parent)}
        if is_gguf:
            place["gguf_file"] = path.name
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting of transformers turns off
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, local_files_only=True)
    return loaded.eval()


def _products(
    model: Any, wanted: Callable[[str], bool], architecture_file: Path | None
) -> list[tuple[str, Any, NDArray[np.int64]]]:
    """The linear layers whose outputs are those of a GGUF tensor: its name, the layer, and the order of its rows there."""
    import torch

    modules = model.named_modules()
    linear = {f"{name}.weight": module for name, module in modules if isinstance(module, torch.nn.Linear)}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    found = checkpoint_rows(config, shapes, linear.__contains__, wanted, architecture_file)
    return [(name, linear[source], rows) for name, source, rows in found]


def _free_memory() -> int | None:
    """Bytes of memory that may be used without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(found["MemAvailable"].split()[0]) if "MemAvailable" in found else None


@contextlib.contextmanager
def _foreign_errors() -> Iterator[None]:
    """Turn the errors of torch and transformers, which raise any kind, into one of ours."""
    try:
        yield
    except (QuantcliError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        message = clipped(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise UnsupportedError(f"transformers does not run this model: {message}") from error


@contextlib.contextmanager
def _passive_waiting() -> Iterator[None]:
    """Import torch so that its threads sleep at barriers. Spinning, they took 20 times as long beside a busy process."""
    name = "OMP_WAIT_POLICY"
    before = os.environ.get(name)
    os.environ[name] = before or "passive"
    try:
        import torch  # noqa: F401  OpenMP reads the variable when it is loaded

        yield
    finally:
        if before is None:
            del os.environ[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing to the terminal."""
    import warnings

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
