"""A checkpoint reads nothing outside its directory: names in an index, links, pipes and devices, the hub's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_checkpoint import index, refusal, safetensors, values

from quantcli.core.errors import FormatError, ModelError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint

OUTSIDE = [
    "../secret.safetensors", "/etc/passwd", "parts/../../secret.safetensors", "..\\secret.safetensors", "C:\\x", "C:x",
    "\\x", "", "a\0b", "..",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_files_outside(model: Path, name: str) -> None:
    safetensors(model.parent / "secret.safetensors", a=[1])
    index(model, {"a": name})
    assert f"the file name {name!r} leads out of the model's directory" in refusal(model, ModelError)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_directory_is_refused(model: Path, name: str) -> None:
    outside = model.parent / "outside"
    safetensors(outside, a=[1])
    safetensors(model / "model.safetensors", a=[1])
    (model / name).unlink()
    (model / name).symlink_to(outside)
    assert f"{name}: a link that leads out of the model's directory, to {outside}" in refusal(model)


def test_a_linked_folder_out_of_the_directory_is_refused(model: Path) -> None:
    (model.parent / "outside").mkdir()
    safetensors(model.parent / "outside" / "1.safetensors", a=[1])
    (model / "parts").symlink_to(model.parent / "outside")
    index(model, {"a": "parts/1.safetensors"})
    assert "leads out of the model's directory" in refusal(model, ModelError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "1.safetensors"])
def test_a_pipe_is_not_waited_for(model: Path, name: str) -> None:
    safetensors(model / "1.safetensors", a=[1])
    index(model, {"a": "1.safetensors"})
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    error = ModelError if name == "1.safetensors" else FormatError
    assert f"{name}: expected a file, found a device, pipe or socket" in refusal(model, error)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json", "1.safetensors"])
def test_a_folder_is_no_file(model: Path, name: str) -> None:
    safetensors(model / "1.safetensors", a=[1])
    index(model, {"a": "1.safetensors"})
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    error = ModelError if name == "1.safetensors" else FormatError
    assert f"{name}: expected a file, found a directory" in refusal(model, error)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no devices in its tree")
def test_an_index_cannot_reach_a_device_by_a_link(model: Path) -> None:
    (model / "zero.safetensors").symlink_to("/dev/zero")
    index(model, {"a": "zero.safetensors"})
    assert "a link that leads out of the model's directory, to /dev/zero" in refusal(model, ModelError)


def test_an_index_that_is_a_link_out_of_the_directory(model: Path) -> None:
    outside = model.parent / "outside.json"
    outside.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    safetensors(model / "1.safetensors", a=[1])
    (model / "model.safetensors.index.json").symlink_to(outside)
    assert f"a link that leads out of the model's directory, to {outside}" in refusal(model)


def test_a_huge_index_is_not_read(model: Path) -> None:
    with (model / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "an index of 1099511627776 bytes, at most 100000000 expected" in refusal(model)


def test_a_huge_config_is_not_read(model: Path) -> None:
    os.truncate(model / "config.json", 1 << 40)
    assert "1099511627776 bytes, at most 268435456 expected" in refusal(model)


def test_every_place_outside_is_listed_at_once(model: Path) -> None:
    (model.parent / "outside").mkdir()
    (model / "linked").symlink_to(model.parent / "outside")
    safetensors(model.parent / "outside" / "2.safetensors", b=[1])
    safetensors(model / "1.safetensors", a=[1])
    names = {"a": "1.safetensors", "b": "linked/2.safetensors", "c": "/etc/passwd", "d": "../x", "e": "gone.safetensors"}
    index(model, names)
    message = refusal(model, ModelError)
    assert "missing shards: gone.safetensors; " in message
    assert "leads out of the model's directory, to " in message
    for name in ("/etc/passwd", "../x"):
        assert f"the file name {name!r} leads out of the model's directory" in message


def test_side_files_outside_are_not_read(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    (model.parent / "secret").write_text("{}")
    for name in ("tokenizer.json", "README.md"):
        (model / name).symlink_to(model.parent / "secret")
    with open_checkpoint(model) as checkpoint:
        for name in ("tokenizer.json", "README.md"):
            with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
                checkpoint.file(name)
        with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
            checkpoint.json("tokenizer.json")


def test_a_link_within_the_directory_is_followed(model: Path) -> None:
    safetensors(model / "weights", a=[1])
    (model / "model.safetensors").symlink_to("weights")
    assert values(open_checkpoint(model)) == {"a": [1]}


def test_a_link_to_nothing_is_an_incomplete_download(model: Path) -> None:
    (model / "model.safetensors").symlink_to("../../blobs/0123")
    assert "model.safetensors: a link to a file that does not exist" in refusal(model)


def test_a_link_to_itself_is_refused(model: Path) -> None:
    (model / "model.safetensors").symlink_to("model.safetensors")
    assert "model.safetensors: a link that cannot be followed" in refusal(model)


def test_the_directory_itself_may_be_a_link(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    link = model.parent / "link"
    link.symlink_to(model)
    assert values(open_checkpoint(link)) == {"a": [1]}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model in the cache of the Hugging Face hub: every file is a link to a blob."""
    repository = tmp_path / "hub" / "models--org--name"
    directory = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    directory.mkdir(parents=True)
    safetensors(repository / "blobs" / "b1", a=[1])
    (repository / "blobs" / "b2").write_text("{}")
    (directory / "model.safetensors").symlink_to("../../blobs/b1")
    (directory / "config.json").symlink_to("../../blobs/b2")
    return directory


def test_the_hub_cache_is_read_through_its_links(snapshot: Path) -> None:
    assert values(open_checkpoint(snapshot)) == {"a": [1]}
    assert values(open_checkpoint(snapshot / "model.safetensors")) == {"a": [1]}


def test_a_folder_of_a_snapshot_reads_the_same_blobs(snapshot: Path) -> None:
    folder = snapshot / "unet"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../../../blobs/b1")
    (folder / "config.json").symlink_to("../../../blobs/b2")
    assert values(open_checkpoint(folder)) == {"a": [1]}


def test_a_blob_may_be_a_link_to_one_that_all_repositories_share(snapshot: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    shared = snapshot.parents[2] / "blobs" / "01" / "0123"
    shared.parent.mkdir(parents=True)
    (blobs / "b1").rename(shared)
    (blobs / "b1").symlink_to("../../blobs/01/0123")
    assert values(open_checkpoint(snapshot)) == {"a": [1]}


@pytest.mark.parametrize(
    "target",
    [
        "../../../models--org--other/blobs/b1",
        "../../refs",
        "../other/x",
        "../../blobs/deep/x",
        "../../../blobs/x",
        "../../../blobs/01/23",
        "../../../../blobs/01/0123",
    ],
)
def test_a_snapshot_links_to_its_own_blobs_only(snapshot: Path, target: str) -> None:
    place = Path(os.path.normpath(snapshot / target))
    place.parent.mkdir(parents=True, exist_ok=True)
    safetensors(place, a=[1])
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(target)
    assert "a link that leads out of the model's directory" in refusal(snapshot)
