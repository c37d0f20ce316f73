"""Kill commands at random moments, and check what they leave.

    python tests/kills.py [--kills 200] [--seed 0]

Each run starts a command and kills it once or several times in a row, with SIGKILL, SIGTERM or SIGINT. After each kill
every file at a target path is whole: the old one or the new one. Then the command is run to its end: with the bytes of an
uninterrupted run, and without temporary files. Conversions are also continued with --resume. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

EXAMPLE = Path(__file__).parents[1] / "examples" / "storyteller"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Operation:
    """A command that writes files to a folder.

    words       its arguments, given the folder of the inputs and the folder of the outputs
    overwrite   whether other files are at its targets before, which it replaces
    """

    name: str
    words: Callable[[Path, Path], Sequence[object]]
    overwrite: bool = False
    more: Sequence[str] = ()


def operations() -> list[Operation]:
    """All commands that are killed."""

    def convert(*more: object) -> Callable[[Path, Path], Sequence[object]]:
        return lambda inputs, out: ["convert", inputs / "model", "-o", f"{out}/", "--threads", 1, *more]

    kinds = {
        "convert": convert("--type", "Q4_K_M"),
        "convert, three types": convert("--type", "Q8_0,Q4_0,Q3_K_M"),
        "convert, shards": convert("--type", "Q8_0", "--split-max-size", "2M"),
    }
    made = [Operation(f"{name}{suffix}", words, overwrite, more)
            for name, words in kinds.items()
            for suffix, overwrite, more in (
                ("", False, ()), (" --overwrite", True, ("--overwrite",)), (" --resume", False, ("--resume",)),
                (" --resume --overwrite", True, ("--resume", "--overwrite")),
            )]  # fmt: skip
    return [
        *made,
        Operation("split", lambda i, o: ["split", i / "model.gguf", "-o", o / "s", "--split-max-size", "2M"]),
        Operation("split --overwrite", lambda i, o: ["split", i / "model.gguf", "-o", o / "s", "--split-max-size", "2M"],
                  overwrite=True, more=("--overwrite",)),
        Operation("merge", lambda i, o: ["merge", next(i.glob("s-00001-*.gguf")), "-o", o / "merged.gguf"]),
        Operation("edit", lambda i, o: ["edit", i / "model.gguf", "--set", "general.name=str:another", "-o", o / "e.gguf"]),
        Operation("lora", lambda i, o: ["lora", i / "adapter", "--base", i / "model", "-o", o / "lora.gguf"]),
    ]  # fmt: skip


def write_inputs(folder: Path) -> None:
    """A checkpoint of four times the example's layers, its GGUF file, shards of that, and a LoRA adapter."""
    model = folder / "model"
    shutil.copytree(EXAMPLE, model)
    config = json.loads((model / "config.json").read_text())
    weights = dict(safetensors.deserialize((model / "model.safetensors").read_bytes()))
    layers = config["num_hidden_layers"]
    for name, weight in list(weights.items()):
        if ".layers." in name:
            head, number, tail = name.split(".layers.")[0], *name.split(".layers.")[1].split(".", 1)
            weights |= {f"{head}.layers.{int(number) + layers * copy}.{tail}": weight for copy in (1, 2, 3)}
    write_safetensors(model / "model.safetensors", weights)
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4 * layers}))
    run(["convert", model, "--type", "Q8_0", "-o", folder / "model.gguf"])
    run(["split", folder / "model.gguf", "-o", folder / "s", "--split-max-size", "2M"])
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    width = config["hidden_size"]
    save_file(
        {
            f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": np.ones(shape, np.float32)
            for layer in range(4 * layers)
            for side, shape in (("A", (8, width)), ("B", (width, 8)))
        },
        adapter / "adapter_model.safetensors",
    )


def write_safetensors(path: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tensors as `safetensors.deserialize` gives them: NumPy has no BF16."""
    header, place = {}, 0
    for name, tensor in tensors.items():
        end = place + len(tensor["data"])
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor["data"] for tensor in tensors.values()))


def command(words: Sequence[object]) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "quantcli", *map(str, words)]


def run(words: Sequence[object]) -> float:
    """Run a command to its end. Returns its seconds."""
    start = time.perf_counter()
    done = subprocess.run(command(words), check=False, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{words}: {done.stderr}")
    return time.perf_counter() - start


@dataclass
class Killer:
    """The inputs, and for each operation the files that it writes, and its seconds."""

    inputs: Path
    random: random.Random
    whole: dict[str, tuple[dict[str, bytes], float]] = field(default_factory=dict)

    def expected(self, operation: Operation) -> tuple[dict[str, bytes], float]:
        """What an uninterrupted run writes, and its seconds with compiled kernels."""
        if operation.name not in self.whole:
            with tempfile.TemporaryDirectory() as place:
                out = Path(place)
                words = operation.words(self.inputs, out)
                run(words)
                taken = run([*words, "--overwrite"])
                self.whole[operation.name] = contents(out), taken
        return self.whole[operation.name]

    def attempt(self, operation: Operation) -> int:
        """Kill an operation one to five times, then let it end. Returns how often a signal met it.

        Raises:
            AssertionError: if it leaves what it should not.
        """
        expected, seconds = self.expected(operation)
        old = dict.fromkeys(expected, b"old") if operation.overwrite else {}
        with tempfile.TemporaryDirectory() as place:
            out, kills = Path(place), 0
            for name, data in old.items():
                (out / name).write_bytes(data)
            words = [*operation.words(self.inputs, out), *operation.more]
            for _ in range(self.random.choice((1, 1, 2, 5))):
                kills += self._killed(words, seconds)
                check_whole(operation, contents(out), expected, old)
                if contents(out) == expected:
                    return kills  # the signal came too late
            run(words if operation.overwrite or "--resume" in operation.more else [*words, "--overwrite"])
            assert contents(out) == expected, f"{operation.name}: {sorted(contents(out))}, expected {sorted(expected)}"
            return kills

    def _killed(self, words: Sequence[object], seconds: float) -> bool:
        process = subprocess.Popen(
            command(words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=defaults,  # noqa: PLW1509 - this process has no other threads
        )  # fmt: skip
        time.sleep(self.random.uniform(0.25, 1) * seconds)
        process.send_signal(self.random.choice(SIGNALS))
        _, errors = process.communicate(timeout=120)
        assert b"this is a bug" not in errors, errors.decode()
        return process.returncode in (130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


def defaults() -> None:
    """Signals as in a terminal: a parent may ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_whole(operation: Operation, found: dict[str, bytes], expected: dict[str, bytes], old: dict[str, bytes]) -> None:
    """Check that each visible file is a whole one, and that no first shard is beside shards of another model."""
    shown = {name: data for name, data in found.items() if not name.startswith(".")}
    for name, data in shown.items():
        assert data in (expected[name], old.get(name)), f"{operation.name}: {name} is not whole"
    first = next((name for name in expected if "-00001-of-" in name), None)
    if first in shown:
        model = expected if shown[first] == expected[first] else old
        assert shown == model, f"{operation.name}: shards of two models"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder and of the folders in it, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill(count: int, seed: int, *, folder: Path) -> Counter[str]:
    """Make so many attempts, over all operations in turn. Returns how many signals met each.

    Raises:
        AssertionError: at the first fault.
    """
    write_inputs(folder)
    killer, met = Killer(folder, random.Random(seed)), Counter[str]()
    todo = operations()
    killer.random.shuffle(todo)
    for number in range(count):
        operation = todo[number % len(todo)]
        met[operation.name] += killer.attempt(operation)
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="runs that are killed, some of them several times")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        met = kill(arguments.kills, arguments.seed, folder=Path(folder))
    print("| command | killed |\n| --- | ---: |")
    for name, times in sorted(met.items()):
        print(f"| {name} | {times} |")
    print(f"\n{arguments.kills} runs, {sum(met.values())} of them met by a signal: all files whole")


if __name__ == "__main__":
    main()
