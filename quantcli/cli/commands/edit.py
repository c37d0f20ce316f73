"""`quantize edit FILE`: change the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.options import PATH, file_argument, json_option, overwrite_option
from quantcli.cli.output import byte_progress, print_json, say
from quantcli.cli.output_paths import OutputPath
from quantcli.core.errors import UsageError, clipped
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.formats.gguf.spec import Field, Metadata


@described("edit")
@file_argument
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a value; a new key as KEY=TYPE:VALUE; repeatable."
)
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Remove a key; repeatable.")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Rename a key; repeatable.")
@click.option("--chat-template", "template", type=PATH, metavar="F", help="Set the chat template to the content of F.")
@click.option("-o", "--output", type=OutputPath(), metavar="OUT", help="Write a copy, and leave FILE as it is.")
@overwrite_option
@json_option()
def command(file: Path, output: Path | None, overwrite: bool, as_json: bool, **changes: Any) -> None:
    """Where the new metadata take as much room as the old ones, FILE is changed in place; else it is replaced by a copy,
    once that is complete. TYPE is int, float, bool or str, and a key that is there keeps its type. Keys are renamed first,
    and then removed and set.

    \b
    quantize edit model.gguf --set general.name="My model" --set tokenizer.ggml.eos_token_id=2
    quantize edit model.gguf --set general.license=str:mit --remove general.url
    quantize edit model.gguf --chat-template template.jinja -o fixed.gguf
    """
    if not any(changes.values()):
        raise UsageError("nothing to change", hint="--set, --remove, --rename or --chat-template")
    from quantcli.formats.gguf.edit import edited, write_edited
    from quantcli.formats.gguf.reader import open_gguf

    renamed = dict(_pair(text, "OLD=NEW") for text in changes["renames"])
    with open_gguf(file, allow_shard=True) as opened:
        known = {renamed.get(key, key): field for key, field in opened.metadata.items()}
        values = _values(known, changes["settings"], changes["template"])
        metadata = edited(opened.metadata, values=values, renamed=renamed, removed=changes["removed"])
        with byte_progress("copying", opened.file_bytes) as bar:
            copied = write_edited(opened, metadata, output, overwrite=overwrite, advance=bar.update)
    count = len(values) + len(renamed) + len(changes["removed"])
    target = file if output is None else output
    if as_json:
        print_json({"output": str(target), "changed": count, "copied": copied})
    else:
        say(f"{target}: {counted(count, 'key')} changed{'' if copied else ', in place'}")


def _values(known: Metadata, settings: Sequence[str], template: Path | None) -> dict[str, Field]:
    """The values to set, by key."""
    from quantcli.cli.texts import read_text
    from quantcli.formats.gguf.spec import string
    from quantcli.formats.gguf.vocabulary import CHAT_TEMPLATE

    values = dict(_value(known, text) for text in settings)
    if template is not None:
        values[CHAT_TEMPLATE] = string(read_text(template, "the template"))
    return values


def _value(known: Metadata, text: str) -> tuple[str, Field]:
    """A key and its value: of the type that it has in the file, or that the text names."""
    from quantcli.conversion.metadata.output import parse_metadata_override
    from quantcli.formats.gguf.edit import with_value

    key, value = _pair(text, "KEY=VALUE")
    if key not in known:
        return parse_metadata_override(text)
    try:
        return key, with_value(known[key], value)
    except (ValueError, KeyError) as error:
        kind = known[key].type.name.lower()
        raise UsageError(f"{key} cannot be set to {clipped(repr(value))}: its type is {kind}") from error


def _pair(text: str, form: str) -> tuple[str, str]:
    left, separator, right = text.partition("=")
    if not (left and separator and right):
        raise UsageError(f"{clipped(repr(text))} is not of the form {form}")
    return left, right
