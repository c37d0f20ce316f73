"""`quantize report` and `quantize eval --plot` as a user meets them; `quality` tests the parts of the page."""

from __future__ import annotations

import json

import pytest
import reports
from changed_file import write_changed
from command_line import run_command
from html_pages import Page

from quantcli.cli.terminal_plot import HEIGHT, WIDTH, TerminalPlot
from quantcli.conversion.convert import convert
from quantcli.formats.gguf.spec import string
from quantcli.quality.report.prices import prices

STORY = "Once upon a time there was a little dog named Max. He liked to play with a big red ball in the park. " * 4
HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for kind in ("F32", "Q8_0", "Q4_0"):
        convert(golden / "stories260K", kind, folder / f"tiny-{kind}.gguf")
    (folder / "story.txt").write_text(STORY)
    (folder / "other.txt").write_text(STORY[50:])
    return folder


@pytest.fixture
def asked(files, tmp_path):
    """Words of a whole request: two files, a base and two texts."""
    words = [files / "tiny-Q4_0.gguf", files / "tiny-Q8_0.gguf", "--base", files / "tiny-F32.gguf"]
    for name in ("story.txt", "other.txt"):
        words += ["--text", files / name]
    return [*words, "--ctx", 32, "--chunks", 2]


def test_a_report_has_the_figures_of_eval_and_compare(files, asked, tmp_path, capsys):
    output = tmp_path / "report.html"
    status, out, err = run_command(capsys, "report", *asked, "-o", output)
    assert (status, err) == (0, "")
    assert out.startswith(f"{output}: 2 files, ")
    assert out.endswith(f" KiB; figures in {tmp_path / 'report.json'}\n")
    found = json.loads((tmp_path / "report.json").read_text())
    expected = json.loads(run_command(capsys, "eval", *asked, "--json")[1])
    assert found["evaluation"] | {"seconds": 0} == expected | {"seconds": 0}
    compared = json.loads(
        run_command(capsys, "compare", files / "tiny-F32.gguf", files / "tiny-Q4_0.gguf", "--json")[1]
    )
    errors = {tensor["name"]: tensor["error"] for tensor in found["files"][0]["tensors"]}
    for row in compared["tensors"]:
        assert errors[row["name"]] == {key: row[key] for key in errors[row["name"]]}
    assert [file["label"] for file in found["files"]] == ["Q4_0", "Q8_0"]
    assert [fact["text"].split(":")[0] for fact in found["origin"] if fact["label"] == "Text"] == [
        str(files / "story.txt"), str(files / "other.txt")
    ]  # fmt: skip
    assert found["files"][0]["file_bytes"] == (files / "tiny-Q4_0.gguf").stat().st_size
    assert {band["start"] for row in found["positions"] for band in row["bands"]} == set(range(16, 31))


def test_a_page_names_what_it_was_made_from(files, asked, tmp_path, capsys):
    run_command(capsys, "report", *asked, "-o", tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    for said in ("compared with F32", "on 2 texts, 60 scored tokens", "--ctx 32 --chunks 2", "report.json", "story.txt"):
        assert said in text, said
    assert "Q4_0 gives the token embedding" in text


@pytest.mark.parametrize("base", [True, False])
def test_without_texts_nothing_is_evaluated(files, tmp_path, capsys, monkeypatch, base):
    monkeypatch.setattr("quantcli.runner.load.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ["--base", files / "tiny-F32.gguf"] if base else []
    output = tmp_path / "types.html"
    status, out, err = run_command(capsys, "report", files / "tiny-Q4_0.gguf", *words, "-o", output, "--json")
    assert (status, err) == (0, "")
    said = json.loads(out)
    assert said == {
        "output": str(output), "json": str(tmp_path / "types.json"), "bytes": output.stat().st_size, "files": 1
    }  # fmt: skip
    found = json.loads((tmp_path / "types.json").read_text())
    assert (found["evaluation"], found["prices"], found["positions"]) == (None, [], [])
    assert ("error" in found["files"][0]["tensors"][0]) == base
    assert ("Relative error, in percent" in output.read_text()) == base


def test_strings_of_files_are_inert(files, tmp_path, capsys):
    changes = {key: string(HOSTILE) for key in ("general.name", "general.license", "quantize.imatrix.file")}
    spoiled = write_changed(files / "tiny-Q4_0.gguf", tmp_path / "<img src=x onerror=alert(1)>.gguf", changes)
    status, _, err = run_command(capsys, "report", spoiled, "-o", tmp_path / "report.html")
    assert (status, err) == (0, "")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.named("img")
    assert len(page.named("script")) == 2
    assert "\x1b" not in text
    assert page.text.count("<script>alert(1)</script>\\x1b[2J") >= 3
    assert "<img src=x onerror=alert(1)>" in page.text


def test_an_existing_page_or_document_is_kept(files, tmp_path, capsys):
    asked = ["report", files / "tiny-Q4_0.gguf", "-o", tmp_path / "report.html"]
    for name in ("report.html", "report.json"):
        (tmp_path / name).write_text("mine")
        status, out, err = run_command(capsys, *asked)
        assert (status, out) == (1, "")
        assert f"{name}: the file exists" in err
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
        (tmp_path / name).unlink()
    (tmp_path / "report.json").write_text("mine")
    assert run_command(capsys, *asked, "--overwrite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert "mine" not in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["tiny-Q4_0.gguf", "-o", "tiny-Q4_0.gguf", "--overwrite"], 1, "would replace a file it is made from"),
        (["tiny-Q4_0.gguf", "-o", "report.json"], 2, "the JSON document is beside it"),
        (["tiny-Q4_0.gguf", "-o", "folder/"], 2, "expected a file, found a directory"),
        (["tiny-Q4_0.gguf", "-o", "none/report.html"], 1, "the directory does not exist"),
        (["tiny-Q4_0.gguf"], 2, "-o"),
        (["none.gguf", "-o", "report.html"], 1, "none.gguf"),
        (["story.txt", "-o", "report.html"], 1, "story.txt"),
        (["tiny-Q4_0.gguf", "--text", "story.txt", "--ctx", "512", "-o", "report.html"], 1, "needs 1024 or more"),
    ],
)
def test_bad_requests_end_with_one_line(files, capsys, monkeypatch, words, status, message):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    found, out, err = run_command(capsys, "report", *words)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]
    assert sorted(files.iterdir()) == before


def test_another_model_is_refused(files, tmp_path, capsys):
    other = write_changed(files / "tiny-F32.gguf", tmp_path / "other.gguf", {"general.architecture": string("qwen2")})
    status, _, err = run_command(
        capsys, "report", files / "tiny-Q4_0.gguf", "--base", other, "-o", tmp_path / "report.html"
    )
    assert status == 1
    assert "are different models" in err
    assert not (tmp_path / "report.html").exists()


# The plot in the terminal


def test_eval_draws_a_plot_below_its_tables(asked, capsys, monkeypatch):
    plain = run_command(capsys, "eval", *asked)[1]
    status, out, err = run_command(capsys, "eval", *asked, "--plot")
    assert (status, err) == (0, "")
    assert out.startswith(plain)
    drawn = out[len(plain) :].splitlines()
    assert drawn[1] == "Size against mean KL divergence in nats, logarithmic"
    assert max(map(len, drawn)) <= WIDTH
    assert any("o Q4_0" in line for line in drawn[2:9])
    assert any("o Q8_0" in line for line in drawn[9 : 2 + HEIGHT])
    assert "\x1b" not in out
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert "\x1b[36m" in run_command(capsys, "eval", *asked, "--plot")[1].split("Size against")[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert run_command(capsys, "eval", *asked, "--plot")[1] == out


def test_a_plot_is_no_part_of_a_document(asked, capsys):
    status, out, err = run_command(capsys, "eval", *asked, "--plot", "--json")
    assert (status, out) == (2, "")
    assert "--plot and --json" in err


def plotted(costs, sizes, *, labels=None, width=None):
    found = prices(labels or list("abcdefgh")[: len(costs)], sizes, [reports.text("", costs).result])
    return list(TerminalPlot(found).lines(width, lambda text, _: text))


def test_points_are_where_they_belong():
    lines = plotted([0.3, 0.06, 0.05, 0.001], [100 << 20, 210 << 20, 200 << 20, 400 << 20])
    rows = lines[2 : 2 + HEIGHT]
    # The label of c is at its left, because b is at its right.
    shown = {"a": "o a", "b": "x b", "c": "c o", "d": "o d"}
    places = {
        name: (row, line.index(text) + text.index(text.strip(name).strip()))
        for row, line in enumerate(rows)
        for name, text in shown.items()
        if text in line
    }
    assert places.keys() == set("abcd")
    assert places["a"][0] < places["b"][0] <= places["c"][0] < places["d"][0]
    assert places["a"][1] < places["c"][1] < places["b"][1] < places["d"][1]
    assert lines[2 + HEIGHT].startswith(" " * 8 + "+-")
    assert "MiB" in lines[3 + HEIGHT]
    assert lines[4 + HEIGHT] == "x b is dominated: c is no larger, and no worse on these texts"


@pytest.mark.parametrize("width", [None, 200, 80, 60, 20])
@pytest.mark.parametrize("costs", [[0.2], [0.0], [0.0, 0.1], [None, None, None], [0.1] * 8, [1e-9, 5.0]])
def test_any_costs_can_be_drawn(costs, width):
    lines = plotted(costs, [1 << 30] * len(costs), labels=["a\x1b", "y" * 100, *"cdefgh"][: len(costs)], width=width)
    assert max(map(len, lines[2:])) <= max(33, min(80, width or 80)) or "dominated" in lines[-1]
    assert len([line for line in lines if "o" in line]) >= 1
    assert "\x1b" not in "".join(lines)
