"""Models of the hub: which arguments name one, and downloads from a hub on loopback that does all that hubs do wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from quantcli.conversion.convert import Progress, convert
from quantcli.core.errors import HubError, ModelError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string
from quantcli.formats.hub.models import HubModel, fetch_model, find_hub_model, needed_files, parse_hub_model

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
MODEL = HubModel("org/storyteller")

pytestmark = pytest.mark.usefixtures("nobody")

# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("org/name", HubModel("org/name")),
        ("Qwen/Qwen2.5-0.5B_x", HubModel("Qwen/Qwen2.5-0.5B_x")),
        ("_a/1", HubModel("_a/1")),
        ("org/name@main", HubModel("org/name", "main")),
        ("org/name@refs/pr/3", HubModel("org/name", "refs/pr/3")),
        ("org/name@v1.0-rc+2", HubModel("org/name", "v1.0-rc+2")),
    ],
)
def test_names(text: str, model: HubModel) -> None:
    assert parse_hub_model(text) == model
    assert str(model) == text
    assert model.name == text.partition("@")[0].partition("/")[2]


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "/", "/name", "org/", "a/b/c", "./name", "../name", "~/name", "./models/foo", "/models/foo",
        "org/.name", "org/name.", "org/-name", "-org/name", "or g/name", "org/nä", "org\\name", "a--b/c", "a/b..c",
        "org/name.git", "org/" + "x" * 93, "org/name@", "org/name@/x", "org/name@a b", "org/name@a..b", "org/name@a@b",
        "https://huggingface.co/org/name", "org/name\n",
    ],
)  # fmt: skip
def test_what_names_no_model(text: str) -> None:
    assert parse_hub_model(text) is None


def test_what_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_hub_model("models/foo") == HubModel("models/foo")
    Path("models/fox").mkdir(parents=True)
    assert find_hub_model("models/fox") is None
    # A mistyped path goes nowhere; with a revision the hub is meant.
    assert find_hub_model("models/foo") is None
    assert find_hub_model("models/foo@main") == HubModel("models/foo", "main")
    Path("models/foo@main").symlink_to("nowhere")
    assert find_hub_model("models/foo@main") is None


@pytest.mark.parametrize("model", [Path("org/name"), "./org/name", "org/model.safetensors", "org/m.GGUF", "org/m.bin"])
def test_what_is_meant_as_a_path(model: str | Path) -> None:
    assert find_hub_model(model) is None


def test_a_path_does_not_wait_for_the_hub() -> None:
    found = "from quantcli.formats.hub.models import find_hub_model; find_hub_model('a/b')"
    code = f"import sys, quantcli.conversion.convert; {found}"
    check = f"{code}; assert 'huggingface_hub' not in sys.modules and 'tqdm' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


# --- which files ----------------------------------------------------------------------------------------------------------

SIDE = [
    "1_Pooling/config.json", "README.md", "added_tokens.json", "additional_chat_templates/rag.jinja", "chat_template.jinja",
    "chat_template.json",
    "config.json", "generation_config.json", "merges.txt", "modules.json", "quantize_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
]  # fmt: skip
UNNEEDED = [
    ".gitattributes", "LICENSE", "model.gguf", "model.onnx", "onnx/model.onnx", "onnx/config.json", "flax_model.msgpack",
    "tf_model.h5", "original/consolidated.00.pth", "original/tokenizer.model", "consolidated.safetensors",
    "consolidated.00.pth", "training_args.bin", "optimizer.pt", "adapter_model.safetensors", "modeling_x.py",
    "unet/model.safetensors", "preprocessor_config.json", "additional_chat_templates/a/b.jinja", "../tokenizer.json",
    "additional_chat_templates/..\\x.jinja",
]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "unneeded"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "model-00001-of-00001.safetensors", "model.fp16.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
        (["pytorch_model.bin"], []),
        (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"], []),
        (["other.safetensors"], ["pytorch_model.bin"]),
    ],
)
def test_only_what_is_needed(weights: list[str], unneeded: list[str]) -> None:
    assert needed_files([*unneeded, *weights, *UNNEEDED, *reversed(SIDE)]) == SIDE + weights


# --- downloads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetch(hub: Hub, cache: Path) -> Callable[..., Path]:
    """`fetch_model` of the hub on loopback."""

    def fetch(model: HubModel = MODEL, **options: Any) -> Path:
        return fetch_model(model, endpoint=hub.url, cache=cache, **options)

    return fetch


@pytest.fixture
def refusal(fetch: Callable[..., Path]) -> Callable[..., HubError]:
    """The error of a fetch, in one line with a hint."""

    def refusal(model: HubModel = MODEL) -> HubError:
        with pytest.raises(HubError) as caught:
            fetch(model)
        assert caught.value.message.startswith(f"{model}: ")
        assert "\n" not in caught.value.message
        assert caught.value.hint and "{" not in caught.value.hint
        return caught.value

    return refusal


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_download(hub: Hub, cache: Path, fetch: Callable[..., Path], storyteller: dict[str, bytes]) -> None:
    unneeded = dict.fromkeys(["pytorch_model.bin", "model-Q4_0.gguf", "onnx/model.onnx", "tf_model.h5"], b"x" * 200_000)
    template = {"additional_chat_templates/rag.jinja": b"{{ x }}"}
    commit = hub.commit(MODEL.id, {**unneeded, **storyteller, **template})
    snapshot = fetch()
    assert contents(snapshot) == storyteller | template
    assert snapshot == cache / "models--org--storyteller" / "snapshots" / commit
    downloaded = hub.downloaded()
    assert sorted(downloaded) == sorted({**storyteller, **template})
    assert downloaded[-1] == "model.safetensors"
    assert hub.authorizations == {None}


def test_a_download_again_asks_only_for_the_list(hub: Hub, fetch: Callable[..., Path]) -> None:
    started: list[int] = []
    first = fetch()
    hub.downloaded()
    assert fetch(started=started.append) == first
    assert not hub.downloaded()
    assert not started


def test_progress(hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes]) -> None:
    totals: list[int] = []
    steps: list[int] = []

    def started(total: int) -> Callable[[int], None]:
        totals.append(total)
        return steps.append

    fetch(started=started)
    assert totals == [sum(map(len, storyteller.values()))]
    assert sum(steps) == totals[0]
    # Only what is new is counted.
    hub.commit(MODEL.id, {**storyteller, "config.json": storyteller["config.json"] + b" "})
    fetch(started=started)
    assert totals[1] == len(storyteller["config.json"]) + 1
    assert sum(steps) == sum(totals)


def test_nothing_is_shown(fetch: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    fetch()
    assert capfd.readouterr() == ("", "")


def test_revisions(hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes]) -> None:
    main = fetch()
    old = {**storyteller, "config.json": storyteller["config.json"] + b"\n"}
    commit = hub.commit(MODEL.id, old, "refs/pr/1")
    for revision in ("refs/pr/1", commit):
        snapshot = fetch(HubModel(MODEL.id, revision))
        assert contents(snapshot) == old
        assert snapshot.name == commit
    assert fetch() == main
    # A branch that moves is followed, and what did not change is not downloaded again.
    hub.downloaded()
    hub.commit(MODEL.id, old)
    assert fetch() == snapshot
    assert hub.downloaded() == []


def test_shards_in_pytorch_files(hub: Hub, fetch: Callable[..., Path]) -> None:
    files = {
        "config.json": b"{}",
        "pytorch_model-00001-of-00002.bin": b"1" * 150_000,
        "pytorch_model-00002-of-00002.bin": b"2" * 150_000,
        "pytorch_model.bin.index.json": b"{}",
    }
    hub.commit("org/bins", {**files, "tf_model.h5": b"x"})
    assert contents(fetch(HubModel("org/bins"))) == files


# --- what goes wrong on the way -------------------------------------------------------------------------------------------


def test_a_cut_is_resumed(
    hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 65_536)
    steps: list[int] = []
    hub.cuts["model.safetensors"] = [3_000_000, 2_000_000]
    assert contents(fetch(started=lambda total: steps.append)) == storyteller
    ranges = [range_ for method, name, range_ in hub.asked if (method, name) == ("GET", "model.safetensors")]
    assert len(ranges) == 3
    assert ranges[0] is None
    first, second = (int(range_.removeprefix("bytes=").removesuffix("-")) for range_ in ranges[1:] if range_)
    assert 0 < first <= 3_000_000 < second <= 5_000_000
    assert sum(steps) == sum(map(len, storyteller.values()))


def test_a_line_that_goes_dead(
    hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.stalls["model.safetensors"] = [1_000_000]
    assert contents(fetch()) == storyteller


def test_a_token_that_is_refused_for_this_model(
    hub: Hub, refusal: Callable[..., HubError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.statuses["model.safetensors"] = [(403, None)] * 9
    error = refusal()
    assert "model.safetensors: " in error.message
    assert "denies access" in error.message


def test_what_arrived_whole_is_kept(
    hub: Hub, fetch: Callable[..., Path], refusal: Callable[..., HubError], storyteller: dict[str, bytes]
) -> None:
    hub.cuts["model.safetensors"] = [0] * 50
    error = refusal()
    assert "no answer from" in error.message or "the download failed" in error.message
    hub.cuts.clear()
    hub.downloaded()
    assert contents(fetch()) == storyteller
    assert hub.downloaded() == ["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:-1] + b"!"])
def test_damaged_files(
    hub: Hub,
    fetch: Callable[..., Path],
    refusal: Callable[..., HubError],
    storyteller: dict[str, bytes],
    name: str,
    change: Callable[[bytes], bytes],
) -> None:
    hub.sent[name] = change(storyteller[name])
    error = refusal()
    assert name in error.message
    hub.sent.clear()
    assert contents(fetch()) == storyteller


def test_a_wrong_etag_is_only_a_name(hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes]) -> None:
    hub.etags |= {"model.safetensors": "0" * 64, "config.json": "odd"}
    assert contents(fetch()) == storyteller


def test_a_file_cut_short_in_the_cache_is_replaced(
    hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes]
) -> None:
    weights = fetch() / "model.safetensors"
    os.truncate(weights, 1000)
    hub.downloaded()
    assert contents(fetch()) == storyteller
    assert hub.downloaded() == ["model.safetensors"]


def test_a_slow_hub(hub: Hub, fetch: Callable[..., Path], storyteller: dict[str, bytes]) -> None:
    hub.delay = 0.1
    assert contents(fetch()) == storyteller


def test_a_hub_that_does_not_answer_in_time(
    hub: Hub, refusal: Callable[..., HubError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.delay = 60
    assert f"no answer from {hub.url}: " in refusal().message


def test_no_hub(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HubError, match=f"^org/storyteller: no answer from {url}: .*refused") as caught:
            fetch_model(MODEL, endpoint=url, cache=cache)
    assert "HF_ENDPOINT" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("status", "what"),
    [(403, "denies access"), (418, "status 418"), (429, "too many requests"), (500, "status 500"), (503, "status 503")],
)
def test_other_answers(hub: Hub, refusal: Callable[..., HubError], status: int, what: str) -> None:
    hub.status = status
    assert what in refusal().message


def test_no_such_model(refusal: Callable[..., HubError]) -> None:
    assert refusal(HubModel("org/nothing")).message == "org/nothing: no such model, or a private one"


def test_no_such_revision(refusal: Callable[..., HubError]) -> None:
    assert refusal(HubModel(MODEL.id, "v9")).message == "org/storyteller@v9: no such revision"


def test_access_on_request(
    hub: Hub, fetch: Callable[..., Path], refusal: Callable[..., HubError], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"
    error = refusal()
    assert error.message == "org/storyteller: access is given on request"
    assert f"{hub.url}/org/storyteller" in (error.hint or "")
    assert "`hf auth login` or set HF_TOKEN" in (error.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refusal().message == "org/storyteller: the hub does not accept the token"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.authorizations.clear()
    fetch()
    assert hub.authorizations == {"Bearer hf_right"}


def test_access_on_request_to_what_is_listed(hub: Hub, refusal: Callable[..., HubError]) -> None:
    hub.token, hub.listed = "hf_right", True
    assert refusal().message == "org/storyteller: README.md: access is given on request"


def test_no_checkpoint(hub: Hub, fetch: Callable[..., Path]) -> None:
    hub.commit("org/gguf", {"config.json": b"{}", "x-Q4_K_M.gguf": b"GGUF"})
    with pytest.raises(ModelError, match=r"^org/gguf: no safetensors and no PyTorch files") as caught:
        fetch(HubModel("org/gguf"))
    assert "hf download org/gguf" in (caught.value.hint or "")
    hub.commit("org/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    with pytest.raises(ModelError, match=r"^org/lora: no config\.json") as caught:
        fetch(HubModel("org/lora"))
    assert "adapter" in (caught.value.hint or "")
    assert not hub.downloaded()


def test_too_little_space(hub: Hub, refusal: Callable[..., HubError], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(STORYTELLER)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = refusal()
    assert "1,000 are free" in error.message
    assert "HF_HOME" in (error.hint or "")
    assert not hub.downloaded()


def test_the_disk_fills(refusal: Callable[..., HubError], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert refusal().message.endswith("no space left")


# --- without the hub ------------------------------------------------------------------------------------------------------


def test_the_cache_serves_when_the_hub_does_not(
    hub: Hub, fetch: Callable[..., Path], refusal: Callable[..., HubError], storyteller: dict[str, bytes]
) -> None:
    snapshot = fetch()
    # This one is not complete: it is not taken for the model.
    hub.commit(MODEL.id, {**storyteller, "model.safetensors": b"x" * 200_000}, "cut")
    hub.cuts["model.safetensors"] = [0] * 50
    refusal(HubModel(MODEL.id, "cut"))
    for status in (500, 503):
        hub.status = status
        assert fetch() == snapshot
    hub.status = None
    hub.close()
    assert fetch() == snapshot
    assert fetch(HubModel(MODEL.id, snapshot.name)) == snapshot
    for other in (HubModel(MODEL.id, "cut"), HubModel("org/other")):
        assert "no answer from" in refusal(other).message


def test_a_refusal_is_not_answered_from_the_cache(
    hub: Hub, fetch: Callable[..., Path], refusal: Callable[..., HubError]
) -> None:
    fetch()
    hub.status = 403
    assert "denies access" in refusal().message


# --- the whole road -------------------------------------------------------------------------------------------------------


def test_convert(hub: Hub, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    totals: list[int] = []

    def fetching(total: int) -> Callable[[int], None]:
        totals.append(total)
        return lambda done: None

    (result,) = convert("org/storyteller@main", "Q8_0", progress=Progress(fetching=fetching))
    assert result.output == Path("storyteller-Q8_0.gguf")
    assert len(totals) == 1
    convert(STORYTELLER, "Q8_0", "expected.gguf")
    with open_gguf(result.output) as file, open_gguf("expected.gguf") as expected:
        assert list(file.tensors) == list(expected.tensors)
        for name, tensor in expected.tensors.items():
            assert (file.map(file.tensors[name]) == expected.map(tensor)).all()
        assert file.metadata.pop("general.organization") == string("Org")
        assert repr(file.metadata) == repr(expected.metadata)


def test_command(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}

    def quantize(model: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-W", "error", "-m", "quantcli", model, "--type", "F16", "--overwrite"]
        return subprocess.run(words, cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True, check=False)

    done = quantize("org/storyteller")
    assert (done.returncode, done.stdout.startswith("storyteller-F16.gguf: F16, ")) == (0, True), done.stderr
    assert "B/s" not in done.stderr
    written = (tmp_path / "storyteller-F16.gguf").read_bytes()
    (tmp_path / "storyteller-F16.gguf").unlink()
    hub.asked.clear()

    assert quantize("org/storyteller", HF_HUB_OFFLINE="1").returncode == 0
    assert (tmp_path / "storyteller-F16.gguf").read_bytes() == written
    failed = quantize("org/other", HF_HUB_OFFLINE="1")
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == [
        "error: org/other: not in the cache, and HF_HUB_OFFLINE is set",
        "hint: Unset it to download the model.",
    ]
    assert not hub.asked


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on Unix")
def test_an_interrupted_command(hub: Hub, tmp_path: Path) -> None:
    hub.stalls["model.safetensors"] = [1000] * 99
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    target = tmp_path / "target"
    target.mkdir()
    words = [sys.executable, "-m", "quantcli", "org/storyteller", "--type", "F16"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, cwd=target, env=environment, text=True, **pipes)
    while not any(method == "GET" and name == "model.safetensors" for method, name, _ in hub.asked):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.splitlines()[-1]) == (130, "", "error: interrupted")
    assert "Traceback" not in errors
    assert not list(target.iterdir())
