"""`quantize estimate ORG/NAME`: the headers of a model on the hub are read by ranges, its weights are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Hub

from quantcli.quality.estimate import estimate

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.mark.usefixtures("nobody")
def test_headers_alone_are_read(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found, local = estimate("org/storyteller", ["Q4_K_M"]), estimate(STORYTELLER, ["Q4_K_M"])
    # The file names its organization.
    assert 0 <= found.rows[0].file_bytes - local.rows[0].file_bytes <= 64
    assert found.rows[0].memory == local.rows[0].memory
    asked = [wanted for method, name, wanted in hub.asked if name == "model.safetensors" and method == "GET"]
    assert asked
    assert None not in asked
    spans = [wanted.removeprefix("bytes=").split("-") for wanted in asked if wanted]
    assert sum(int(last) - int(first) + 1 for first, last in spans) < (STORYTELLER / "model.safetensors").stat().st_size / 4
