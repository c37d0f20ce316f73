"""`quantize push`: files and a model card go to a hub on loopback, in one commit; what is there is not sent again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command
from hub_server import Hub

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.edit import write_edited
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string, u32
from quantcli.formats.hub.upload import MARK

pytestmark = [
    pytest.mark.usefixtures("nobody"),
    # huggingface_hub gives its HTTP library what that will not take for ever.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
REPOSITORY = "me/storyteller-GGUF"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("push")
    convert(STORYTELLER, ["Q4_K_M", "Q8_0"], place / "story-{type}.gguf")
    return [place / "story-Q4_K_M.gguf", place / "story-Q8_0.gguf"]


@pytest.fixture
def push(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """The command at this hub, with a token that may write."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the protocol of files in one piece
    address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return lambda *words: run_command(capsys, "push", *words)


def files_of(hub: Hub, id_: str = REPOSITORY) -> dict[str, bytes]:
    return {name: file.data for name, file in hub.trees[id_, hub.commits[id_, "main"]].items()}


def test_files_and_card_appear_in_one_commit(push, hub, files):
    status, said, errors = push(*files, REPOSITORY, "--private")
    assert (status, errors) == (0, "")
    assert said.startswith(f"{hub.url}/{REPOSITORY}: 2 files, ")
    there = files_of(hub)
    assert {name: there[name] for name in there if name != "README.md"} == {path.name: path.read_bytes() for path in files}
    assert hub.created[0]["visibility"] == "private"
    assert len([commit for id_, commit in hub.trees if id_ == REPOSITORY]) == 2  # the empty one, and this
    assert hub.authorizations - {None} == {"Bearer hf_writer"}


def test_a_second_run_sends_what_is_missing(push, hub, files):
    hub.uploads_taken = 1
    status, _, errors = push(*files, REPOSITORY)
    assert (status, errors.splitlines()[0]) == (1, f"error: {REPOSITORY}: the hub answers with status 400")
    assert files_of(hub) == {}
    hub.uploads_taken = None
    assert push(*files, REPOSITORY)[0] == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == 2
    assert set(files_of(hub)) == {path.name for path in files} | {"README.md"}


def test_the_card_has_what_is_known(push, hub, files, tmp_path):
    with open_gguf(files[0]) as file:
        more = {
            "quantize.imatrix.file": string("im.gguf"), "quantize.imatrix.dataset": string("/data/calibration.txt"),
            "quantize.imatrix.chunks_count": u32(40),
            "general.base_model.0.repo_url": string("https://huggingface.co/org/storyteller"),
        }  # fmt: skip
        path = tmp_path / files[0].name
        write_edited(file, {**file.metadata, **more}, path, overwrite=False, advance=lambda done: None)
    rows = [
        {"text": "/w/wiki.txt", "path": f"/x/{path.name}", "perplexity": 12.5, "kl_divergence": {"mean": 0.0123},
         "same_top": 0.915},
    ]  # fmt: skip
    (tmp_path / "eval.json").write_text(json.dumps({"base": "/x/F16.gguf", "results": rows}))
    made = ("--eval", tmp_path / "eval.json", "--command", "quantize org/storyteller --type Q4_K_M --imatrix im.gguf")
    status, card, errors = push(path, REPOSITORY, "--dry-run", *made)
    assert (status, errors, hub.created, hub.uploads) == (0, "", [], [])
    head, text = card.split(f"---\n\n{MARK}\n")
    assert head.splitlines() == [
        "---", 'license: "mit"', 'base_model: "org/storyteller"', 'base_model_relation: "quantized"',
        'library_name: "gguf"', 'language: ["en"]', 'tags: ["gguf", "quantized", "text-generation"]',
    ]  # fmt: skip
    size = path.stat().st_size / 2**20
    assert f"| story-Q4_K_M.gguf | Q4_K_M | {size:.2f} MiB |" in text
    assert "| 0.01230 | 91.50% | 12.5000 | wiki.txt |" in text
    assert "relative to F16.gguf" in text
    assert "All files: quantized with the importance matrix `im.gguf` of the text `calibration.txt`, 40 chunks." in text
    assert "quantize org/storyteller --type Q4_K_M --imatrix im.gguf" in text
    assert "made from [org/storyteller](https://huggingface.co/org/storyteller)" in text


def test_a_card_that_someone_wrote_is_kept(push, hub, files):
    hub.commit(REPOSITORY, {"README.md": b"mine"})
    status, said, _ = push(files[0], REPOSITORY)
    assert (status, files_of(hub)["README.md"]) == (0, b"mine")
    assert "its model card is kept" in said
    push(files[0], REPOSITORY, "--overwrite")
    assert MARK.encode() in files_of(hub)["README.md"]
    push(files[1], REPOSITORY)  # one of ours is replaced
    assert b"Q8_0" in files_of(hub)["README.md"]


@pytest.mark.parametrize(
    ("arrange", "message", "hint"),
    [
        (lambda hub, env: env.delenv("HF_TOKEN"), "no one is logged in to the hub", "hf auth login"),
        (lambda hub, env: setattr(hub, "read_only", True), "the token may not write to me", "write access"),
        (lambda hub, env: setattr(hub, "token", "hf_other"), "the hub does not accept the token", "hf auth login"),
        (
            lambda hub, env: hub.others.add(("datasets", REPOSITORY)),
            "this repository is a dataset, expected a model",
            "name",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(arrange, message, hint, push, hub, files, monkeypatch):
    arrange(hub, monkeypatch)
    status, _, errors = push(files[0], REPOSITORY)
    first, *rest = errors.splitlines()
    assert (status, first) == (1, f"error: {REPOSITORY}: {message}")
    assert len(rest) == 1
    assert hint in rest[0]


@pytest.mark.parametrize("name", ["story", "a/b/c", "me/name@main"])
def test_what_names_no_repository_is_refused(name, push, files):
    status, _, errors = push(files[0], name)
    assert (status, errors.splitlines()[0]) == (2, f"error: {name!r} is not the name of a repository")


def test_all_shards_are_uploaded(push, hub, files, capsys, tmp_path):
    run_command(capsys, "split", files[0], "-o", tmp_path / "part", "--split-max-tensors", 20)
    first = min(tmp_path.glob("part-*.gguf"))
    assert push(first, REPOSITORY)[0] == 0
    assert set(files_of(hub)) == {path.name for path in tmp_path.glob("part-*.gguf")} | {"README.md"}
