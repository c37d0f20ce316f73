"""Which model an argument names, and what it is called: paths, and folders of the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantcli.conversion.convert import convert
from quantcli.conversion.locate import Location, locate, locate_path
from quantcli.core.errors import FormatError, ModelError, UsageError
from quantcli.formats.gguf.reader import open_gguf

STORIES = Path(__file__).parents[1] / "golden" / "stories260K"
COMMIT = "a1b2c3d4" * 5


def cached(cache: Path, repository: str = "models--org--Tiny-7B", *commits: str, main: str | None = COMMIT) -> Path:
    """A repository as `huggingface_hub` keeps it: the files of a snapshot are links to blobs."""
    place = cache / repository
    (place / "blobs").mkdir(parents=True)
    for commit in commits or (COMMIT,):
        snapshot = place / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in STORIES.iterdir():
            (place / "blobs" / file.name).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    if main is not None:
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(main)
    return place


@pytest.mark.skipif(os.name == "nt", reason="links are made as on Unix")
@pytest.mark.parametrize("inner", ["", "snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/model.safetensors"])
def test_a_folder_of_the_hubs_cache_gives_the_models_name(inner: str, tmp_path: Path, monkeypatch) -> None:
    repository = cached(tmp_path / "hub")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    output = convert(repository / inner, "Q8_0")[0].output
    assert output == Path("Tiny-7B-Q8_0.gguf")
    with open_gguf(output) as file:
        assert (file.get("general.name"), file.get("general.organization")) == ("Tiny 7B", "Org")


@pytest.mark.skipif(os.name == "nt", reason="links are made as on Unix")
def test_so_does_a_link_into_the_cache_and_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    snapshot = cached(tmp_path) / "snapshots" / COMMIT
    (tmp_path / "latest").symlink_to(snapshot)
    assert locate_path(tmp_path / "latest") == Location(tmp_path / "latest", "Tiny-7B", "org/Tiny-7B")
    monkeypatch.chdir(snapshot)
    assert locate(".") == Location(Path(), "Tiny-7B", "org/Tiny-7B")


def test_a_model_of_no_organization_has_none(tmp_path: Path) -> None:
    assert locate_path(cached(tmp_path, "models--gpt2")).model_id == "gpt2"


def test_main_says_which_snapshot(tmp_path: Path) -> None:
    repository = cached(tmp_path, "models--org--Tiny-7B", "0" * 40, COMMIT)
    assert locate_path(repository).place == repository / "snapshots" / COMMIT


def test_a_repository_that_does_not_say_which_snapshot_is_refused(tmp_path: Path) -> None:
    several = cached(tmp_path, "models--org--several", "0" * 40, COMMIT, main=None)
    with pytest.raises(ModelError, match=rf"which .* the model\? snapshots/{'0' * 40}, snapshots/{COMMIT}"):
        locate_path(several)
    (tmp_path / "models--org--none" / "snapshots").mkdir(parents=True)
    with pytest.raises(FormatError, match="no snapshot"):
        locate_path(tmp_path / "models--org--none")
    assert locate_path(cached(tmp_path, "models--org--one", main=None)).name == "one"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dir/model.safetensors", "dir"), ("dir/other.bin", "other"), ("dir/x-00001-of-00003.gguf", "x"), ("dir", "dir")],
)
def test_names_outside_the_cache(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    if name != "dir":
        (tmp_path / name).write_bytes(b"")
    assert locate_path(tmp_path / name) == Location(tmp_path / name, expected)


def test_remote_is_for_models_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--remote is for a model of the hub"):
        locate(str(tmp_path), remote=True)
