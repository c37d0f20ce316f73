"""Models of the Hugging Face hub: parse their names, and download the files that a conversion needs.

The `huggingface_hub` package downloads the files to the cache that all Hugging Face tools share. Its environment variables
apply: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import HubError, ModelError, QuantcliError
from quantcli.formats.checkpoint.weights import weight_files
from quantcli.formats.hub.ranges import RangeReader, WebFile

Started = Callable[[int], Callable[[int], Any]]
"""Called with the size of a download in bytes. Its result is called with the bytes of each step, negative for lost ones."""

# --- names ----------------------------------------------------------------------------------------------------------------

_MAX_ID: Final = 96
"""The most characters of an id on the hub."""

_WORD: Final = r"\w(?:[\w.-]*\w)?"

_REFERENCE: Final = re.compile(rf"(?P<id>{_WORD}/{_WORD})(?:@(?P<revision>[^\s@\\:?*\[~^/][^\s@\\:?*\[~^]*))?", re.ASCII)
"""`ORG/NAME` of letters, digits and `-_.`, and after an `@` a branch, tag or commit."""

_FILE: Final = re.compile(r".*\.(safetensors|gguf|bin|pt|pth|ckpt|json)", re.IGNORECASE)


@dataclass(frozen=True)
class HubModel:
    """A model of the hub: `ORG/NAME`, and a branch, tag or commit, or None for the main branch."""

    id: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The id without the organization."""
        return self.id.partition("/")[2]

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def parse_hub_model(text: str) -> HubModel | None:
    """Parse `ORG/NAME` or `ORG/NAME@REVISION`; None if `text` is neither."""
    match = _REFERENCE.fullmatch(text)
    if match is None or len(match["id"]) > _MAX_ID or "--" in match["id"] or ".." in text or match["id"].endswith(".git"):
        return None
    return HubModel(match["id"], match["revision"])


def find_hub_model(model: str | PathLike[str]) -> HubModel | None:
    """The model of the hub that an argument names; None if the argument is a path.

    Paths are: existing files and directories, any `Path`, strings with a leading `./`, and strings with the suffix of a
    model file. If a directory ORG exists, `ORG/NAME` is taken for a misspelled path, and the hub is not asked;
    `ORG/NAME@main` is still a model of the hub.
    """
    found = parse_hub_model(model) if isinstance(model, str) else None
    if found is None or os.path.lexists(model):
        return None
    if found.revision is None and (_FILE.fullmatch(found.id) or os.path.lexists(found.id.partition("/")[0])):
        return None
    return found


# --- files ----------------------------------------------------------------------------------------------------------------

_SIDE_FILES: Final = re.compile(
    r"config\.json|generation_config\.json|(hf_)?quant(ize)?_config\.json|README\.md|special_tokens_map\.json|added_tokens\.json"
    r"|modules\.json|[^/\\]*Pooling/config\.json"
    r"|(tokenizer|vocab|merges)[^/]*|spiece\.model|sentencepiece\.bpe\.model|tekken\.json|[^/\\]+\.tiktoken"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[^/\\]+\.jinja"
)
"""The files with the metadata, the vocabulary and the chat templates."""


def needed_files(names: Collection[str]) -> list[str]:
    """The files of a repository that make up a checkpoint: side files first, then the weights in one format.

    `consolidated.*` are left out: the same weights again, in the layout of Meta and Mistral.
    """
    weights = weight_files([name for name in names if not name.startswith("consolidated")])
    return sorted(name for name in names if _SIDE_FILES.fullmatch(name)) + weights


def fetch_model(
    model: HubModel,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
    started: Started = lambda total: lambda done: None,
) -> Path:
    """Download the missing files of a model, and return its directory in the hub's cache. Hashes of files are checked.

    If the hub does not answer, or HF_HUB_OFFLINE is set, the files of an earlier download are used. `endpoint` and `cache`
    default to those of `huggingface_hub`: its environment variables, or huggingface.co and a directory in the home
    directory. `started` is called if there is anything to download.

    Raises:
        HubError: if there is no such model or revision, no access to it, no answer, no space, or a file arrives damaged.
        ModelError: if the repository holds no checkpoint.
    """
    client = HubClient.connect(model, endpoint, cache)
    with client.explaining():
        found = _look(client)
        if isinstance(found, Path):
            return found
        if found.missing:
            total = sum(file.size or 0 for file in found.missing if not client.holds(file))
            client.check_space(total)
            advance = started(total)
            for file in found.missing:
                client.download(file, found.commit, advance)
        # The cache gets the commit of the revision last, so that a snapshot found offline is complete.
        client.remember(found.commit)
        snapshot = client.snapshot(found.commit)
        assert snapshot is not None  # it was just filled
        return snapshot


def fetch_file(model: HubModel, name: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The path of a side file of a model in the hub's cache. It is downloaded if it is missing.

    Raises:
        HubError: if the hub does not provide it.
    """
    client = HubClient.connect(model, endpoint, cache)
    with client.explaining(f": {name}"):
        return client.fetch(name)


def stored_model(model: HubModel, *, endpoint: str | None = None, cache: Path | None = None) -> Path | None:
    """The directory of `fetch_model` if nothing needs to be downloaded, else None.

    Raises:
        HubError, ModelError: as `fetch_model`.
    """
    client = HubClient.connect(model, endpoint, cache)
    with client.explaining():
        found = _look(client)
        if isinstance(found, Path):
            return found
        return None if found.missing else client.snapshot(found.commit)


@dataclass(frozen=True, slots=True)
class _Known:
    """The commit of a revision, and the needed files that the cache lacks."""

    commit: str
    missing: list[HubFile]


def _look(client: HubClient) -> _Known | Path:
    """The state of a model; or the directory of an earlier download, if the hub does not answer."""
    try:
        commit, files = client.listing()
    except Exception as error:
        if _is_answer(error) or (snapshot := client.snapshot(client.model.revision)) is None:
            raise
        return snapshot
    needed = [files[name] for name in checkpoint_files(client.model, files)]
    return _Known(commit, [file for file in needed if not client.has(file, commit)])


def checkpoint_files(model: HubModel, files: Collection[str]) -> list[str]:
    """The result of `needed_files`, checked.

    Raises:
        ModelError: if the repository has no checkpoint.
    """
    names = needed_files(files)
    if "config.json" not in names:
        hint = "It is an adapter: give its base model." if "adapter_config.json" in files else None
        raise ModelError(f"{model}: no config.json in this repository, so it is not a transformers checkpoint", hint=hint)
    if not weight_files(names):
        gguf = any(name.endswith(".gguf") for name in files)
        hint = f"It has GGUF files: `hf download {model.id} FILE.gguf` gets one." if gguf else None
        raise ModelError(f"{model}: no safetensors and no PyTorch files in this repository", hint=hint)
    return names


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, with its size and hash from the hub, which mirrors of the hub may not have."""

    name: str
    size: int | None
    sha256: str | None
    """The hash of the contents, for large files, which are in LFS."""
    git_sha1: str | None
    """The hash of the contents as a git blob, for other files."""

    @property
    def digest(self) -> str | None:
        """The hash of the contents, which is the file's name in the cache."""
        return self.sha256 or self.git_sha1

    def damage(self, path: Path) -> str | None:
        """What is wrong with a downloaded file; None if its size and hash are those of the hub."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"{size} bytes, the hub has {self.size}"
        if self.digest is None:
            return None
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: digest).hexdigest()
        return None if found == self.digest else f"its hash is {found}, the hub has {self.digest}"


@dataclass(frozen=True)
class HubClient:
    """`huggingface_hub`, for one model."""

    model: HubModel
    api: Any
    cache: Path

    @classmethod
    def connect(cls, model: HubModel, endpoint: str | None, cache: Path | None) -> HubClient:
        """A client of the hub at `endpoint`. Endpoint and cache default to those of `huggingface_hub`."""
        from huggingface_hub import HfApi, constants

        api = HfApi(endpoint=endpoint)
        return cls(model, api, Path(cache or constants.HF_HUB_CACHE).expanduser())

    def listing(self) -> tuple[str, dict[str, HubFile]]:
        """The current commit of the revision, and its files by name."""
        from huggingface_hub import constants

        info = self.api.model_info(
            self.model.id,
            revision=self.model.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        return info.sha, {
            file.rfilename: HubFile(
                file.rfilename,
                file.lfs.size if file.lfs else file.size,
                file.lfs.sha256 if file.lfs else None,
                None if file.lfs else file.blob_id,
            )
            for file in info.siblings or ()
        }

    def snapshot(self, revision: str | None) -> Path | None:
        """The directory of a revision; None if it is incomplete: without weights, which are downloaded last."""
        config = self._cached("config.json", revision)
        complete = config is not None and weight_files([entry.name for entry in config.parent.iterdir()])
        return config.parent if config is not None and complete else None

    def earlier_snapshot(self) -> Path | None:
        """The directory of the revision as it was last asked for, with whatever files were downloaded; None without one."""
        from huggingface_hub.file_download import repo_folder_name

        folder = self.cache / repo_folder_name(repo_id=self.model.id, repo_type="model")
        revision = self.model.revision or "main"
        with suppress(OSError):
            revision = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        snapshot = folder / "snapshots" / revision
        return snapshot if snapshot.is_dir() else None

    @staticmethod
    def is_refusal(error: Exception) -> bool:
        """Whether an error is an answer of the hub, so that what the cache has should not be used instead."""
        return _is_answer(error)

    def has(self, file: HubFile, commit: str) -> bool:
        """Whether a file of a commit is in the cache, with the right size."""
        path = self._cached(file.name, commit)
        return path is not None and file.size in (None, path.stat().st_size)

    def holds(self, file: HubFile) -> bool:
        """Whether the cache has a file's contents from another commit, so that nothing is downloaded."""
        if file.digest is None:
            return False
        blob = self.cache / f"models--{self.model.id.replace('/', '--')}" / "blobs" / file.digest
        return blob.exists() and file.size in (None, blob.stat().st_size)

    def download(self, file: HubFile, commit: str, advance: Callable[[int], Any]) -> None:
        """Download a file to the cache. A cached file of another size is replaced."""
        held = self.holds(file)
        with self.explaining(f": {file.name}"):
            path = self._get(file.name, commit, advance, anew=self._cached(file.name, commit) is not None)
        damage = None if held else file.damage(path)
        if damage:
            path.resolve().unlink()  # or it would be used the next time
            raise HubError(f"{self.model}: {file.name}: arrived damaged: {damage}", hint=_AGAIN)

    def fetch(self, name: str) -> Path:
        """A file of the revision, downloaded if the cache lacks it."""
        return self._get(name, self.model.revision, lambda done: None)

    def range_reader(self) -> RangeReader:
        """A reader of byte ranges of the model's files."""
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, get_session

        headers = build_hf_headers(token=False)
        private = {name: text for name, text in build_hf_headers(token=self.api.token).items() if name not in headers}
        return RangeReader(
            get_session(),
            self.api.endpoint,
            headers=headers,
            private=private,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            explain=self.explain,
        )

    def web_file(self, file: HubFile, commit: str, reader: RangeReader) -> WebFile:
        """A file of a commit, for reading byte ranges."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.model.id, file.name, revision=commit, endpoint=self.api.endpoint)
        web = WebFile(f"{self.model}: {file.name}", url, -1 if file.size is None else file.size, file.sha256)
        if file.size is None:
            reader.learn_size(web)
        return web

    def remember(self, commit: str) -> None:
        """Record the commit of the revision in the cache."""
        if self.model.revision != commit:
            self._get("config.json", self.model.revision, lambda done: None)

    def check_space(self, needed: int) -> None:
        """Refuse a download before it begins if the disk has too little free space."""
        place = next(place for place in (self.cache.absolute(), *self.cache.absolute().parents) if place.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            what = f"{self.model}: {needed:,} bytes to download, and {free:,} are free in {place}"
            raise HubError(what, hint=_MORE_SPACE)

    @contextmanager
    def explaining(self, what: str = "") -> Iterator[None]:
        """Turn errors of `huggingface_hub` into a `HubError` whose message begins with the model and `what`."""
        try:
            yield
        except QuantcliError:
            raise
        except Exception as error:  # its errors, the system's and those of its HTTP library have no common base class
            message, hint = self.explain(error)
            raise HubError(f"{self.model}{what}: {message}", hint=hint) from error

    def explain(self, error: Exception) -> tuple[str, str]:
        """The message for an error, in one line, and the hint."""
        message, hint = explained(error, self.api.endpoint)
        return message, hint.replace("{id}", self.model.id)

    def _cached(self, name: str, revision: str | None) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model.id, name, cache_dir=self.cache, revision=revision)
        return Path(path) if isinstance(path, str) else None

    def _get(self, name: str, revision: str | None, advance: Callable[[int], Any], *, anew: bool = False) -> Path:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            self.model.id,
            name,
            revision=revision,
            endpoint=self.api.endpoint,
            cache_dir=self.cache,
            force_download=anew,
            tqdm_class=_bar(advance),
        )
        return Path(path)


def _bar(advance: Callable[[int], Any]) -> type:
    """A progress bar class for `huggingface_hub` that shows nothing and reports the bytes to `advance`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore the bytes on the wire, which may differ from those on disk."""

        def set_transfer_postfix_str(self, *arguments: Any, **options: Any) -> None:
            """Ignore the transfer rate."""

    return Bar


# --- errors ---------------------------------------------------------------------------------------------------------------

_AGAIN: Final = "Run the command again: files that arrived whole are kept."
_MORE_SPACE: Final = "Free some space, or let HF_HOME name another place for the cache."
LOG_IN: Final = "log in with `hf auth login` or set HF_TOKEN"

_REFUSALS: Final = (
    ("GatedRepoError", "access is given on request", f"Ask for it at {{endpoint}}/{{id}}, then {LOG_IN}."),
    ("RepositoryNotFoundError", "no such model, or a private one", f"Check the name. For a private model, {LOG_IN}."),
    ("RevisionNotFoundError", "no such revision", "Give a branch, a tag or a commit; the main branch needs none."),
    ("OfflineModeIsEnabled", "not in the cache, and HF_HUB_OFFLINE is set", "Unset it to download the model."),
)
"""Classes of `huggingface_hub.errors`, subclasses first, each with message and hint."""

_STATUSES: Final[Mapping[int, tuple[str, str]]] = {
    401: ("the hub does not accept the token", "Log in again with `hf auth login`, or correct HF_TOKEN."),
    403: ("the hub denies access", "The token may lack the right to read this model."),
    429: ("too many requests", f"Wait some minutes. Users who are logged in may send more: {LOG_IN}."),
}
"""HTTP status -> message and hint."""

_TRY_LATER: Final = "Try again later."
_CHECK_CONNECTION: Final = "Check the connection, the proxy and, if it is set, HF_ENDPOINT."


def _is_answer(error: BaseException) -> bool:
    """Whether an error is an answer of the hub, rather than a failure of the connection or the server."""
    return (status := status_of(error)) is not None and status < 500


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of `huggingface_hub`; None without one."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explained(error: Exception, endpoint: str) -> tuple[str, str]:
    """The message for an error, in one line, and the hint."""
    from huggingface_hub import errors

    for cause in _chain(error):
        for kind, message, hint in _REFUSALS:
            if isinstance(cause, getattr(errors, kind)):
                return message, hint.replace("{endpoint}", endpoint)
        status = status_of(cause)
        if status is not None:
            return _STATUSES.get(status, (f"the hub answers with status {status}", _TRY_LATER))
        if isinstance(cause, errors.HTTPError):
            return f"no answer from {endpoint}: {_line(cause)}", _CHECK_CONNECTION
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return f"{cause.filename or 'the cache'}: no space left", _MORE_SPACE
        if isinstance(cause, OSError) and cause.filename:
            return f"{cause.filename}: {cause.strerror}", "HF_HOME can name another place for the cache."
    return f"the download failed: {_line(error)}", _AGAIN


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
