"""GGUF files of the hub: which one a name means, and commands that take such names, with a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub

from quantcli.conversion.convert import convert
from quantcli.core.errors import HubError
from quantcli.formats.hub.gguf_files import HubGGUF, choose_files, fetch_gguf, parse_hub_gguf
from quantcli.formats.hub.models import HubModel

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
MODEL = HubModel("org/name-GGUF")

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name-GGUF", HubGGUF(MODEL)),
        ("org/name-GGUF:Q8_0", HubGGUF(MODEL, "Q8_0")),
        ("org/name-GGUF@main:q4_k_m", HubGGUF(HubModel("org/name-GGUF", "main"), "q4_k_m")),
        ("hf.co/org/name-GGUF", HubGGUF(MODEL)),
        ("hf.co/org/name-GGUF:IQ4_XS", HubGGUF(MODEL, "IQ4_XS")),
        ("https://huggingface.co/org/name-GGUF", HubGGUF(MODEL)),
        ("https:/hf.co/org/name-GGUF:Q8_0", HubGGUF(MODEL, "Q8_0")),
        (
            "https://huggingface.co/org/name-GGUF/resolve/main/sub/m-Q8_0.gguf?download=true",
            HubGGUF(HubModel("org/name-GGUF", "main"), file="sub/m-Q8_0.gguf"),
        ),
        (
            "https://huggingface.co/org/name-GGUF/blob/abc/m.gguf",
            HubGGUF(HubModel("org/name-GGUF", "abc"), file="m.gguf"),
        ),
        ("model.gguf", None),
        ("folder/model.gguf", None),
        ("./org/name", None),
        ("/a/b:Q8_0", None),
        ("org/name:", None),
        ("https://example.org/org/name", None),
    ],
)
def test_names(text, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_hub_gguf(text) == found


SHARDS = [f"big/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
NAMES = ["README.md", "mmproj-m-F16.gguf", "imatrix.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m.IQ4_XS.gguf", *SHARDS]


@pytest.mark.parametrize(
    ("wanted", "names", "chosen"),
    [
        (HubGGUF(MODEL), NAMES, ["m-Q4_K_M.gguf"]),
        (HubGGUF(MODEL, "UD-Q4_K_M"), NAMES, ["m-UD-Q4_K_M.gguf"]),
        (HubGGUF(MODEL, "iq4_xs"), NAMES, ["m.IQ4_XS.gguf"]),
        (HubGGUF(MODEL, "Q8_0"), NAMES, SHARDS),
        (HubGGUF(MODEL, file=SHARDS[0]), NAMES, SHARDS),
        (HubGGUF(MODEL), ["b-Q8_0.gguf", "a-Q6_K.gguf"], ["a-Q6_K.gguf"]),
        (HubGGUF(MODEL), ["model.safetensors", "mmproj-F16.gguf"], []),
        (HubGGUF(MODEL, "Q8_0"), ["model.safetensors"], []),
    ],
)
def test_which_file_is_meant(wanted, names, chosen):
    assert choose_files(wanted, names) == chosen


@pytest.mark.parametrize("wanted", [HubGGUF(MODEL, "Q5_K_M"), HubGGUF(MODEL, "Q4_K"), HubGGUF(MODEL, file="x.gguf")])
def test_what_there_is_is_told(wanted):
    with pytest.raises(HubError, match="it has no") as raised:
        choose_files(wanted, NAMES)
    assert "m-Q4_K_M.gguf" in (raised.value.hint or "")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("gguf")
    convert(STORYTELLER, ["Q4_K_M", "Q8_0"], folder)
    convert(STORYTELLER, "Q5_K_M", folder / "s-Q5_K_M.gguf", max_shard_bytes=1_000_000)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_downloaded_once(hub: Hub, files, tmp_path):
    hub.commit("org/name-GGUF", files)
    wanted = HubGGUF(MODEL, "Q8_0")
    path = fetch_gguf(wanted, endpoint=hub.url, cache=tmp_path)
    assert path is not None
    assert path.read_bytes() == files["storyteller-Q8_0.gguf"]
    hub.asked.clear()
    assert fetch_gguf(wanted, endpoint=hub.url, cache=tmp_path) == path
    assert not [asked for asked in hub.asked if asked[0] == "GET" and asked[1].endswith(".gguf")]
    hub.status = 503
    assert fetch_gguf(wanted, endpoint=hub.url, cache=tmp_path) == path, "the hub is away"
    hub.status = 404
    with pytest.raises(HubError):
        fetch_gguf(wanted, endpoint=hub.url, cache=tmp_path)


def test_a_damaged_download_is_not_used(hub: Hub, files, tmp_path):
    hub.commit("org/name-GGUF", files)
    name = "storyteller-Q8_0.gguf"
    hub.sent[name] = bytes([files[name][0] ^ 1]) + files[name][1:]
    with pytest.raises(HubError, match="arrived damaged"):
        fetch_gguf(HubGGUF(MODEL, "Q8_0"), endpoint=hub.url, cache=tmp_path)
    del hub.sent[name]
    path = fetch_gguf(HubGGUF(MODEL, "Q8_0"), endpoint=hub.url, cache=tmp_path)
    assert path is not None
    assert path.read_bytes() == files[name]


def run(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    line = [sys.executable, "-m", "quantcli", *words]
    return subprocess.run(line, env=environment, check=False, capture_output=True, text=True, cwd=home)


def test_commands_take_names_of_the_hub(hub: Hub, files, tmp_path):
    """Of a type, of shards, of a file, and of a repository without GGUF files, whose checkpoint runs as it is."""
    hub.commit("org/name-GGUF", files)
    prompt = ("--prompt", "Once upon a time", "-n", "3", "--temp", "0")
    shards = sorted(name for name in files if "-of-" in name)
    for name in (
        "org/name-GGUF:Q8_0", "hf.co/org/name-GGUF:Q5_K_M", "org/storyteller",
        f"https://huggingface.co/org/name-GGUF/blob/main/{shards[0]}",
    ):  # fmt: skip
        answer = run(hub, tmp_path, "run", name, *prompt)
        assert (answer.returncode, answer.stdout) == (0, ", there was\n"), f"{name}: {answer.stderr}"
    inspected = run(hub, tmp_path, "inspect", "org/name-GGUF:Q8_0")
    assert (inspected.returncode, "Q8_0" in inspected.stdout) == (0, True)
    assert run(hub, tmp_path, "tokenize", "org/name-GGUF", "a").returncode == 0
    none = run(hub, tmp_path, "run", "org/name-GGUF:Q2_K", *prompt)
    assert none.returncode == 1
    assert none.stderr.startswith("error: org/name-GGUF: it has no GGUF file of type Q2_K")


def test_a_checkpoint_runs_as_it_is(capfd):
    from quantcli.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["run", str(STORYTELLER), "--prompt", "Once upon a time", "-n", "3", "--temp", "0"])
    assert not ended.value.code
    assert capfd.readouterr().out == ", there was\n"
