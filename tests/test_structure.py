"""The shape of the package: imports point down, nothing heavy is imported early, files and functions are short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "quantcli"

FLOORS = (
    {"cli"},
    {"quality"},
    {"conversion", "runner"},
    {"architectures"},
    {"formats"},
    {"tensors"},
    {"kernels"},
    {"core"},
)
"""From the top. A room imports only from floors below its own; rooms of one floor do not know each other."""

LIGHT = ("core", "tensors", "formats", "architectures")
"""Packages that show a file in no time: they import nothing of `kernels`, which loads numba."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("quantcli", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Every module of the package that `name` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            module = node.module or ""
            # `from package import module` names a module too.
            found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names}
    return {module for module in found if module in MODULES}


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set.union(*FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    home = room(name)
    if home is None:
        return
    for target in imports(name):
        other = room(target)
        if other is None:
            # The package itself holds only its version.
            assert target == "quantcli", f"{name} imports {target}"
        elif other != home:
            assert floor(other) > floor(home), f"{name} imports {target}: not downward"
        if home in LIGHT:
            assert other != "kernels", f"{name} imports {target}"


def test_no_circle() -> None:
    graph = {name: imports(name) - {name} for name in MODULES}
    tuple(TopologicalSorter(graph).static_order())


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"numba", "llvmlite", "torch", "tokenizers", "jinja2", "huggingface_hub", "sentencepiece"}
"""What takes long to import; computing waits for it, showing does not."""

INSPECTED = PACKAGE.parent / "tests" / "golden" / "gguf_files" / "every-value.gguf"


def called(*words: str) -> str:
    return f"from quantcli.cli.main import cli\ntry: cli({list(words)})\nexcept SystemExit as stop: assert not stop.code"


@pytest.mark.parametrize("code", ["from quantcli.cli.commands import convert, run, tokenize"])
def test_nothing_heavy_is_imported_early(code: str) -> None:
    assert not HEAVY & imported_by(code)


@pytest.mark.parametrize(
    "code",
    [
        "import quantcli",
        "from quantcli.cli.commands import inspect, run, types",
        called("--help"),
        called("types"),
        *(called("inspect", str(INSPECTED), *options) for options in ([], ["--metadata"], ["--tensors"], ["--json"])),
    ],
)
def test_what_shows_and_does_not_compute_imports_no_numpy(code: str) -> None:
    assert not (HEAVY | {"numpy"}) & imported_by(code)


def test_the_picture_shows_these_rooms() -> None:
    """ARCHITECTURE.md draws the floors as `FLOORS` has them, from the top and numbered from the ground."""
    picture = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    drawn: list[tuple[int, set[str]]] = []
    for number, name in re.findall(r"^(\d| ) {2}(\w+) ", picture, re.MULTILINE):
        if number == " ":
            drawn[-1][1].add(name)
        else:
            drawn.append((int(number), {name}))
    assert drawn == list(zip(range(len(FLOORS), 0, -1), FLOORS, strict=True))


LIBRARIES = {
    "": {"numpy"},
    "cli": {"click", "numba", "numpy", "tqdm"},
    "quality": {"jinja2", "numpy", "safetensors", "torch", "transformers"},
    "conversion": {"numpy", "tokenizers", "yaml"},
    "runner": {"jinja2", "numpy", "tokenizers"},
    "architectures": {"numpy"},
    "formats": {"huggingface_hub", "numpy", "safetensors", "tqdm"},
    "tensors": {"numpy"},
    "kernels": {"llvmlite", "numba", "numpy"},
    "core": {"numpy"},
}
"""What a room may import from other projects. PyTorch, Ray and web frameworks are for rooms of their own."""


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_its_libraries_only(name: str) -> None:
    home = room(name)
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found - sys.stdlib_module_names - {"quantcli"} <= LIBRARIES.get(home or "", set())


LONGEST_FILE = 500
LONGEST_FUNCTION = 60

SOURCES = sorted([*MODULES.values(), *Path(__file__).parent.rglob("*.py")])


def lengths_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_files_and_functions_stay_short(path: Path) -> None:
    """Those of the tests too."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert [name for name, length in lengths_of_functions(path) if length > LONGEST_FUNCTION] == []
