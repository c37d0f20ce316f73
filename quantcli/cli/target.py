"""The options `--target-size`, `--target-bpw` and `--target-ram`: types of tensors chosen for a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from quantcli.cli.output import say
from quantcli.core.display import binary_size
from quantcli.core.errors import OutputError, UsageError
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.conversion.convert import RequestFields
    from quantcli.quality.calibrate import Calibration
    from quantcli.quality.measure import Cost
    from quantcli.quality.target import Target

EFFORTS: Final = ("low", "normal", "high")
"""The keys of `quality.measure.SAMPLINGS`, which would import numba."""

CONTEXT: Final = 4096
"""The context of `--target-ram` without `--ctx`."""

Begin = Callable[[str, int], Callable[[int], Any]]


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, for a command."""
    for option in reversed(
        (
            click.option("--target-size", metavar="SIZE", help="Choose types for a file of at most SIZE: 4.5GiB, 800MB."),
            click.option(
                "--target-bpw", type=click.FloatRange(min=0, min_open=True), metavar="B",
                help="Choose types for at most B bits per weight.",
            ),
            click.option(
                "--target-ram", metavar="SIZE", help="Choose types for a file that runs in SIZE of memory: 8GiB."
            ),
            click.option(
                "--ctx", type=click.IntRange(min=1), metavar="N",
                help=f"Context of --target-ram, for the KV cache in F16. Default: {CONTEXT:,}.",
            ),
            click.option(
                "--effort", type=click.Choice(EFFORTS), help="How much is measured to choose types. Default: normal."
            ),
            click.option(
                "--save-types", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                help="Write the chosen types, for --tensor-type-file.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class TargetOptions:
    """The values of the options."""

    target_size: str | None
    target_bpw: float | None
    target_ram: str | None
    ctx: int | None
    effort: str | None
    save_types: Path | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> TargetOptions:
        """The values, removed from those of all options.

        Raises:
            UsageError: for options that contradict each other.
        """
        found = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        found._check()
        return found

    @property
    def given(self) -> bool:
        """Whether there is a target."""
        return bool(self._targets)

    @property
    def _targets(self) -> list[str]:
        values = {"--target-size": self.target_size, "--target-bpw": self.target_bpw, "--target-ram": self.target_ram}
        return [name for name, value in values.items() if value is not None]

    def _check(self) -> None:
        if len(self._targets) > 1:
            raise UsageError(f"{self._targets[0]} and {self._targets[1]} exclude each other")
        if self.ctx is not None and self.target_ram is None:
            raise UsageError("--ctx needs --target-ram")
        others = {"--effort": self.effort, "--save-types": self.save_types}
        for name in (name for name, value in others.items() if value is not None and not self._targets):
            raise UsageError(f"{name} needs --target-size, --target-bpw or --target-ram")

    def refuse(self, others: Mapping[str, bool]) -> None:
        """Refuse options that a target excludes.

        Raises:
            UsageError: for the first that is given.
        """
        for name in (name for name, given in others.items() if given and self.given):
            raise UsageError(f"a target and {name} exclude each other")

    def target(self) -> Target:
        """The target.

        Raises:
            UsageError: for a size that is none.
        """
        from quantcli.core.units import parse_bytes
        from quantcli.quality.target import Target

        return Target(
            size=None if self.target_size is None else parse_bytes(self.target_size),
            bpw=self.target_bpw,
            memory=None if self.target_ram is None else parse_bytes(self.target_ram),
            context=self.ctx or CONTEXT,
        )

    def choose(
        self,
        model: str,
        names: Sequence[str],
        calibration: Calibration,
        feedback: Calibration | None,
        request: RequestFields,
        begin: Begin,
    ) -> tuple[list[str], RequestFields]:
        """The type and the request with types chosen for the target. Says what that costs, and what is expected of it.

        calibration   the texts that are measured
        feedback      None where tensors are rounded as the reference does

        Raises:
            UsageError, FormatError, ModelError, UnsupportedError, HubError, GenerationError: as `allocated`.
            OutputError: if the types cannot be saved.
        """
        from quantcli.conversion.convert import working_threads
        from quantcli.conversion.request import Request
        from quantcli.quality.measure import NORMAL, SAMPLINGS, Measurement
        from quantcli.quality.target import allocated

        target = self.target()
        if self.save_types is not None and self.save_types.exists() and not request.get("overwrite"):
            raise OutputError(f"{self.save_types}: the file exists", hint="--overwrite replaces it")
        measurement = Measurement(
            calibration=replace(calibration, begin=lambda what, count: begin(f"measuring {what}", count)),
            rounds=feedback is not None,
            sampling=SAMPLINGS[self.effort or NORMAL],
            announce=_announce,
        )
        asked = Request(model=model, types=tuple(names), **request)
        found = allocated(asked, target, measurement, threads=working_threads(calibration.threads))
        say(
            f"{target.shown}: {counted(len(found.chosen), 'tensor')} allocated, {binary_size(found.file_bytes)} of"
            f" {binary_size(found.target)}, predicted divergence {found.divergence:.2g}",
            err=True,
        )
        if self.save_types is not None:
            self._save(self.save_types, found.types_file())
        return list(found.request.types), {**request, "options": found.request.options, "label": found.request.label}

    @staticmethod
    def _save(path: Path, text: str) -> None:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
        say(f"{path}: the types", err=True)


def _announce(cost: Cost) -> None:
    probed = f"{counted(cost.tensors, 'tensor')}, {counted(cost.probes, 'type')} each, on {cost.tokens:,} tokens"
    say(
        f"measuring {probed}: as much as {cost.passes:,} tokens through the model, after {cost.calibration:,} tokens of"
        " calibration. Another target will take them from the cache",
        err=True,
    )
