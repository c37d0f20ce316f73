"""GGUF files of the hub: which one a name means, and their download.

    ORG/NAME[@REVISION][:TYPE]                    the file of this type, as for Ollama and `llama-cli -hf`
    hf.co/ORG/NAME[:TYPE], also with https://     the same
    https://HUB/ORG/NAME/resolve/REVISION/FILE    one file, also with `blob` for `resolve`

Without a type, Q4_K_M is taken if there is one, else the first file by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import HubError, QuantcliError
from quantcli.core.listing import listed
from quantcli.formats.gguf.shards import first_of, shard_paths, shard_prefix
from quantcli.formats.hub.models import HubClient, HubModel, find_hub_model, parse_hub_model

USUAL_TYPE: Final = "Q4_K_M"

_HOSTS: Final = re.compile(r"(?:https?:/{1,2})?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
"""Also as a path has it, with one slash."""

_FILE: Final = re.compile(
    r"(?P<id>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+\.gguf)(?:\?[^#]*)?", re.IGNORECASE
)
_TYPED: Final = re.compile(r"(?P<model>[^:]+)(?::(?P<type>[A-Za-z0-9_.-]+))?")
_OTHERS: Final = re.compile(r"(mmproj|imatrix)[^/]*", re.IGNORECASE)
"""GGUF files that are no models: projectors, importance matrices."""


@dataclass(frozen=True)
class HubGGUF:
    """A GGUF file of a model of the hub: the one with this name, or of this type."""

    model: HubModel
    type: str | None = None
    file: str | None = None


def parse_hub_gguf(text: str) -> HubGGUF | None:
    """The file that a name means; None if it is that of a path."""
    address = _HOSTS.match(text)
    rest = text[address.end() :] if address else text
    if address and (named := _FILE.fullmatch(rest)):
        model = parse_hub_model(f"{named['id']}@{named['revision']}")
        return None if model is None else HubGGUF(model, file=named["file"])
    typed = _TYPED.fullmatch(rest)
    if typed is None:
        return None
    model = (parse_hub_model if address or typed["type"] else find_hub_model)(typed["model"])
    return None if model is None else HubGGUF(model, typed["type"])


def fetch_gguf(
    wanted: HubGGUF,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
    started: Callable[[int], Callable[[int], Any]] = lambda total: lambda done: None,
) -> Path | None:
    """Download the file, or all shards of it, to the hub's cache, unless they are there. Hashes of files are checked.

    If the hub does not answer, or HF_HUB_OFFLINE is set, the files of an earlier download are used. `started` is called if
    there is anything to download.

    Returns:
        The file, or the first shard. None if the repository has no GGUF file.

    Raises:
        HubError: if there is no such model, revision or file, no access to it, no answer, no space, or a file arrives
            damaged.
    """
    client = HubClient.connect(wanted.model, endpoint, cache)
    with client.explaining():
        try:
            commit, files = client.listing()
        except Exception as error:
            snapshot = client.earlier_snapshot()
            if isinstance(error, QuantcliError) or client.is_refusal(error) or snapshot is None:
                raise
            names = choose_files(wanted, [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")])
            return snapshot / names[0] if names else None
        names = choose_files(wanted, files)
        missing = [files[name] for name in names if not client.has(files[name], commit)]
        if missing:
            total = sum(file.size or 0 for file in missing if not client.holds(file))
            client.check_space(total)
            advance = started(total)
            for file in missing:
                client.download(file, commit, advance)
        # The commit of the revision is recorded last, so that what is found offline is complete.
        return client.fetch(names[0]) if names else None


def choose_files(wanted: HubGGUF, names: Collection[str]) -> list[str]:
    """The file that is meant, or its shards in order, of the files of a repository; empty if none is a GGUF model.

    Raises:
        HubError: if others are, and it is not among them.
    """
    models = sorted(name for name in names if name.lower().endswith(".gguf") and not _OTHERS.fullmatch(Path(name).name))
    firsts = [name for name in models if first_of(Path(name).name) is not None or "-of-" not in Path(name).name]
    if not firsts and wanted.file is None:
        return []
    if wanted.file is not None:
        chosen = [name for name in models if name == wanted.file]
    elif wanted.type is not None:
        chosen = _of_type(firsts, wanted.type)
    else:
        chosen = _of_type(firsts, USUAL_TYPE) or firsts
    if not chosen:
        what = wanted.file or f"GGUF file of type {wanted.type}"
        raise HubError(f"{wanted.model}: it has no {what}", hint=f"it has {listed(firsts)}")
    first = Path(chosen[0])
    count = first_of(first.name)
    return [chosen[0]] if count is None else [str(path) for path in shard_paths(shard_prefix(first), count)]


def _of_type(names: Sequence[str], type_: str) -> list[str]:
    """The files with a type in their names, the shortest name first."""
    word = re.compile(rf"(?:.*[-._/])?{re.escape(type_)}(?:[-./].*)?", re.IGNORECASE)
    return sorted((name for name in names if word.fullmatch(str(shard_prefix(Path(name))))), key=len)
