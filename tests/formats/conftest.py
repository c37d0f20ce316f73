"""A hub on loopback for the tests of models that come from one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.fixture
def storyteller() -> dict[str, bytes]:
    """The files of a small model by name."""
    return {path.name: path.read_bytes() for path in sorted(STORYTELLER.iterdir())}


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No one is logged in, connections are made anew, and nothing waits between attempts."""
    import huggingface_hub
    from huggingface_hub import constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr("quantcli.formats.hub.ranges.FIRST_DELAY", 0.0)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(storyteller: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with the model `org/storyteller`."""
    with Hub() as hub:
        hub.commit("org/storyteller", storyteller)
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a config.json and no tensors yet."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama", "limit": [0.0, Infinity]}')
    return directory
