"""How soon a GGUF file has its tokenizer, and how fast that is.

    python tests/bench/vocabulary_speed.py FILE ... [--text FILE] [--runs 7] [--beside TREE ...]

The table has, for each file, the median seconds of opening it with its tokenizer and encoding a short first text, and the
median tokens per second on a long one, which by default is made of this repository's own texts. TREE is another checkout,
such as one of an earlier commit.

Every measurement is a process of its own that has imported everything before the clock counts; all of them take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[2]
MEASURE = """
import sys, time
from pathlib import Path
import quantcli.runner.text.tokenizer.byte_level, quantcli.runner.text.tokenizer.word_piece
from quantcli.formats.gguf.reader import open_gguf
from quantcli.runner.text.tokenizer import load_tokenizer
text = Path(sys.argv[2]).read_text("utf-8")
start = time.perf_counter()
with open_gguf(sys.argv[1]) as file:
    tokenizer = load_tokenizer(file.metadata)
tokenizer.encode("Once upon a time")
loaded = time.perf_counter()
count = len(tokenizer.encode(text))
print(loaded - start, count / (time.perf_counter() - loaded))
"""


def measure(files: list[Path], trees: list[Path], text: Path, runs: int) -> dict[tuple[Path, Path], list[list[float]]]:
    """Seconds and tokens per second of each run, by file and tree."""
    taken: dict[tuple[Path, Path], list[list[float]]] = {(file, tree): [] for file in files for tree in trees}
    for turn in range(runs + 1):
        for (file, tree), figures in taken.items():
            command = [sys.executable, "-c", MEASURE, str(file.resolve()), str(text.resolve())]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tree)  # it imports from where it runs
            if turn:  # the first fills the caches of files and bytecode
                figures.append([float(word) for word in done.stdout.split()])
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    trees = [HERE, *options.beside]
    with tempfile.TemporaryDirectory() as folder:
        text = options.text or Path(folder) / "text"
        if not options.text:
            sources = sorted([*HERE.glob("*.md"), *HERE.glob("quantcli/**/*.py")])
            text.write_text("".join(path.read_text("utf-8") for path in sources), "utf-8")
        taken = measure(options.files, trees, text, options.runs)
    print("| file | tree | s to the first tokens | tokens/s |")
    print("| --- | --- | ---: | ---: |")
    for (file, tree), figures in taken.items():
        seconds, rate = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"| {file.name} | {tree} | {seconds:.3f} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
