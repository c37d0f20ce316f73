"""The options of rounding with error feedback: `--quality`, `--calibration`, `--tokens`, `--moments`, `--gradients`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from quantcli.cli.calibration import AUTO, TOKENS, FileOrAuto, FileOrAutoType, named_text
from quantcli.cli.output import say
from quantcli.core.display import binary_size
from quantcli.core.errors import UsageError
from quantcli.core.listing import counted, listed

if TYPE_CHECKING:
    from quantcli.conversion.convert import RequestFields, Stage
    from quantcli.conversion.job import Job
    from quantcli.quality.calibrate import Calibration, RunCost

REFERENCE: Final = "reference"
GOOD: Final = "good"
QUALITIES: Final = (REFERENCE, GOOD, "best")

Begin = Callable[[str, int], Callable[[int], Any]]


def fidelity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, for a command."""
    for option in reversed(
        (
            click.option(
                "--quality", type=click.Choice(QUALITIES), default=REFERENCE, show_default=True,
                help="llama.cpp's rounding, or less error at the same size, from calibration text.",
            ),
            click.option(
                "--calibration", "texts", type=FileOrAutoType(exists=True, dir_okay=False), multiple=True, metavar="F",
                help="Calibration text, UTF-8, or `auto`: the built-in one; repeatable. Default: auto.",
            ),
            click.option(
                "--moments", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                help="Keep second moments in DIR, and use those that it has.",
            ),
            click.option(
                "--gradients", "device", metavar="DEVICE",
                help="Also take gradients, by torch on this device: cpu, cuda, mps; or `none`. Default for `best`: cpu, if"
                " installed and the model is small.",
            ),
            click.option(
                "--tokens", type=click.IntRange(min=1), metavar="N",
                help=f"Maximum number of calibration tokens. Default: {TOKENS:,}.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Fidelity:
    """The values of the options."""

    quality: str
    texts: Sequence[FileOrAuto]
    tokens: int | None
    moments: Path | None
    device: str | None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Fidelity:
        """The values, removed from those of all options."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    def calibration(
        self, request: RequestFields, threads: int | None, *, imatrix: bool, target: bool = False
    ) -> Calibration | None:
        """The calibration that the options ask for; None for the reference's rounding. A `target` is also measured on
        calibration text.

        Raises:
            UsageError: for options that contradict each other, or a text that is not UTF-8.
        """
        if self.quality == REFERENCE:
            if not target:
                self._refuse_unused()
            return None
        others = {"--imatrix": imatrix, "--as-reference": request.get("as_reference")}
        for name in (name for name, value in others.items() if value):
            raise UsageError(f"--quality {self.quality} and {name} exclude each other")
        if request.get("remote"):
            what = f"--quality {self.quality} runs the model, which --remote does not download"
            raise UsageError(what, hint="leave out --remote")
        return self.measuring(threads)

    def measuring(self, threads: int | None) -> Calibration:
        """The calibration with which a model is measured, also where it is rounded as the reference does.

        Raises:
            UsageError: for a text that is not UTF-8.
        """
        from quantcli.quality.calibrate import NO_DEVICE, Calibration

        named = [named_text(text) for text in self.texts or (AUTO,)]
        tokens = self.tokens or TOKENS
        quality = GOOD if self.quality == REFERENCE else self.quality
        device = NO_DEVICE if quality == GOOD and self.device is None else self.device
        return Calibration(
            texts=named, tokens=tokens, quality=quality, moments=self.moments, device=device, threads=threads
        )  # fmt: skip

    def _refuse_unused(self) -> None:
        options = {"--calibration": self.texts, "--tokens": self.tokens, "--moments": self.moments}
        for name in (name for name, value in {**options, "--gradients": self.device}.items() if value):
            raise UsageError(f"{name} needs --quality good or best", hint="for an importance matrix: --imatrix auto")


def with_notes(request: RequestFields, calibration: Calibration) -> RequestFields:
    """The request with metadata that say how the files are made, and with types as with an importance matrix."""
    changes = request["changes"]
    noted = replace(changes, metadata={**changes.metadata, **calibration.notes()})
    return {**request, "changes": noted, "options": replace(request["options"], calibrated=True)}


def stages_of(
    calibration: Calibration, begin: Begin, kept: dict[str, list[str]]
) -> Callable[[Job], Iterator[Stage]]:
    """The stages of a conversion with calibration. `kept` receives tensors with the reference's rounding, by reason."""
    from quantcli.quality.calibrate import calibrated_stages

    def note(tensor: str, reason: str) -> None:
        names = kept.setdefault(reason, [])
        if tensor not in names:
            names.append(tensor)

    return partial(calibrated_stages, replace(calibration, kept=note, begin=begin, announce=_announce))


def _announce(cost: RunCost) -> None:
    memory = f"hidden states of {binary_size(cost.hidden)}, second moments of at most {binary_size(cost.moments)} a layer"
    time = f", about {cost.seconds:,.0f} s" if cost.seconds >= 1 else ""
    say(f"calibrating on {cost.tokens:,} tokens, {counted(cost.layers, 'layer')}{time}: {memory}", err=True)


def report(calibration: Calibration, kept: dict[str, list[str]], *, dry_run: bool) -> None:
    """Say on stderr what was used, and which tensors have the reference's rounding."""
    names = listed([name for name, _ in calibration.texts])
    if dry_run:
        say(f"quality {calibration.quality}: would run at most {calibration.tokens:,} tokens of {names}", err=True)
    for reason, tensors in kept.items():
        say(f"{reason} ({counted(len(tensors), 'tensor')}: {listed(tensors, most=3)})", err=True)
