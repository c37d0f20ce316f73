"""The parts of a report that compute: scales, prices, names, groups."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import reports

from quantcli.conversion.convert import convert
from quantcli.conversion.plan import PlanOptions, parse_override
from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.reader import open_gguf
from quantcli.quality.evaluate import TextEvaluation
from quantcli.quality.report import tables
from quantcli.quality.report.byte_bars import bytes_by_group, group_of
from quantcli.quality.report.content import OUTSIDE
from quantcli.quality.report.elements import element, mark
from quantcli.quality.report.files import labels, part_of, read_file, reasons_of
from quantcli.quality.report.heat_map import error_step, grid_of, map_data, type_map, type_step
from quantcli.quality.report.prices import prices
from quantcli.quality.report.scales import linear, logarithmic, short, tick, with_error
from quantcli.quality.report.scatter import scatter
from quantcli.quality.statistics import Estimate, Scores, mean, pooled_mean


def test_text_and_attributes_are_escaped() -> None:
    found = mark('a"<b>&\x1b\u202e', element("text", "<script>", x=1.234, class_="a'"), data_x=None).__html__()
    assert found == (
        '<g class="mark" role="img" aria-label="a&quot;&lt;b&gt;&amp;\\x1b\\u202e">'
        '<text x="1.23" class="a&#x27;">&lt;script&gt;</text></g>'
    )


@pytest.mark.parametrize("values", [[3.0], [0.0, 1.0], [1.56, 7.06], [995.0, 1005.0]])
def test_a_linear_axis_has_round_marks_within_it(values: list[float]) -> None:
    scale = linear(values)
    assert scale.low <= min(values) <= max(values) <= scale.high
    assert 2 <= len(scale.ticks) <= 9
    assert all(scale.low <= value <= scale.high for value in scale.ticks)
    steps = {round(b - a, 9) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


@pytest.mark.parametrize("values", [[0.05], [0.0009, 0.41], [1e-7, 2.0], [0.0, 0.0], [0.0, 0.3]])
def test_a_logarithmic_axis_has_equal_ratios(values: list[float]) -> None:
    scale = logarithmic(values)
    assert scale.place(0.0) == 0
    assert all(0 <= scale.place(value) <= 1 for value in (*values, *scale.ticks))
    middle = math.sqrt(scale.low * scale.high)
    assert scale.place(middle) == pytest.approx(0.5)
    assert 2 <= len(scale.ticks) <= 12
    assert all(scale.low <= value <= scale.high for value in (*scale.ticks, *values) if value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.324512, "0.325"), (0.000782, "0.000782"), (1411.8, "1,412"), (46.07, "46.1"), (1e-9, "1.00e-09")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_an_error_gives_the_decimals() -> None:
    assert with_error(0.037912, 0.000414) == "0.03791 ± 0.00041"
    assert with_error(1411.82, 105.5) == "1,412 ± 106"
    assert with_error(0.5, 0) == "0.500 ± 0"
    assert [tick(value) for value in (0.001, 0.5, 20, 1e-6)] == ["0.001", "0.5", "20", "1e-6"]


def test_a_mean_over_groups_is_that_of_all() -> None:
    values = np.random.default_rng(1).random(900)
    groups = [values[:100], values[100:350], values[350:]]
    found = pooled_mean([mean(group) for group in groups], [len(group) for group in groups])
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(mean(values).stderr, rel=0.02)


def test_prices_over_texts_are_those_of_one_text() -> None:
    random = np.random.default_rng(2)
    parts = [Scores(*(random.random(count) for _ in range(3)), random.random(count) < 0.8) for count in (310, 620)]
    results = [TextEvaluation((part.evaluation(1),), ()) for part in parts]
    found = prices(["a"], [1], results)[0]
    whole = np.concatenate([part.losses for part in parts])
    assert found.perplexity.value == pytest.approx(math.exp(whole.mean()))
    divergences = np.concatenate([part.divergences for part in parts if part.divergences is not None])
    assert found.cost.value == pytest.approx(divergences.mean())
    assert found.cost.stderr == pytest.approx(mean(divergences).stderr, rel=0.02)
    assert found.same_top is not None
    assert found.same_top.value == pytest.approx(np.concatenate([part.same_top for part in parts]).mean())  # type: ignore[arg-type]


def test_a_dominated_file_has_a_better_one_of_no_more_bytes() -> None:
    result = TextEvaluation(tuple(map(reports.evaluation, (0.3, 0.06, 0.05, 0.05, 0.001))), ())
    found = prices(list("abcde"), [10, 25, 20, 20, 40], [result])
    # The third and the fourth are equal: neither dominates the other.
    assert [price.dominated for price in found] == [None, "c", None, None, None]
    assert found[0].cost == Estimate(0.3, pytest.approx(0.3 / 20))


def test_names_are_shortened_by_what_all_have() -> None:
    def short_names(*names: str) -> list[str]:
        return labels([Path(name) for name in names])

    assert short_names("m/model-Q4_K_M.gguf", "m/model-Q4_K_S.gguf", "b/model-F16.gguf") == ["Q4_K_M", "Q4_K_S", "F16"]
    assert short_names("model-Q4_K_M.gguf") == ["model-Q4_K_M"]
    assert short_names("a/model.gguf", "b/model.gguf") == ["a/model.gguf", "b/model.gguf"]
    assert short_names("model-.gguf", "model-Q8_0.gguf") == ["model-", "model-Q8_0"]
    assert short_names("a-Q8_0-00001-of-00002.gguf", "a-F16.gguf") == ["Q8_0", "F16"]
    assert short_names("x.gguf", "y.gguf") == ["x", "y"]
    # The base may be one of the files.
    assert short_names("m-F16.gguf", "m-Q8_0.gguf", "m-F16.gguf") == ["F16", "Q8_0", "F16"]


def test_a_part_is_the_name_within_a_layer() -> None:
    assert part_of("blk.12.attn_q.weight") == "attn_q"
    assert part_of("blk.0.attn_q.bias") == "attn_q.bias"
    assert part_of("token_embd.weight") == "token_embd"


def test_every_byte_is_in_one_group() -> None:
    found = reports.file("Q4_0")
    counts = bytes_by_group(found)
    assert sum(counts.values()) == found.file_bytes
    assert counts.keys() == {"embedding", "attention", "feed-forward", "norms and others", "metadata"}
    groups = {
        name: group_of(reports.tensor(name, layer, "F32"))
        for layer, name in [
            (0, "blk.0.ffn_gate_exps.weight"), (0, "blk.0.ffn_norm.weight"), (0, "blk.0.ssm_in.weight"),
            (0, "blk.0.attn_qkv.weight"), (OUTSIDE, "output.weight"), (OUTSIDE, "rope_freqs.weight"),
            (OUTSIDE, "position_embd.weight"), (0, "blk.0.post_attention_norm.weight"),
        ]
    }  # fmt: skip
    assert list(groups.values()) == [
        "experts", "norms and others", "state space", "attention", "output", "norms and others", "embedding",
        "norms and others",
    ]  # fmt: skip


def test_a_grid_has_a_row_for_each_role_and_gaps() -> None:
    whole = reports.file("Q4_0", layers=4)
    tensors = tuple(each for each in whole.tensors if each.name != "blk.2.attn_v.weight")
    grid = grid_of(reports.ReportFile(**(vars(whole) | {"tensors": tensors})))
    assert [part for part, _ in grid.rows] == ["token_embd", *reports.PARTS]
    assert (grid.layers, len(grid.rows[0][1])) == (4, 1)
    row = dict(grid.rows)["attn_v"]
    assert [tensor and tensor.layer for tensor in row] == [0, 1, None, 3]
    data = map_data(whole, grid)
    types = [("Q4_0", 2), (None, 1), ("Q4_0", 1)]
    assert data["rows"][3] == {"part": "attn_v", "types": types, "errors": [1, 1.1, None, 1.3]}
    assert data["rows"][0]["errors"] == [0.9]
    drawn = type_map(whole, grid, 0).__html__()
    # One cell for each run of layers with one type; that of the embedding, Q6_K, is as wide as all layers.
    assert f'class="b{type_step(TYPES["Q6_K"])}" d="M0 0h4v1h-4z"' in drawn
    assert "M0 3h2v1h-2zM3 3h1v1h-1z" in drawn


def test_colours_follow_bits_and_errors() -> None:
    kinds = ("TQ1_0", "IQ2_S", "Q3_K", "Q4_0", "Q5_K", "Q6_K", "Q8_0", "F16", "F32")
    assert [type_step(TYPES[kind]) for kind in kinds] == list(range(9))
    assert [error_step(value) for value in (0, 0.001, 0.012, 0.2, 3)] == [0, 0, 3, 10, 11]


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([0, 2, 3, 4, 9], "0, 2-4, 9")]
)
def test_layers_are_ranges(numbers: list[int], text: str) -> None:
    assert tables.ranges(numbers) == text


def test_labels_of_a_plot_do_not_overlap() -> None:
    result = TextEvaluation(tuple(reports.evaluation(0.05 - index / 1e4) for index in range(12)), ())
    found = prices([f"Q4_K_{index}" for index in range(12)], [1000 + index for index in range(12)], [result])
    drawn = scatter(found, "F16").__html__()
    offsets = {part[: part.index(">")].split(' dx="')[1] for part in drawn.split('<text class="label')[1:]}
    assert len(offsets) > 1
    assert drawn.count('class="point dominated"') == 0
    assert "nan" not in drawn


def test_reasons_are_those_of_the_plan_where_the_types_are(golden: Path, tmp_path: Path) -> None:
    options = PlanOptions(overrides=[parse_override("attn_q=Q8_0")])
    path = tmp_path / "model.gguf"
    plan = convert(golden / "stories260K", "Q4_0", path, options=options)[0].plan
    with open_gguf(path) as file:
        found = reasons_of(file, "Q4_0")
        assert read_file(file, "a", "Q4_0", []).tensors[1].reason == found.get(list(file.tensors)[1], "")
        assert reasons_of(file, "no recipe") == reasons_of(file, None) == {}
    for tensor in plan:
        assert found.get(tensor.name) == (None if tensor.rule == "override" else tensor.reason)
    assert {tensor.rule for tensor in plan} > {"override", "keep", "base"}
