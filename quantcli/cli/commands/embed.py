"""`quantize embed FILE --prompt TEXT`: text embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.options import file_argument, json_option, model_options, text_file_option
from quantcli.cli.output import columns, heading, print_json, show
from quantcli.cli.running import open_model, warn_beyond_training
from quantcli.cli.text_tables import Table
from quantcli.cli.texts import checked_text, lines, read_text
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.runner.embed import Embedding


@described("embed")
@file_argument
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to embed; may be repeated.")
@text_file_option("File with one text per line; - reads stdin. Blank lines are skipped.")
@click.option(
    "--pooling", metavar="NAME", help="Pooling: mean, cls, last or none. Default: that of the model.",
)  # fmt: skip
@click.option("--normalize/--no-normalize", default=True, help="L2-normalize the embeddings. Default: yes.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=1), metavar="N",
    help="Maximum length of a text in tokens. Default: the trained context length.",
)  # fmt: skip
@model_options
@json_option("Print one JSON document: the embeddings and token ids.")
def command(
    file: Path,
    prompts: tuple[str, ...],
    text: Path | None,
    pooling: str | None,
    normalize: bool,
    context: int | None,
    weights: str | None,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """The model is an encoder such as BERT, or a decoder. Without --json, prints the first components of each embedding and
    the cosine similarities of the texts.

    \b
    quantize embed bge-small.gguf --prompt "A cat sleeps." --prompt "A kitten is napping."
    quantize embed bge-small.gguf --text lines.txt --json | jq '.embeddings[0].embedding'
    """
    texts = [checked_text(prompt, "the prompt") for prompt in prompts]
    if text is not None:
        content = read_text(None if str(text) == "-" else text, "the text")
        texts += [line for line in lines(content) if line.strip()]
    if not texts:
        raise UsageError("no text to embed", hint="--prompt TEXT, or --text F")
    loaded = open_model(file, threads=threads, weights=weights, cache_type="f32", arch_file=arch_file)
    if context is not None:
        warn_beyond_training(loaded, context)
    from quantcli.runner.embed import embed, pooling_of

    chosen = pooling or pooling_of(loaded)
    found = list(embed(loaded, texts, pooling=chosen, normalize=normalize, context=context))
    if as_json:
        print_json(_document(file, chosen, normalize, found))
    else:
        show(_vectors_view(texts, found), *_similarity_view(found))


def _document(file: Path, pooling: str, normalize: bool, found: list[Embedding]) -> dict[str, Any]:
    pooled = pooling != "none"
    return {
        "path": str(file),
        "pooling": pooling,
        "normalized": normalize,
        "dimensions": found[0].rows.shape[1],
        "embeddings": [
            {
                "tokens": list(embedding.tokens),
                "embedding": embedding.rows[0].tolist() if pooled else embedding.rows.tolist(),
            }
            for embedding in found
        ],
    }


def _vectors_view(texts: list[str], found: list[Embedding]) -> Table:
    right = ("", "Tokens", "Vector")
    table = columns("", "Text", "Tokens", "Vector", right=right)
    for index, (text, embedding) in enumerate(zip(texts, found, strict=True), start=1):
        facts = str(index), text, str(len(embedding.tokens))
        for number, row in enumerate(embedding.rows):
            begun = " ".join(f"{value:.4f}" for value in row[:4]) + f" ... ({len(row)})"
            table.add_row(*(facts if number == 0 else ("", "", "")), begun)
    return table


def _similarity_view(found: list[Embedding]) -> list[Any]:
    """The cosine similarities of several texts' embeddings; nothing without pooling."""
    if len(found) < 2 or any(len(embedding.rows) > 1 for embedding in found):
        return []
    import numpy as np

    rows = np.concatenate([embedding.rows for embedding in found]).astype(np.float64)
    rows /= np.maximum(np.sqrt((rows**2).sum(axis=1, keepdims=True)), np.finfo(np.float64).tiny)
    names = [str(index + 1) for index in range(len(found))]
    table = columns("", *names, right=("", *names))
    for name, row in zip(names, rows @ rows.T, strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in row))
    return [heading("Cosine similarity"), table]
