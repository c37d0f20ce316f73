"""Tell which model classes of the reference's registry quantcli knows, and why it leaves out the others.

    python tests/golden/registry_coverage.py PATH_OF_LLAMA_CPP

Reads the tables of `conversion/__init__.py` in a source tree of llama.cpp, without running it. At the end come the classes
that are neither known nor explained in `registry_left_out.toml`, and those explained that are known, or unheard of. Exit
status 1 if there are any.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from quantcli.architectures.tables import headings  # noqa: E402

KINDS = {"text": "TEXT_MODEL_MAP", "projectors": "MMPROJ_MODEL_MAP"}


def registry(reference: Path) -> dict[str, list[str]]:
    """The class names of the reference, by kind of model."""
    tree = ast.parse((reference / "conversion/__init__.py").read_text(encoding="utf-8"))
    tables = {
        node.target.id: list(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Dict)
    }
    return {kind: tables[name] for kind, name in KINDS.items()}


def known() -> dict[str, set[str]]:
    """The class names of quantcli, by kind of model."""
    return {"text": {name for heading in headings() for name in heading.classes}, "projectors": set()}


def left_out() -> dict[str, dict[str, str]]:
    """Kind of model -> class name -> why it is left out."""
    tables = tomllib.loads((HERE / "registry_left_out.toml").read_text(encoding="utf-8"))
    return {kind: {name: why for why, names in reasons.items() for name in names} for kind, reasons in tables.items()}


def faults(
    names: Mapping[str, list[str]], ours: Mapping[str, set[str]], reasons: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What the reasons say of classes that are known or that the reference does not have, and do not say of others."""
    told = []
    for kind, classes in names.items():
        told += [f"{kind}: {name} is neither known nor explained" for name in classes
                 if name not in ours[kind] and name not in reasons[kind]]  # fmt: skip
        told += [f"{kind}: {name} is known, and explained" for name in reasons[kind] if name in ours[kind]]
        told += [f"{kind}: {name} is explained, but the reference has no such class"
                 for name in reasons[kind] if name not in classes]  # fmt: skip
    return told


def main() -> int:
    """See the module's description."""
    names, ours, reasons = registry(Path(sys.argv[1])), known(), left_out()
    for kind, classes in names.items():
        print(f"{kind}: {len(ours[kind].intersection(classes))} of {len(classes)}")
        by_reason: dict[str, list[str]] = {}
        for name in classes:
            if name not in ours[kind]:
                by_reason.setdefault(reasons[kind].get(name, "not explained"), []).append(name)
        for why, missing in by_reason.items():
            print(f"  {why}: {', '.join(missing)}")
    told = faults(names, ours, reasons)
    for line in told:
        print(line)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
