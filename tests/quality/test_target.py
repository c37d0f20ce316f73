"""Conversion to a target: sizes, bounds, the cache of what is measured, resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantcli.conversion.convert import carry_out
from quantcli.conversion.plan import PlanOptions, parse_override, parse_overrides
from quantcli.conversion.request import Request
from quantcli.core.errors import UsageError
from quantcli.core.units import parse_bytes
from quantcli.quality import measure, sensitivity_file
from quantcli.quality.calibrate import Calibration
from quantcli.quality.calibration_text import calibration_text
from quantcli.quality.measure import SAMPLINGS, Cost, Measurement
from quantcli.quality.sensitivity import Probe
from quantcli.quality.target import Target, allocated

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"

pytestmark = pytest.mark.filterwarnings("ignore:the perplexity of the calibration text")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sensitivities are kept in a folder of their own, and kernels where they are."""
    monkeypatch.setattr(sensitivity_file, "cache_directory", lambda: tmp_path / "cache" / "kernels")
    return tmp_path / "cache" / "sensitivities"


@pytest.fixture
def costs() -> list[Cost]:
    return []


@pytest.fixture
def how(costs: list[Cost]) -> Measurement:
    calibration = Calibration(texts=[("text", calibration_text().text)], tokens=2048, quality="good", threads=2)
    return Measurement(calibration=calibration, rounds=False, sampling=SAMPLINGS["low"], announce=costs.append)


def request(tmp_path: Path, **more: object) -> Request:
    return Request(model=STORYTELLER, output=tmp_path / "{type}.gguf", **{"types": ()} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"),
    [("4.5GiB", 4831838208), ("800MB", 800_000_000), ("2 G", 2 * 10**9), ("1639648", 1639648), ("1.5kib", 1536)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-3G", "3 apples", "0", "1e9", "nan", "1,5G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


def test_a_size_is_met_by_the_file(tmp_path: Path, how: Measurement) -> None:
    for target in (1_700_000, 2_375_392):
        found = allocated(request(tmp_path), Target(size=target), how, threads=2)
        written = carry_out(found.request, threads=2)[0]
        assert written.output is not None
        assert written.output.stat().st_size == found.file_bytes == written.output_bytes
        assert 0.995 * target < found.file_bytes <= target
        assert written.output.name == f"{written.bits_per_weight:.2f}bpw.gguf"
        types = {planned.name: planned.type for planned in written.plan}
        assert all(types[name] is candidate.type for name, candidate in found.chosen.items())
        assert len({candidate.type for candidate in found.chosen.values()}) > 2


def test_bits_per_weight_are_met(tmp_path: Path, how: Measurement) -> None:
    found = allocated(request(tmp_path), Target(bpw=4.25), how, threads=2)
    assert 4.25 * 0.995 < carry_out(found.request, threads=2, dry_run=True)[0].bits_per_weight <= 4.25


def test_shards_count_together(tmp_path: Path, how: Measurement) -> None:
    target = 2_200_000
    found = allocated(request(tmp_path, max_shard_bytes=400_000), Target(size=target), how, threads=2)
    written = carry_out(found.request, threads=2)[0]
    assert len(written.shards) > 3
    assert 0.995 * target < sum(shard.path.stat().st_size for shard in written.shards) <= target


def test_memory_holds_the_cache_of_the_context(tmp_path: Path, how: Measurement) -> None:
    """The KV cache in F16: keys and values of 4 layers, 4 heads of 32, which is 2 kilobytes a token."""
    few, many = (
        allocated(request(tmp_path), Target(memory=15_600_000, context=context), how, threads=2) for context in (64, 512)
    )
    assert few.target - many.target == 448 * 4 * 2 * 4 * 32 * 2
    assert many.file_bytes < few.file_bytes <= few.target


def test_targets_beyond_the_bounds_are_refused_with_both(tmp_path: Path, how: Measurement, costs: list[Cost]) -> None:
    with pytest.raises(UsageError, match=r"1\.5 bits per weight is below .* from 2\.\d\d to 8\.5\d") as below:
        allocated(request(tmp_path), Target(bpw=1.5), how, threads=2)
    with pytest.raises(UsageError, match=r"is above the largest useful target: from 1\.\d\d MiB to 3\.7\d MiB") as above:
        allocated(request(tmp_path), Target(size=10**9), how, threads=2)
    assert below.value.hint != above.value.hint
    assert not costs  # nothing was measured


def test_a_second_target_measures_nothing(
    tmp_path: Path, how: Measurement, costs: list[Cost], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first = allocated(request(tmp_path), Target(bpw=4), how, threads=2)
    assert [cost.tokens for cost in costs] == [512]
    with monkeypatch.context() as patch:
        patch.setattr(measure, "moment_run", None)
        assert allocated(request(tmp_path), Target(bpw=4), how, threads=2) == first
        assert allocated(request(tmp_path), Target(bpw=6), how, threads=2).divergence < first.divergence
    other = replace(how, calibration=replace(how.calibration, tokens=1024))
    allocated(request(tmp_path), Target(bpw=4), other, threads=2)
    assert len(costs) == len(list(folder.iterdir())) == 2


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, how: Measurement, costs: list[Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = allocated(request(tmp_path), Target(bpw=4), how, threads=2)
    monkeypatch.setattr(sensitivity_file, "FOLDER", "others")

    def interrupted(self: Probe, layer: int) -> None:
        if layer == 2:
            raise KeyboardInterrupt
        following(self, layer)

    following = Probe.advance_to
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Probe, "advance_to", interrupted)
        allocated(request(tmp_path), Target(bpw=4), how, threads=2)
    resumed = allocated(request(tmp_path), Target(bpw=4), how, threads=2)
    assert resumed.chosen == whole.chosen
    assert costs[2].passes < costs[1].passes == costs[0].passes


def test_a_damaged_file_is_measured_again(tmp_path: Path, how: Measurement, costs: list[Cost], folder: Path) -> None:
    first = allocated(request(tmp_path), Target(bpw=4), how, threads=2)
    for text in ("{", '{"x": 3}', "[]"):
        next(folder.iterdir()).write_text(text)
        assert allocated(request(tmp_path), Target(bpw=4), how, threads=2).chosen == first.chosen
    assert len(costs) == 4


def test_types_that_options_decide_stay(tmp_path: Path, how: Measurement) -> None:
    options = PlanOptions(overrides=[parse_override("attn_v=Q8_0")])
    found = allocated(request(tmp_path, types=("Q5_K_S",), options=options), Target(bpw=5), how, threads=2)
    result = carry_out(found.request, threads=2, dry_run=True)[0]
    assert {planned.type.name for planned in result.plan if "attn_v" in planned.name} == {"Q8_0"}
    assert result.type == "Q5_K_S"
    assert result.bits_per_weight <= 5


def test_the_plan_explains_each_tensor_and_the_types_can_be_given_again(tmp_path: Path, how: Measurement) -> None:
    found = allocated(request(tmp_path), Target(bpw=4.5), how, threads=2)
    plan = carry_out(found.request, threads=2, dry_run=True)[0].plan
    reasons = {planned.name: planned.reason for planned in plan}
    assert reasons["blk.0.ffn_up.weight"].startswith("allocated: predicted divergence 0.0")
    options = PlanOptions(overrides=parse_overrides(found.types_file()))
    again = replace(request(tmp_path), types=found.request.types, options=options)
    assert [planned.type for planned in carry_out(again, threads=2, dry_run=True)[0].plan] == [
        planned.type for planned in plan
    ]


def test_several_types_are_refused(tmp_path: Path, how: Measurement) -> None:
    with pytest.raises(UsageError, match="not for 2 types"):
        allocated(request(tmp_path, types=("Q4_K_M", "Q8_0")), Target(bpw=4.5), how, threads=2)
