"""`quantize reproduce FILE --source MODEL`: whether a model gives a GGUF file again, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.calibration import AUTO, FileOrAuto, FileOrAutoType, calibration, name_of
from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.converting import changes, conversion_progress
from quantcli.cli.fidelity import Fidelity, stages_of, with_notes
from quantcli.cli.options import PATH, arch_file_option, json_option, threads_option
from quantcli.cli.output import print_json, say
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.conversion.convert import RequestFields, Stages
    from quantcli.formats.gguf.reader import GGUFFile


@described("reproduce", usage="FILE --source MODEL [OPTIONS]")
@click.argument("file", type=PATH, metavar="FILE")
@click.option("--source", metavar="MODEL", required=True, help="The model that FILE was made from.")
@click.option("--imatrix", type=FileOrAutoType(), metavar="F", help="Importance matrix. Default: as FILE records it.")
@click.option(
    "--calibration", "texts", type=FileOrAutoType(exists=True, dir_okay=False), multiple=True, metavar="F",
    help="Calibration text of --quality. Default: as FILE records it.",
)  # fmt: skip
@click.option("--moments", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Stored second moments.")
@click.option("--lora", "adapters", multiple=True, metavar="DIR[:SCALE]", help="LoRA adapter that was merged.")
@click.option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE", help="Metadata that were set.")
@click.option("--prune-layers", metavar="L[,L...]", help="Layers that were removed.")
@arch_file_option
@click.option("--pre-tokenizer", metavar="NAME", help="Pre-tokenizer that was given.")
@click.option("--as-reference", is_flag=True, help="FILE was made with --as-reference.")
@threads_option
@json_option()
def command(file: Path, source: str, as_json: bool, **options: Any) -> None:
    """The recipe, the types of tensors, the importance matrix and the calibration are those that FILE records. MODEL is
    converted so again, and each byte is compared; nothing is written. FILE may be the first shard of a split model. The
    status is 1 if something differs.

    The bytes are the same for any number of threads, instruction set and machine. With --quality they follow from the
    second moments, which another machine may sum otherwise: --moments takes those that were stored.

    \b
    quantize reproduce model-Q4_K_M.gguf --source ORG-model/
    quantize reproduce model-IQ3_M.gguf --source ORG-model/ --imatrix imatrix.gguf
    """
    from quantcli.formats.gguf.reader import open_gguf

    with open_gguf(file) as opened:
        what = "the same file" if opened.split == (1, 1) else "the same metadata and tensors"
        faults = _faults(opened, source, options)
    if as_json:
        print_json({"path": str(file), "source": source, "faults": faults})
    else:
        for fault in faults:
            say(f"{file}: {fault}", err=True)
        if not faults:
            say(f"{file}: {source} gives {what}, byte for byte")
    if faults:
        raise click.exceptions.Exit(1)


def _faults(file: GGUFFile, source: str, options: dict[str, Any]) -> list[str]:
    from quantcli.conversion.convert import at_once
    from quantcli.conversion.reproduce import unlike_conversion
    from quantcli.conversion.request import Request

    threads, imatrix = options["threads"], options["imatrix"] or _recorded_imatrix(file)
    announce_compiling()
    with conversion_progress("comparing") as (progress, begin):
        request = _request(options, imatrix)
        stages: Stages = at_once
        calibrate = None
        if file.get("quantize.calibration.quality") is not None:
            feedback = _fidelity(file, options).calibration(request, threads, imatrix=imatrix is not None)
            assert feedback is not None  # its quality is not the reference's
            request, stages = with_notes(request, feedback), stages_of(feedback, begin, {})
        if imatrix == AUTO:
            calibrate = calibration(request, threads, lambda chunks: begin("collecting importance", chunks))
        asked = Request(model=source, types=(), **request)
        return list(
            unlike_conversion(file, asked, threads=threads, progress=progress, stages=stages, calibrate=calibrate)
        )


def _request(options: dict[str, Any], imatrix: FileOrAuto | None) -> RequestFields:
    from quantcli.conversion.convert import RequestFields
    from quantcli.conversion.lora.merge import parse_adapter
    from quantcli.conversion.plan import PlanOptions
    from quantcli.formats.imatrix import read_imatrix

    return RequestFields(
        options=PlanOptions(allow_requantize=True),
        imatrix=read_imatrix(imatrix) if isinstance(imatrix, Path) else None,
        changes=changes(options["override_kv"], options["prune_layers"]),
        adapters=[parse_adapter(text) for text in options["adapters"]],
        architecture_file=options["arch_file"],
        pre_tokenizer=options["pre_tokenizer"],
        as_reference=options["as_reference"],
    )


def _recorded_imatrix(file: GGUFFile) -> FileOrAuto | None:
    """The importance matrix that a file was made with, as it records it.

    Raises:
        UsageError: if there is no file of this name.
    """
    name = file.get("quantize.imatrix.file")
    if not isinstance(name, str):
        return None
    if name == AUTO:
        return AUTO
    if not Path(name).is_file():
        raise UsageError(f"the file was quantized with the importance matrix {name!r}", hint="--imatrix FILE")
    return Path(name)


def _fidelity(file: GGUFFile, options: dict[str, Any]) -> Fidelity:
    """The calibration of a file as it records it, with the texts of --calibration, or else the built-in one.

    Raises:
        UsageError: if the texts are not those that the file was made with.
    """
    recorded = {key: file.get(f"quantize.calibration.{key}") for key in ("quality", "dataset", "tokens", "gradients")}
    texts: Sequence[FileOrAuto] = options["texts"]
    if not texts and recorded["dataset"] != name_of(AUTO):
        raise UsageError(f"the file was calibrated with {recorded['dataset']!r}", hint="--calibration FILE")
    device = None if recorded["gradients"] == "auto" else recorded["gradients"]
    given = Fidelity(recorded["quality"], texts, recorded["tokens"], options["moments"], device)
    measured = given.measuring(options["threads"])
    if measured.digest != file.get("quantize.calibration.sha256"):
        raise UsageError("the calibration texts are not those that the file was made with", hint="--calibration FILE")
    return given
