"""Models that are read on a hub without storing them: what comes, how much of it, and what hubs do wrong on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hub_server import Hub

from quantcli.core.errors import FormatError, HubError, ModelError, QuantcliError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.formats.hub import remote
from quantcli.formats.hub.models import HubModel
from quantcli.formats.hub.remote import open_remote

FIXTURES = Path(__file__).parent / "fixtures"
STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
MODEL = HubModel("org/storyteller")
WEIGHTS = "model.safetensors"

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the small model has many."""
    monkeypatch.setattr(remote, "BLOCK", 1 << 18)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where files could be left."""
    temporary, memory = tmp_path / "temporary", tmp_path / "memory"
    for place in (temporary, memory):
        place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(remote, "_MEMORY", memory)
    return [temporary, memory]


@pytest.fixture
def model(hub: Hub, places: list[Path]) -> Iterator[Callable[..., Checkpoint]]:
    """Opens a model of the hub on loopback; it is closed afterwards, and nothing may be left."""
    opened = []

    def open_model(id_: HubModel = MODEL) -> Checkpoint:
        opened.append(open_remote(id_, endpoint=hub.url))
        return opened[-1]

    yield open_model
    for checkpoint in opened:
        checkpoint.close()
    assert [list(place.iterdir()) for place in places] == [[], []]


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: tensor.load().tobytes() for name, tensor in checkpoint.tensors.items()}


EXPECTED = contents(open_checkpoint(STORYTELLER))


def ranges(hub: Hub, name: str = WEIGHTS) -> list[tuple[int, int]]:
    """The parts of a file that were asked for."""
    asked = [wanted for method, file, wanted in hub.asked if (method, file) == ("GET", name)]
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "") for wanted in asked]
    assert all(found), asked
    return [(int(match[1]), int(match[2]) + 1) for match in found if match]


def refusal(read: Callable[[], object], kind: type[QuantcliError] = HubError) -> str:
    with pytest.raises(kind) as caught:
        read()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


# --- what comes -----------------------------------------------------------------------------------------------------------


def test_tensors_and_small_files(hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]) -> None:
    checkpoint = model()
    assert checkpoint.config == json.loads(storyteller["config.json"])
    assert str(checkpoint.path) == "org/storyteller"
    assert checkpoint.directory.name == "storyteller"
    assert {path.name for path in checkpoint.directory.iterdir()} == storyteller.keys() - {WEIGHTS}
    assert {path.name: path.read_bytes() for path in checkpoint.directory.iterdir()}.items() <= storyteller.items()
    assert contents(checkpoint) == EXPECTED


def test_opening_reads_headers_only(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    model()
    assert sum(stop - start for start, stop in ranges(hub)) <= 2 * remote.PAGE
    assert len(ranges(hub)) <= 2


def test_rows_come_in_blocks_once(hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]) -> None:
    checkpoint = model()
    hub.asked.clear()
    connections = hub.connections
    for name, tensor in checkpoint.tensors.items():
        for row in range(0, tensor.rows, 7):
            out = np.empty((min(7, tensor.rows - row), tensor.row_bytes), np.uint8)
            tensor.read(row, row + len(out), out)
            assert out.tobytes() == EXPECTED[name][row * tensor.row_bytes :][: out.size]
    size = len(storyteller[WEIGHTS])
    assert sorted(ranges(hub)) == [(at, min(at + remote.BLOCK, size)) for at in range(0, size, remote.BLOCK)]
    assert hub.connections - connections <= remote.CONNECTIONS * 2  # the hub's and the other host's


def test_old_blocks_make_room(hub: Hub, model: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCKS", 6)
    checkpoint = model()
    file = next(iter(checkpoint.tensors.values())).file  # type: ignore[attr-defined]
    assert contents(checkpoint) == EXPECTED
    blocks = range(0, file.size, remote.BLOCK)
    for start in blocks:
        file.read_into(memoryview(bytearray(1)), start)
    hub.asked.clear()
    for start in blocks[-6:]:
        file.read_into(memoryview(bytearray(1)), start)
    assert not ranges(hub)
    file.read_into(memoryview(bytearray(1)), blocks[-7])
    assert (blocks[-7], blocks[-6]) in ranges(hub)


def shard(value: float, name: str) -> bytes:
    data = np.full(5, value, "<f4").tobytes()
    header = json.dumps({name: {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def sharded(places_by_name: dict[str, str], **shards: bytes) -> dict[str, bytes]:
    index = json.dumps({"weight_map": places_by_name}).encode()
    files = {f"{name}.safetensors": data for name, data in shards.items()}
    return {"config.json": b"{}", "model.safetensors.index.json": index, **files}


def test_shards(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    names = {"a": "s1.safetensors", "b": "s2.safetensors"}
    hub.commit("org/shards", sharded(names, s1=shard(1, "a"), s2=shard(2, "b"), s3=b"unlisted"))
    checkpoint = model(HubModel("org/shards"))
    assert {name: tensor.load().tolist() for name, tensor in checkpoint.tensors.items()} == {"a": [1] * 5, "b": [2] * 5}


def test_faults_of_shards_are_listed(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    names = {"a": "s1.safetensors", "b": "s2.safetensors", "c": "../up.safetensors", "d": "s4.safetensors"}
    hub.commit("org/shards", sharded(names, s1=shard(1, "a"), s4=shard(1, "a")))
    message = refusal(lambda: model(HubModel("org/shards")), ModelError)
    assert message.startswith("org/shards/model.safetensors.index.json: missing shards: s2.safetensors; ")
    assert "the file name '../up.safetensors' leads out of the repository" in message
    assert "tensors missing from their shard: d (s4.safetensors)" in message


@pytest.mark.parametrize("fixture", ["views", "views_legacy", "module"])
def test_pytorch_files(hub: Hub, model: Callable[..., Checkpoint], fixture: str, tmp_path: Path) -> None:
    data = (FIXTURES / f"{fixture}.pt").read_bytes()
    hub.commit("org/torch", {"config.json": b"{}", "pytorch_model.bin": data})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    (tmp_path / "here" / "pytorch_model.bin").write_bytes(data)
    assert contents(model(HubModel("org/torch"))) == contents(open_checkpoint(tmp_path / "here"))


def test_the_commit_is_looked_up_once(hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]) -> None:
    checkpoint = model()
    hub.commit(MODEL.id, {**storyteller, WEIGHTS: bytes(200_000)})
    assert contents(checkpoint) == EXPECTED


def test_a_revision(hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]) -> None:
    hub.commit(MODEL.id, {"config.json": b'{"v": 2}', WEIGHTS: shard(2, "a")}, "v2")
    assert model(HubModel(MODEL.id, "v2")).config == {"v": 2}


def test_the_small_files_go_where_there_is_room(
    model: Callable[..., Checkpoint], places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model().directory.is_relative_to(places[1])
    monkeypatch.setattr(remote, "_SPARE", 1 << 62)
    assert model().directory.is_relative_to(places[0])


# --- what goes wrong on the way -------------------------------------------------------------------------------------------


def test_a_cut_answer_goes_on_where_it_broke_off(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    checkpoint = model()
    hub.asked.clear()
    hub.cuts[WEIGHTS] = [100_000, 0, 5, 70_000, 0]
    assert contents(checkpoint) == EXPECTED
    starts = [start for start, _ in ranges(hub)]
    assert any(start % remote.BLOCK for start in starts)
    assert not hub.cuts[WEIGHTS]


def test_an_answer_that_stalls(hub: Hub, model: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    checkpoint = model()
    hub.stalls[WEIGHTS] = [1000]
    assert contents(checkpoint) == EXPECTED


def test_a_slow_hub(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    hub.delay = 0.05
    assert contents(model()) == EXPECTED


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("wait", [None, "0", "0.01", formatdate(0, usegmt=True), "soon"])
def test_a_passing_refusal(hub: Hub, model: Callable[..., Checkpoint], status: int, wait: str | None) -> None:
    checkpoint = model()
    hub.statuses[WEIGHTS] = [(status, wait)] * 3
    name, tensor = next(iter(checkpoint.tensors.items()))
    assert tensor.load().tobytes() == EXPECTED[name]
    assert not hub.statuses[WEIGHTS]


def test_waiting_grows_and_heeds_the_server(
    hub: Hub, model: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Clock(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return self.is_set()

    monkeypatch.setattr("quantcli.formats.hub.ranges.FIRST_DELAY", 0.5)
    monkeypatch.setattr("quantcli.formats.hub.ranges.Event", Clock)
    monkeypatch.setattr(remote, "AHEAD", 0)
    checkpoint = model()
    hub.statuses[WEIGHTS] = [(503, None), (429, "7"), (503, None), (503, None)]
    next(iter(checkpoint.tensors.values())).load()
    assert waits == [0.5, 7, 2, 4]


def test_a_server_that_asks_for_too_long_a_wait(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    checkpoint = model()
    hub.statuses[WEIGHTS] = [(429, "3600")] * 99
    message = refusal(lambda: contents(checkpoint))
    assert message == f"org/storyteller: {WEIGHTS}: status 429: the server asks for a longer wait than the limit"


def test_a_server_that_fails_for_good(hub: Hub, model: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AHEAD", 0)
    checkpoint = model()
    hub.statuses[WEIGHTS] = [(503, None)] * 6
    read = next(iter(checkpoint.tensors.values())).load
    assert refusal(read) == f"org/storyteller: {WEIGHTS}: cannot be read, after 6 attempts: status 503"
    read()  # and can be once it has recovered


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418])
def test_a_refusal_for_good(hub: Hub, model: Callable[..., Checkpoint], status: int) -> None:
    checkpoint = model()
    hub.status = status
    assert refusal(lambda: contents(checkpoint)).startswith(f"org/storyteller: {WEIGHTS}: ")


def test_no_hub(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    checkpoint = model()
    hub.close()
    message = refusal(lambda: contents(checkpoint))
    assert f"{WEIGHTS}: cannot be read, after 6 attempts: " in message
    assert refusal(model).startswith(f"org/storyteller: no answer from {hub.url}: ")


def test_a_server_without_ranges(hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]) -> None:
    hub.ranges = False
    message = refusal(model)
    assert message == f"org/storyteller: {WEIGHTS}: the server does not support range requests"
    # A small file that is wanted whole is as good so.
    hub.commit("org/small", {"config.json": b"{}", WEIGHTS: shard(3, "a")})
    checkpoint = model(HubModel("org/small"))
    assert checkpoint.tensors["a"].load().tolist() == [3] * 5


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda data: data[:-1] + b"!", "its ETag is another"),
        (lambda data: data + b"!", "it has {longer} bytes and not {size}"),
        (lambda data: data[:-1], "it has {shorter} bytes and not {size}"),
        (lambda data: data[:10], "it ends before byte"),
    ],
)
def test_a_file_that_changes_under_way(
    hub: Hub,
    model: Callable[..., Checkpoint],
    storyteller: dict[str, bytes],
    change: Callable[[bytes], bytes],
    how: str,
) -> None:
    checkpoint = model()
    size = len(storyteller[WEIGHTS])
    hub.sent[WEIGHTS] = change(storyteller[WEIGHTS])
    message = refusal(checkpoint.tensors["model.norm.weight"].load)
    how = how.format(size=size, longer=size + 1, shorter=size - 1)
    assert message.startswith(f"org/storyteller: {WEIGHTS}: the file has changed while it was read: {how}")


def test_a_hub_that_lists_another_file_than_it_has(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    hub.etags[WEIGHTS] = "0" * 64
    assert f"its hash is {'0' * 64}, the hub listed " in refusal(model)


def test_a_small_file_that_arrives_damaged(
    hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes]
) -> None:
    hub.sent["config.json"] = storyteller["config.json"][:-1] + b" "
    assert "org/storyteller: config.json: arrived damaged: its hash is " in refusal(model)


@pytest.mark.parametrize("name", ["tokenizer\\..\\..\\x", "vocab:\\x\\..\\y"])
def test_a_small_file_whose_name_leads_outside(
    hub: Hub, model: Callable[..., Checkpoint], storyteller: dict[str, bytes], name: str
) -> None:
    hub.commit(MODEL.id, {**storyteller, name: b"x"})
    assert refusal(model).endswith(": a name that leads out of the repository")


def test_an_address_that_expires_is_asked_for_anew(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    checkpoint = model()
    hub.lifetime = 12
    assert contents(checkpoint) == EXPECTED
    assert 2 < len(hub.used) < len(ranges(hub))


@pytest.mark.parametrize("listed", [False, True])
def test_access_on_request(hub: Hub, model: Callable[..., Checkpoint], listed: bool) -> None:
    hub.token, hub.listed = "hf_right", listed
    assert refusal(model).endswith(": access is given on request")


def test_the_token_goes_to_the_hub_only(
    hub: Hub, model: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.token, hub.lifetime = "hf_right", 12
    assert contents(model()) == EXPECTED
    assert hub.authorizations == {"Bearer hf_right"}
    assert hub.elsewhere == {None}


def test_no_such_model(model: Callable[..., Checkpoint]) -> None:
    assert refusal(lambda: model(HubModel("org/nothing"))) == "org/nothing: no such model, or a private one"
    assert refusal(lambda: model(HubModel(MODEL.id, "v9"))) == "org/storyteller@v9: no such revision"


def test_a_damaged_header(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    hub.commit("org/bad", {"config.json": b"{}", WEIGHTS: b"\xff" * 200_000})
    with pytest.raises(FormatError, match=r"^org/bad/model\.safetensors: not a safetensors file"):
        model(HubModel("org/bad"))


def test_reading_that_is_ended(hub: Hub, model: Callable[..., Checkpoint]) -> None:
    checkpoint = model()
    checkpoint.interrupt()
    with pytest.raises(HubError, match="reading was stopped"):
        contents(checkpoint)


# --- the whole road -------------------------------------------------------------------------------------------------------


COMMAND = """
import sys
from pathlib import Path
from quantcli.formats.hub import remote
remote._MEMORY = Path(sys.argv[1])
from quantcli.cli.main import main
main(sys.argv[2:])
"""
"""`quantize`, which keeps small files in a place of the test's own: others may run at the same time."""


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Runs `quantize org/storyteller` in a directory of its own."""
    for place in ("work", "temporary", "memory"):
        (tmp_path / place).mkdir()
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "NO_PROXY": "127.0.0.1,localhost",
    }

    def run(*words: str, **more: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-W", "error", "-c", COMMAND, str(tmp_path / "memory"), *words]
        return subprocess.Popen(line, cwd=tmp_path / "work", env={**environment, **more}, stdout=-1, stderr=-1, text=True)

    return run


def test_the_command(hub: Hub, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]) -> None:
    for overwrite in ([], ["--overwrite"]):
        with command("org/storyteller", "--remote", "--type", "Q8_0,F16", *overwrite) as process:
            assert process.wait() == 0, process.communicate()
    written = {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()}
    assert written.keys() == {"storyteller-Q8_0.gguf", "storyteller-F16.gguf"}
    assert not (tmp_path / "home" / "hub").exists()
    assert not [*(tmp_path / "temporary").iterdir(), *(tmp_path / "memory").iterdir()]
    with command("org/storyteller", "--type", "Q8_0,F16", "--overwrite") as process:
        assert process.wait() == 0, process.communicate()
    assert (tmp_path / "home" / "hub").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()} == written


def test_a_dry_run_downloads_nothing(hub: Hub, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]) -> None:
    words = ("org/storyteller", "--type", "Q4_K_M", "--dry-run", "--json")
    with command(*words) as process:
        said = json.loads(process.communicate()[0])
    assert said["output"] is None
    assert len(said["tensors"]) == 38
    assert sum(stop - start for start, stop in ranges(hub)) <= 2 * remote.PAGE
    assert not (tmp_path / "home" / "hub").exists()
    # What is in the cache is planned from there, even offline.
    with command("org/storyteller", "--type", "F16") as process:
        assert process.wait() == 0
    hub.downloaded()
    with command(*words) as process:
        assert json.loads(process.communicate()[0])["tensors"] == said["tensors"]
    assert not hub.downloaded()
    with command(*words, HF_HUB_OFFLINE="1") as process:
        assert json.loads(process.communicate()[0])["tensors"] == said["tensors"]
    assert not hub.asked


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("org/storyteller", 1, "org/storyteller: not in the cache, and HF_HUB_OFFLINE is set"),
        (str(STORYTELLER), 2, f"{STORYTELLER}: --remote is for a model of the hub"),
    ],
)
def test_wrong_turns(command: Callable[..., subprocess.Popen[str]], model: str, status: int, message: str) -> None:
    with command(model, "--remote", "--type", "F16", HF_HUB_OFFLINE="1") as process:
        said = process.communicate()[1].splitlines()
    assert (process.returncode, said[0]) == (status, f"error: {message}")
    assert len(said) == 2


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals as on Unix")
def test_an_interruption(hub: Hub, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]) -> None:
    hub.stalls[WEIGHTS] = [None, *[1000] * 99]
    with command("org/storyteller", "--remote", "--type", "F16") as process:
        while len(ranges(hub)) < 2:
            time.sleep(0)
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.split("\n")[-2:]) == (130, ["error: interrupted", ""])
    assert not [path for place in ("work", "temporary", "memory") for path in (tmp_path / place).iterdir()]
