"""Cuts texts into chunks of tokens, as llama.cpp's tools do for perplexities and importance matrices."""

from __future__ import annotations

from quantcli.core.errors import GenerationError
from quantcli.core.listing import counted
from quantcli.runner.text.tokenizer import Tokenizer


def cut(
    tokenizer: Tokenizer, text: str, context: int, limit: int | None, *,
    name: str, need: str, shortest: int, parse_special: bool = False,
) -> list[list[int]]:  # fmt: skip
    """The chunks of a text, `context` tokens each, at most `limit`. The rest of the text is ignored. The first token of a
    chunk is replaced by BOS if the vocabulary adds one.

    `name` and `need` are words of the message: `name` has so many tokens, and `need` so many. `shortest` is the smallest
    context that its hint suggests.

    Raises:
        GenerationError: if the text has fewer than two chunks.
    """
    needed = None if limit is None else max(limit, 2) * context
    tokens = tokenizer.encode(text, parse_special=parse_special, limit=needed)
    if len(tokens) < 2 * context:
        fitting = len(tokens) // 2
        raise GenerationError(
            f"{name} has {counted(len(tokens), 'token')}, and {need} {2 * context} or more",
            hint=f"give a longer text, or --ctx {fitting} or less" if fitting >= shortest else None,
        )
    chunks = [tokens[start : start + context] for start in range(0, len(tokens) - context + 1, context)][:limit]
    if tokenizer.settings.add_bos and tokenizer.bos is not None:
        for chunk in chunks:
            chunk[0] = tokenizer.bos
    return chunks
