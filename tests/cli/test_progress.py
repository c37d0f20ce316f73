"""Progress bars leave nothing behind on a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest
from terminal import on_terminal, screen

from quantcli.cli.output import byte_progress, say

pytest.importorskip("pty", reason="there are no such terminals here")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of stderr. To be called in the test, because pytest replaces stderr after the fixtures."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    return stderr


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_the_result_is_a_line_of_its_own(tmp_path, columns):
    output = tmp_path / "m.gguf"
    status, written = on_terminal(["examples/storyteller", "--type", "F16", "-o", output], columns)
    assert status == 0
    shown = "".join(screen(written, columns))
    result = rf"(compiled .* the next time)?{re.escape(str(output))}: F16, [^|%]* in \d+\.\d s"
    assert re.fullmatch(result, shown.replace("  ", "")), shown


def test_chunks_and_bytes_share_a_line(tmp_path):
    words = ["tests/golden/stories260K", "--type", "Q4_0", "--imatrix", "auto", "-o", tmp_path / "m.gguf"]
    status, written = on_terminal(words, 240)
    assert status == 0
    assert "/100 [" in written
    shown = [line for line in screen(written, 240) if "kernels in" not in line]
    assert re.fullmatch(r"importance matrix: collected from quantcli-calibration-\d+, 51,200 tokens in .*", shown[0])
    assert shown[-2].startswith(f"{tmp_path}/m.gguf: Q4_0")
    assert not any("|" in line for line in shown)


def test_a_bar_that_was_drawn_at_once_is_cleared(monkeypatch):
    stderr = terminal(monkeypatch)
    with byte_progress("quantizing") as bar:
        bar.reset(100)
    assert "quantizing" in stderr.getvalue()
    assert screen(stderr.getvalue()) == [""]


def test_a_bar_is_cleared_before_an_error(monkeypatch):
    stderr = terminal(monkeypatch)
    with pytest.raises(ValueError, match="no"), byte_progress("quantizing") as bar:
        bar.reset(100)
        raise ValueError("no")
    assert screen(stderr.getvalue()) == [""]


def test_a_warning_does_not_end_up_in_a_bar(monkeypatch):
    stderr = terminal(monkeypatch)
    with byte_progress("quantizing") as bar:
        bar.reset(100)
        say("warning: something", err=True)
        assert screen(stderr.getvalue())[0] == "warning: something"
        assert screen(stderr.getvalue())[1].startswith("quantizing")
    assert screen(stderr.getvalue()) == ["warning: something", ""]
