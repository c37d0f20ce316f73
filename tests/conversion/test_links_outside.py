"""A conversion reads nothing outside the model's directory, whatever links are in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import FormatError

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json", "README.md", "chat_template.jinja",
        "additional_chat_templates/x.jinja", "added_tokens.json",
    ],
)  # fmt: skip
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    model = shutil.copytree(STORYTELLER, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    outside = tmp_path / "outside"
    outside.write_bytes((model / name).read_bytes() if (model / name).exists() else b"{}")
    place = model / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(outside)
    with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
        convert(model, "F16", tmp_path / "out.gguf", dry_run=True)


def test_a_linked_folder_of_templates_is_refused(tmp_path: Path) -> None:
    model = shutil.copytree(STORYTELLER, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jinja").write_text("secret")
    (model / "additional_chat_templates").symlink_to(tmp_path / "outside")
    with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
        convert(model, "F16", tmp_path / "out.gguf", dry_run=True)
