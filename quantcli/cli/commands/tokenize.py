"""`quantize tokenize`: the tokens of a text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.local_models import local_model
from quantcli.cli.options import file_argument, json_option
from quantcli.cli.output import columns, print_json, show
from quantcli.formats.gguf.reader import open_gguf


@described("tokenize")
@file_argument
@click.argument("text")
@click.option("--no-bos", is_flag=True, help="Add no BOS token, even if the model has one by default.")
@click.option(
    "--parse-special/--no-parse-special",
    default=True,
    help="Parse special tokens such as <|eot_id|> in the text (the default), or treat them as text.",
)
@json_option("Print one JSON document: the token ids and texts.")
def command(file: Path, text: str, no_bos: bool, parse_special: bool, as_json: bool) -> None:
    """TEXT may be -, for standard input. Options and defaults are those of llama-tokenize.

    A token may be an incomplete UTF-8 sequence. In JSON it becomes U+FFFD.

    \b
    quantize tokenize model.gguf "Hello, world"
    quantize tokenize model.gguf - --json < text.txt | jq '.tokens | length'
    """
    from quantcli.runner.text.tokenizer import load_tokenizer

    with open_gguf(local_model(file)) as opened:
        tokenizer = load_tokenizer(opened.metadata)
    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    ids = tokenizer.encode(text, add_special=not no_bos, parse_special=parse_special)
    pieces = [tokenizer.piece(id_) for id_ in ids]
    if as_json:
        print_json({"tokens": ids, "pieces": [piece.decode("utf-8", "replace") for piece in pieces]})
        return
    table = columns("Token", "Text", right=("Token",))
    for id_, piece in zip(ids, pieces, strict=True):
        table.add_row(str(id_), piece.decode("utf-8", "surrogateescape"))
    show(table)
