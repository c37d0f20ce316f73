"""What must be equal for an interrupted conversion to be continued: the subject of its journal."""

from __future__ import annotations

from quantcli.conversion.model_changes import ChangedModel
from quantcli.conversion.recipes import Recipe
from quantcli.conversion.request import Request
from quantcli.core.version import __version__
from quantcli.formats.journal import Subject, digest
from quantcli.kernels.kernel_cache import sources_digest


def subject_of(request: Request, model: ChangedModel, recipe: Recipe) -> Subject:
    """All that the bytes of an output depend on, except its header, which has the plan and how it was calibrated."""
    subject = [this_version(), ("--type", recipe.name)]
    subject += [(file.path.name, file.identity) for file in model.source.files]
    if model.imatrix is not None:
        values = b"".join(name.encode() + entry.tobytes() for name, entry in sorted(model.imatrix.entries.items()))
        subject.append(("the importance matrix", digest(values)))
    subject += [("--lora", repr(adapter)) for adapter in request.adapters]
    return [*subject, ("--as-reference", str(request.as_reference))]


def this_version() -> tuple[str, str]:
    """The version of quantcli, as an entry of a subject."""
    return "the version of quantcli", f"{__version__} {sources_digest()}"
