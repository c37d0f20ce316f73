"""Upload files to a repository of the Hugging Face hub, with the `huggingface_hub` package.

Each large file is uploaded by itself, and all of them appear in one commit. What has been uploaded stays on the hub: after
an interruption, the next run sends only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import HubError, QuantcliError, UsageError
from quantcli.formats.hub.models import LOG_IN, explained, parse_hub_model, status_of

CARD: Final = "README.md"
MARK: Final = "<!-- written by quantize push -->"
"""A line of model cards that may be replaced."""

_OTHER_TYPES: Final = ("dataset", "space")


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub. `card` says whether it has a new model card."""

    repository: str
    url: str
    commit: str
    card: bool


def push(
    repository: str,
    files: Sequence[Path],
    card: str,
    *,
    private: bool = False,
    replace_card: bool = False,
    bars: bool = False,
    endpoint: str | None = None,
    advance: Callable[[Path], Any] = lambda path: None,
) -> Pushed:
    """Upload files and a model card to a repository, which is made if it does not exist.

    A model card that someone else has written is kept, unless `replace_card` is set.

    Args:
        repository: `ORG/NAME`.
        files: the files; each keeps its name.
        card: the text of README.md.
        private: make a new repository private.
        replace_card: replace any model card.
        bars: show the progress bars of `huggingface_hub`.
        endpoint: the hub; by default that of `huggingface_hub`.
        advance: called with each file that is uploaded.

    Raises:
        UsageError: if `repository` is no name of one, or two files have the same name.
        HubError: without a token, without permission, for a repository of another type, if the hub does not answer.
    """
    check_names(repository, files)
    client = _Client.connect(repository, endpoint)
    with client.explaining(), _bars(bars):
        from huggingface_hub import CommitOperationAdd

        client.create(private=private)
        additions = [CommitOperationAdd(path.name, path) for path in files]
        for addition, path in zip(additions, files, strict=True):
            client.api.preupload_lfs_files(repository, [addition])
            advance(path)
        old = client.card()
        new = replace_card or old is None or MARK in old
        if new:
            additions.append(CommitOperationAdd(CARD, card.encode()))
        names = ", ".join(path.name for path in files[:3]) + (" ..." if len(files) > 3 else "")
        made = client.api.create_commit(repository, additions, commit_message=f"Upload {names}")
        return Pushed(repository, f"{client.api.endpoint}/{repository}", made.oid, new)


def check_names(repository: str, files: Sequence[Path]) -> None:
    """Refuse what cannot be uploaded.

    Raises:
        UsageError: if `repository` is no name of one, or two files have the same name.
    """
    found = parse_hub_model(repository)
    if found is None or found.revision is not None:
        raise UsageError(f"{repository!r} is not the name of a repository", hint="it is named ORG/NAME, and comes last")
    names = [path.name for path in files]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UsageError(f"two files are named {double}", hint="a repository has one file of a name: rename one")


@dataclass(frozen=True)
class _Client:
    """`huggingface_hub`, for one repository."""

    repository: str
    api: Any

    @classmethod
    def connect(cls, repository: str, endpoint: str | None) -> _Client:
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise HubError(f"{repository}: no one is logged in to the hub", hint=f"{LOG_IN[0].upper()}{LOG_IN[1:]}")
        return cls(repository, HfApi(endpoint=endpoint))

    def create(self, *, private: bool) -> None:
        """Make the repository, unless it exists.

        Raises:
            HubError: if one of another type has the name.
        """
        if self.api.repo_exists(self.repository):
            return
        other = next((kind for kind in _OTHER_TYPES if self.api.repo_exists(self.repository, repo_type=kind)), None)
        if other is not None:
            raise HubError(f"{self.repository}: this repository is a {other}, expected a model", hint="choose another name")
        self.api.create_repo(self.repository, private=private, exist_ok=True)

    def card(self) -> str | None:
        """The model card that is there; None without one."""
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = self.api.hf_hub_download(self.repository, CARD)
        except EntryNotFoundError:
            return None
        return Path(path).read_text("utf-8", errors="replace")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn errors of `huggingface_hub` into a `HubError`."""
        try:
            yield
        except QuantcliError:
            raise
        except Exception as error:  # its errors, the system's and those of its HTTP library have no common base class
            message, hint = self._explained(error)
            raise HubError(f"{self.repository}: {message}", hint=hint) from error

    def _explained(self, error: Exception) -> tuple[str, str]:
        if status_of(error) == 403:
            organization = self.repository.partition("/")[0]
            hint = f"A token with write access: {self.api.endpoint}/settings/tokens"
            return f"the token may not write to {organization}", hint
        if type(error).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set", "Unset it to upload."
        message, hint = explained(error, self.api.endpoint)
        return message.replace("the download failed", "the upload failed"), hint.replace("{id}", self.repository)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Without the progress bars of `huggingface_hub`, unless they are to be shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
