"""`quantize push FILE... ORG/NAME`: upload GGUF files to the Hugging Face hub, with a model card."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantcli.cli.commands import described
from quantcli.cli.options import PATH, json_option
from quantcli.cli.output import print_json, say
from quantcli.core.display import binary_size
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.formats.gguf.reader import GGUFFile


@described("push", usage="[OPTIONS] FILE... ORG/NAME")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Show the model card; upload nothing.")
@click.option(
    "--eval", "results", type=PATH, multiple=True, metavar="JSON",
    help="Results of `quantize eval --json` for the card; repeatable.",
)  # fmt: skip
@click.option("--base-model", metavar="ORG/NAME", help="Model that was quantized. Default: what the files say.")
@click.option("--license", "license_", metavar="ID", help="Licence. Default: what the files say.")
@click.option("--command", "made_with", metavar="TEXT", help="Command that made the files, for the card.")
@click.option("--card", type=PATH, metavar="F", help="Use this model card.")
@click.option("--overwrite", is_flag=True, help="Replace a model card that someone has written.")
@json_option()
def command(
    files: tuple[Path, ...],
    repository: str,
    private: bool,
    dry_run: bool,
    results: tuple[Path, ...],
    base_model: str | None,
    license_: str | None,
    made_with: str | None,
    card: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """The repository is made if it does not exist. The card has the types and sizes of the files, the importance matrix and
    its text, licence, base model and tags as the files record them, and what --eval measured. All files appear in one
    commit. After an interruption, run the command again: what has been uploaded is not sent again. Of a split model, give
    the first shard.

    \b
    quantize eval *.gguf --text wiki.test.raw --base F16.gguf --json > eval.json
    quantize push model-Q4_K_M.gguf model-Q6_K.gguf me/model-GGUF --eval eval.json
    """
    from quantcli.cli.texts import read_text
    from quantcli.conversion.model_card import Measured, model_card, read_results
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.formats.hub.upload import check_names, push

    measured: dict[str, list[Measured]] = {}
    for path in results:
        for name, rows in read_results(path).items():
            measured.setdefault(name, []).extend(rows)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_gguf(file)) for file in files]
        paths = [path for file in opened for path in file.paths]
        check_names(repository, paths)
        made = model_card(
            opened, repository, measured, base_model=base_model, license_=license_, command=made_with
        ) if card is None else read_text(card, "the model card")  # fmt: skip
        sizes = _sizes(opened)
    if dry_run:
        _show(made, repository, paths, as_json)
        return
    pushed = push(
        repository, paths, made, private=private, replace_card=overwrite or card is not None, bars=sys.stderr.isatty()
    )
    if as_json:
        found = {"repository": repository, "url": pushed.url, "commit": pushed.commit, "card": pushed.card}
        print_json(found | {"files": [str(path) for path in paths]})
        return
    kept = "" if pushed.card else "; its model card is kept, --overwrite replaces it"
    say(f"{pushed.url}: {counted(len(paths), 'file')}, {binary_size(sizes)}{kept}")


def _sizes(files: list[GGUFFile]) -> int:
    return sum(file.file_bytes for file in files)


def _show(card: str, repository: str, paths: list[Path], as_json: bool) -> None:
    if as_json:
        print_json({"repository": repository, "files": [str(path) for path in paths], "card": card})
    else:
        click.echo(card, nl=False)
