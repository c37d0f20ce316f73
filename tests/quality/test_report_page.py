"""The page of a report: well-formed, small, alone, and inert whatever strings are in it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import reports
from html_pages import Page

from quantcli.quality.report.content import Report
from quantcli.quality.report.document import document
from quantcli.quality.report.page import DETAILS, MOST_BYTES, render, render_with
from quantcli.quality.report.position_lines import COLOURS

HOSTILE = (
    "</script></style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'><!--{{ 7*7 }}\x1b]0;\u202e\udcff"
)

EVERY = reports.report()
SHAPES = {
    "all": EVERY,
    "one file": replace(EVERY, files=EVERY.files[:1], texts=(reports.text("prose", [0.1]),)),
    "one text": reports.report(texts=("prose",)),
    "no base": reports.report(compared=False),
    "no texts": reports.report(texts=()),
    "neither": reports.report(texts=(), compared=False),
    "one layer": reports.report(layers=1),
    "no layers": reports.report(layers=0),
    "no tensors": replace(EVERY, files=tuple(replace(file, tensors=(), parameters=0) for file in EVERY.files)),
    "equal to the base": replace(EVERY, texts=(reports.text("prose", [0.0] * len(EVERY.files)),)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_is_well_formed_small_and_loads_nothing(shape: str) -> None:
    text = render(SHAPES[shape])
    page = Page(text)
    assert len(text.encode()) < MOST_BYTES
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert not {"link", "img", "iframe", "object", "embed", "image", "use", "a"} & {name for name, _ in page.elements}
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.elements)
    assert "nan" not in re.findall(r"[a-z]+", text.split("<script")[0].split("</style>")[1])
    policy = page.named("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert [attributes.get("id") for attributes in page.named("script")] == ["maps-data", None]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_chart_has_a_name_and_a_table(shape: str) -> None:
    report = SHAPES[shape]
    page = Page(render(report))
    charts = [attributes for attributes in page.named("svg") if "role" in attributes]
    assert all(attributes["aria-label"] for attributes in charts)
    assert len(page.named("desc")) == len(page.named("title")) - 1 == len(charts)
    captions = page.text
    for caption, has in {
        "Files": True,
        "Figures by text": bool(report.texts),
        "Figures by position": bool(report.texts),
        "Sizes by role": True,
        "Types of ": True,
    }.items():
        assert (caption in captions) == has, caption
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = [attributes["aria-labelledby"] for attributes in page.named("section")]
    assert set(labelled) <= set(ids)


def hostile() -> Report:
    """The report with the string in every place that a file or a name reaches."""

    def spoil(file: reports.ReportFile, number: int) -> reports.ReportFile:
        name = f"{HOSTILE}{number}"
        tensors = [
            replace(each, name=HOSTILE + each.name, part=HOSTILE + each.part, reason=HOSTILE) for each in file.tensors
        ]
        return replace(
            file, path=name, label=name, title=name, recipe=name, facts=((HOSTILE, HOSTILE),), tensors=tuple(tensors),
            errors={HOSTILE + key: replace(error, name=HOSTILE) for key, error in file.errors.items()},
        )  # fmt: skip

    assert EVERY.base is not None
    return replace(
        EVERY,
        title=HOSTILE,
        files=tuple(spoil(file, number) for number, file in enumerate(EVERY.files)),
        base=spoil(EVERY.base, 9),
        texts=tuple(replace(text, name=HOSTILE) for text in EVERY.texts),
        origin=((HOSTILE, HOSTILE),),
    )


def test_strings_of_files_are_inert() -> None:
    text = render(hostile())
    page = Page(text)
    calm = Page(render(EVERY))
    assert [name for name, _ in page.elements if name in ("script", "style", "title")] == [
        name for name, _ in calm.elements if name in ("script", "style", "title")
    ]
    assert not page.named("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert {name for name, _ in page.elements} == {name for name, _ in calm.elements}
    assert "\x1b" not in text and "\u202e" not in text
    assert "{{ 7*7 }}" in page.text and "49" not in page.text
    assert "alert(1)" in page.text
    text.encode()
    # The data of maps end where they should, and hold the strings.
    data = re.search(r'id="maps-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert "<script>alert(1)</script>" in json.loads(data[1])[0]["label"]


def test_a_dominated_file_is_struck_out() -> None:
    page = Page(render(EVERY))
    assert page.named("s") == [{"title": "dominated by IQ4_XS"}]
    assert "Q4_0 is dominated: IQ4_XS is no larger" in page.text
    assert sum("dominated" in attributes.get("class", "") for attributes in page.named("g")) == 1


@pytest.mark.parametrize(("layers", "copies"), [(126, 4), (400, 4), (200, 8)])
def test_a_large_page_leaves_out_what_the_document_has(layers: int, copies: int) -> None:
    report = reports.report(layers=layers, copies=copies)
    text = render(report)
    assert len(text.encode()) < MOST_BYTES
    page = Page(text)
    assert "the JSON document has them" in page.text
    assert len(document(report)["files"][-1]["tensors"]) == 2 + 7 * layers
    maps = json.loads(re.search(r'id="maps-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    drawn = [attributes["data-map"] for attributes in page.named("svg") if "data-map" in attributes]
    assert all(maps[int(number)] is not None for number in drawn)


def test_each_detail_shows_less() -> None:
    sizes = [len(render_with(EVERY, detail)) for detail in DETAILS]
    assert sizes[0] > sizes[1] > sizes[-1]
    assert [detail.cells for detail in DETAILS] == sorted((detail.cells for detail in DETAILS), reverse=True)


def test_a_document_has_every_figure_of_the_page() -> None:
    found = document(EVERY)
    json.dumps(found, allow_nan=False)
    assert found["base"] == "folder/model-F16.gguf"
    assert [file["path"] for file in found["files"]] == [file.path for file in EVERY.files]
    price = found["prices"][1]
    assert (price["label"], price["dominated_by"], price["cost"]["mean"]) == ("Q4_0", "IQ4_XS", pytest.approx(0.06))
    tensor = found["files"][0]["tensors"][2]
    assert (tensor["name"], tensor["layer"], tensor["type"]) == ("blk.0.attn_q.weight", 0, "Q2_K")
    assert tensor["reason"] == "the base type of Q2_K"
    assert tensor["error"]["relative_rmse"] == 0.01
    assert found["files"][0]["tensors"][0]["layer"] is None
    assert len(found["positions"]) == len(EVERY.files) * len(EVERY.texts)
    band = found["positions"][0]["bands"][0]
    assert (band["start"], band["stop"], band["kl_divergence"]["mean"]) == (16, 20, 0.3)
    assert math.isclose(band["loss"]["mean"], 2)


def palette(dark: bool) -> dict[str, str]:
    """The colours of the style, by name."""
    style = render(EVERY).split("<style>")[1].split("</style>")[0]
    themes = style.split("@media screen and (prefers-color-scheme: dark)")
    parts = [dict(re.findall(r"--([\w-]+): (#\w{6})", theme)) for theme in themes]
    return parts[0] | (parts[1] if dark else {})


def luminance(colour: str) -> float:
    """Relative luminance, by WCAG 2."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_and_scales_differ_without_hue(dark: bool) -> None:
    colours = palette(dark)
    paper, ink, on_dark = colours["paper"], colours["ink"], colours["on-dark"]
    texts = ["ink", "soft", "accent", *(f"s{index}" for index in range(COLOURS))]
    assert min(contrast(colours[name], paper) for name in texts) >= 4.5
    assert min(contrast(colours[f"b{index}"], ink if index < 5 else on_dark) for index in range(9)) >= 4.5
    assert min(contrast(colours[f"c{index}"], on_dark) for index in (0, 2, 4, 5)) >= 4.5
    assert min(contrast(colours[f"c{index}"], "#14171b") for index in (1, 3, 6)) >= 4.5
    assert contrast(colours["c7"], ink) >= 4.5
    assert contrast(colours["focus"], paper) >= 3
    for scale in ([f"b{index}" for index in range(9)], [f"e{index}" for index in range(12)]):
        steps = [luminance(colours[name]) for name in scale]
        assert steps == sorted(steps, reverse=not dark)
        assert min(contrast(colours[a], colours[b]) for a, b in pairwise(scale)) > 1.1
