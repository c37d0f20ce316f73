"""What the commands do, for programs: load a model, tokens, text, chat, embeddings, perplexity and divergence.

    >>> import quantcli
    >>> model = quantcli.load("storyteller-Q8_0.gguf")
    >>> model
    <quantcli model storyteller-Q8_0.gguf: llama, 3.67 M parameters, context 512>
    >>> model.generate("Once upon a time", tokens=8, temperature=0)
    ', there was a little girl named Lily'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantcli.core.display import decimal_count
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.kernels.rows import dequantize
from quantcli.runner.load import LoadedModel, load_model

if TYPE_CHECKING:
    from quantcli.quality.statistics import Evaluation
    from quantcli.runner.text.generate import Generation


def load(path: str | PathLike[str], *, threads: int | None = None) -> Model:
    """Load a GGUF file to run it on the CPU, on so many threads (default: one per processor, for all models).

    Raises:
        FormatError: if it is not a valid GGUF file.
        UnsupportedError, ModelError: if its model cannot be run.
    """
    from quantcli.kernels.threads import use_threads

    use_threads(threads)
    return Model(load_model(path))


def read_tensor(file: GGUFFile, name: str) -> NDArray[np.float32]:
    """The weights of a tensor of an open GGUF file, float32, in NumPy's order of axes: the row length last.

    >>> import quantcli
    >>> with quantcli.open_gguf("storyteller-Q8_0.gguf") as file:
    ...     quantcli.read_tensor(file, "blk.0.attn_k.weight").shape
    (128, 256)

    Raises:
        KeyError: if there is no such tensor.
        FormatError, UnsupportedError: if it cannot be read.
    """
    tensor = file.tensors[name]
    packed = np.empty((tensor.rows, tensor.row_bytes), np.uint8)
    tensor.read(0, tensor.rows, packed)
    return dequantize(packed, tensor.type).reshape(tensor.shape)


class Model:
    """A loaded model. Its methods are those of the commands `run`, `tokenize`, `embed` and `eval`; `loaded` has the rest.

    Methods raise ModelError for a file without a vocabulary, and GenerationError for a text that is empty or too long, or a
    model whose output is not finite.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def __repr__(self) -> str:
        sizes = self.loaded.model.sizes
        facts = f"{sizes.architecture}, {decimal_count(self.loaded.parameters)} parameters, context {sizes.context}"
        return f"<quantcli model {Path(self.loaded.path).name}: {facts}>"

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text, with those that the model expects around it; special tokens in the text are recognised.

        >>> import quantcli
        >>> quantcli.load("storyteller-Q8_0.gguf").tokens("Once upon")
        [1, 419, 436]
        """
        return self.loaded.tokenizer.encode(text, parse_special=True)

    def text(self, tokens: Iterable[int]) -> str:
        """The text of token ids."""
        return self.loaded.tokenizer.decode(tokens)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits of the token after these, float32 (vocabulary,)."""
        from quantcli.runner.cache import Cache

        model = self.loaded.model
        found: NDArray[np.float32] = model.forward(list(tokens), Cache(model.sizes, len(tokens)))[0]
        return found

    def generate(self, prompt: str, *, tokens: int | None = None, stop: Sequence[str] = (), **sampling: Any) -> str:
        """The answer to a prompt: at most `tokens` tokens, up to one of the strings `stop` or the model's own end.

        `sampling` are fields of `runner.text.sampling_options.SamplingOptions`, llama.cpp's by default: temperature=0.8,
        top_k=40, top_p=0.95, min_p=0.05, seed=None ... The most likely token is taken with temperature=0.
        """
        return "".join(self.stream(prompt, tokens=tokens, stop=stop, **sampling))

    def stream(
        self, prompt: str, *, tokens: int | None = None, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """As `generate`, in pieces, each as soon as it is known."""
        return iter(self._generation(self.tokens(prompt), tokens, stop, sampling))

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, tokens: int | None = None, stop: Sequence[str] = (), **sampling: Any
    ) -> str:
        """The answer to a conversation: messages of a `role` (system, user, assistant) and a `content`, which the file's
        chat template turns into a prompt.

        Raises:
            ModelError, UnsupportedError: also if there is no template, or it refuses the messages.
        """
        from quantcli.runner.text.chat import chat_prompt

        ids = chat_prompt(self.loaded.metadata, self.loaded.tokenizer, [dict(message) for message in messages])
        return "".join(self._generation(ids, tokens, stop, sampling))

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """The embeddings of texts, float32 (texts, width), with the file's pooling; with `normalize` of length 1."""
        from quantcli.runner.embed import embed

        return np.concatenate([found.rows for found in embed(self.loaded, texts, normalize=normalize)])

    def evaluate(
        self, text: str, *, base: Model | None = None, context: int = 512, chunks: int | None = None
    ) -> Evaluation:
        """The perplexity on a text, and with `base` the KL divergence from the predictions of that model, in nats per
        token, with standard errors: what `quantize eval` measures, on chunks of `context` tokens.

        >>> import quantcli
        >>> model = quantcli.load("storyteller-Q8_0.gguf")
        >>> story = "Once upon a time there was a little girl named Lily. She loved to play. " * 8
        >>> found = model.evaluate(story, base=quantcli.load("storyteller-F16.gguf"), context=32)
        >>> round(found.perplexity, 1), round(found.divergence.mean, 3)
        (5.0, 0.0)
        """
        from quantcli.quality.evaluate import evaluate

        return evaluate(self.loaded, text, base=None if base is None else base.loaded, context=context, chunks=chunks)

    def _generation(self, ids: list[int], limit: int | None, stop: Sequence[str], sampling: dict[str, Any]) -> Generation:
        from quantcli.runner.cache import Cache
        from quantcli.runner.session import Session
        from quantcli.runner.text.generate import Generation, Limits, context_size
        from quantcli.runner.text.sampling import Sampler
        from quantcli.runner.text.sampling_options import SamplingOptions

        model = self.loaded.model
        cache = Cache(model.sizes, context_size(model.sizes.context, len(ids), limit))
        sampler, limits = Sampler(SamplingOptions(**sampling)), Limits(limit, stop)
        return Generation(Session(model, cache), self.loaded.tokenizer, ids, sampler, limits)
