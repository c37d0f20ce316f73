"""The page of a report in headless Chromium, where it is installed: its script, the keyboard, and narrow screens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reports

from quantcli.quality.report.content import Report
from quantcli.quality.report.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

WITHOUT_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
PROBE = """
<script>
// A page whose window is not active yet gets no events of focus: they are sent to it then.
for (const kind of [HTMLElement, SVGElement]) for (const name of ["focus", "blur"]) {
  const own = kind.prototype[name];
  kind.prototype[name] = function (...given) {
    own.apply(this, given);
    if (!document.hasFocus()) this.dispatchEvent(new FocusEvent(name));
  };
}
const seen = {};
const key = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const tipText = () => tip.hidden ? null : tip.textContent;
%s
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
</script>
</body>"""


def dumped(tmp_path: Path, text: str, *, width: int = 1200, dark: bool = False) -> str:
    """The document after the scripts have run. Nothing may be logged, such as an exception or a refused request."""
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    assert CHROMIUM is not None
    words = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--enable-logging=stderr", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert logged == []
    return done.stdout


def probed(tmp_path: Path, script: str, *, shown: Report | None = None, **more: Any) -> dict[str, Any]:
    """What a script finds that runs in the page after its own, without the policy that would forbid it."""
    text = WITHOUT_POLICY.sub("", render(shown or reports.report()), count=1)
    found = dumped(tmp_path, text.replace("</body>", PROBE % script), **more)
    match = re.search(r'<pre id="seen">(.*?)</pre>', found)
    assert match is not None
    result: dict[str, Any] = json.loads(match[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    return result


def test_the_policy_allows_the_script_and_nothing_else(tmp_path: Path) -> None:
    text = render(reports.report())
    found = dumped(tmp_path, text)
    assert '<g class="mark" role="img"' in text and 'tabindex="-1"' not in text
    assert 'tabindex="-1"' in found
    with pytest.raises(AssertionError, match="CONSOLE"):
        dumped(tmp_path, text.replace("</body>", "<script>document.title = 'run';</script></body>"))


def test_arrow_keys_go_from_mark_to_mark(tmp_path: Path) -> None:
    seen = probed(
        tmp_path,
        """
        const marks = [...document.querySelector("svg.plot").querySelectorAll(".mark")];
        seen.stops = marks.map((mark) => mark.tabIndex);
        marks[0].focus();
        seen.first = tipText();
        key(marks[0], "ArrowRight");
        seen.second = tipText();
        seen.at = marks.indexOf(document.activeElement);
        key(marks[1], "End");
        seen.last = tipText();
        key(marks[3], "ArrowRight");
        seen.beyond = marks.indexOf(document.activeElement);
        seen.then = marks.map((mark) => mark.tabIndex);
        document.activeElement.blur();
        seen.hidden = tipText();
        """,
    )
    assert (seen["stops"], seen["then"]) == ([0, -1, -1, -1], [-1, -1, -1, 0])
    assert seen["first"].startswith("Q2_K: ") and "mean KL divergence 0.300" in seen["first"]
    assert seen["second"].endswith("dominated by IQ4_XS")
    assert seen["last"].startswith("Q8_0: ")
    assert (seen["at"], seen["beyond"], seen["hidden"]) == (1, 3, None)


def test_a_name_with_markup_is_shown_as_text(tmp_path: Path) -> None:
    shown = reports.report()
    named = replace(shown, files=(replace(shown.files[0], label="<b>bold</b>"), *shown.files[1:]))
    seen = probed(
        tmp_path,
        """
        document.querySelector("svg.plot .mark").focus();
        seen.tip = tipText();
        seen.elements = tip.childElementCount + document.querySelectorAll("b").length;
        """,
        shown=named,
    )
    assert seen["tip"].startswith("<b>bold</b>: ")
    assert seen["elements"] == 0


def test_every_mark_says_something(tmp_path: Path) -> None:
    seen = probed(
        tmp_path,
        """
        seen.said = [...document.querySelectorAll(".mark")].map((mark) => { mark.focus(); return tipText(); });
        seen.titles = document.querySelectorAll("svg title").length;
        """,
    )
    kinds = len(reports.KINDS)
    # Points, bars of two texts, bands of lines, and parts of byte bars.
    assert len(seen["said"]) == kinds * (1 + 2 + 4 + 5)
    assert all(seen["said"])
    # A browser would show these as tooltips of its own.
    assert seen["titles"] == 0


def test_arrow_keys_go_through_a_heat_map(tmp_path: Path) -> None:
    seen = probed(
        tmp_path,
        """
        const svg = document.querySelectorAll("svg[data-map]")[1];
        const press = (...names) => { for (const name of names) key(svg, name); return tipText(); };
        seen.down = press("ArrowDown");
        seen.right = press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight");
        seen.up = press("ArrowUp", "ArrowUp");
        const box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 70 }));
        seen.pointed = tipText();
        """,
    )
    assert seen["down"] == "layer 0, attn_q: Q2_K, relative error 1 %, SQNR 40.0 dB"
    assert seen["right"] == "layer 2, attn_q: Q2_K, relative error 1.2 %, SQNR 38.4 dB"
    assert seen["up"] == "token_embd: Q6_K, relative error 0.9 %, SQNR 40.9 dB"
    assert seen["pointed"] == "layer 1, attn_v: Q2_K, relative error 1.1 %, SQNR 39.2 dB"


def long_names() -> Report:
    """A report with long names of the model, files and texts."""
    shown = reports.report(texts=("a text with a name that is longer than the others.txt", "short.txt"))
    files = [replace(file, label=f"{file.label}-with-an-importance-matrix-of-mixed-texts-v2") for file in shown.files]
    return replace(shown, title="A-model-of-one-word-" * 4, files=tuple(files), origin=(("Command", "x" * 400),))


@pytest.mark.parametrize("shown", [reports.report(), long_names()], ids=["short names", "long names"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, width: int, shown: Report) -> None:
    seen = probed(
        tmp_path,
        """
        for (const part of document.querySelectorAll("details")) part.open = true;
        seen.page = document.documentElement.scrollWidth;
        seen.screen = innerWidth;
        // Labels in charts, except those that the style hides.
        const isBeyond = (box) => box.width && (box.left < 0 || box.right > innerWidth);
        const texts = [...document.querySelectorAll("svg text")];
        seen.beyond = texts.filter((text) => isBeyond(text.getBoundingClientRect())).map((text) => text.textContent);
        seen.tall = document.documentElement.scrollHeight;
        """,
        shown=shown,
        width=width,
    )
    assert seen["page"] <= seen["screen"]
    assert seen["beyond"] == []
    assert seen["tall"] > 900


def test_a_dark_screen_has_a_dark_page(tmp_path: Path) -> None:
    script = """
        const style = getComputedStyle(document.body);
        seen.paper = style.backgroundColor;
        seen.ink = style.color;
    """
    light, dark = (probed(tmp_path, script, dark=dark) for dark in (False, True))
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(20, 23, 27)"
    assert light["ink"] != dark["ink"]


def test_printing_opens_the_plans(tmp_path: Path) -> None:
    seen = probed(
        tmp_path,
        """
        const open = () => document.querySelectorAll("details.printed[open]").length;
        seen.before = open();
        dispatchEvent(new Event("beforeprint"));
        seen.printing = open();
        dispatchEvent(new Event("afterprint"));
        seen.after = open();
        """,
    )
    assert (seen["before"], seen["printing"], seen["after"]) == (0, len(reports.KINDS), 0)
