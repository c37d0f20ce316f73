"""Convert checkpoints that are spoiled at random, and tell what went wrong.

    python tests/conversion/spoiled_checkpoints.py [--count N] [--seed N] [--keep DIR]

Every trial takes a tiny checkpoint, spoils some of its files, chooses options, some of them absurd, and calls the command.
Either it must work, and then the file opens again and llama.cpp loads its vocabulary (where llama-cpp-python is installed);
or it must be refused by an error of the tree in `quantcli/core/errors.py`. A trial that does neither is told with its
number and kept in `--keep`. Exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from spoiled_files import (  # noqa: E402
    ADAPTER,
    FIXTURES,
    GOLDENS,
    PAIRS,
    VOCABULARIES,
    Files,
    checkpoint,
    golden_checkpoint,
    safetensors,
    spoil_bytes,
    spoil_file,
    spoil_header,
    spoil_json,
    spoil_numbers,
    to_json,
)

from quantcli.cli.main import cli  # noqa: E402
from quantcli.core.block_types import TYPES  # noqa: E402
from quantcli.core.errors import QuantcliError, QuantcliWarning  # noqa: E402
from quantcli.formats.checkpoint.checkpoint import Checkpoint  # noqa: E402
from quantcli.formats.checkpoint.safetensors import open_safetensors  # noqa: E402
from quantcli.formats.gguf.reader import open_gguf  # noqa: E402
from quantcli.formats.gguf.spec import string, u32  # noqa: E402
from quantcli.formats.gguf.writer import GGUFWriter  # noqa: E402
from quantcli.formats.prequantized import decoded_checkpoint  # noqa: E402
from quantcli.tensors.tensor import TensorInfo  # noqa: E402

LONGEST: Final = 60
"""Seconds a trial may take."""

LONGEST_LINE: Final = 12_000
"""Characters of an error: names from files may be long, and eight of them are told."""

# --- Options --------------------------------------------------------------------------------------------------------------

EXTREMES: Final = [
    "0", "-1", "1", str(2**31), str(2**63), "9" * 30, "9" * 5000, "1e400", "nan", "inf", "", "x", "é", "1.5", "٣", " 1",
]  # fmt: skip
SIZES: Final = [
    "1", "0", "1K", "500M", "-1G", "1e9G", "9" * 30, "9" * 5000, "9" * 30 + "T", "G", "1.5M", "nanM", "infG", "1_0M", "٣M",
]  # fmt: skip
KEYS: Final = [
    "general.name", "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id", "llama.block_count", "general.architecture",
    "split.count", "general.alignment", "a" * 200, "é", "llama.attention.head_count", "general.file_type", "x.y", " ",
]  # fmt: skip
TYPE_NAMES: Final = ["Q8_0", "F16", "BF16", "Q4_0", "F32", "Q4_K", "Q8_K", "I32", "", "x", "IQ4_NL"]
PATTERNS: Final = ["attn", ".*", "(", "[", "a{99999999999}", "(?P<x>", "\\", "*", "é", "(a+)+$", "ffn_.*weight", "^$", "\0"]


def options(random: Random, place: Path) -> list[str]:
    """Some options, absurd ones among them."""
    some: list[str] = []

    def maybe(share: float, *words: str) -> None:
        if random.random() < share:
            some.extend(words)

    maybe(0.04, "--threads", random.choice(EXTREMES))
    maybe(0.04, "--split-max-size", random.choice(SIZES))
    maybe(0.04, "--prune-layers", random.choice([*EXTREMES, "0", "1", "0,1", "1,,", "1-0", f"1,{2**70}"]))
    kind = random.choice(["int", "float", "bool", "str", "u8", ""])
    maybe(0.1, "--override-kv", f"{random.choice(KEYS)}={kind}:{random.choice([*EXTREMES, 'true', 'a' * 3000])}")
    maybe(0.06, "--tensor-type", f"{random.choice(PATTERNS)}={random.choice(TYPE_NAMES)}")
    maybe(0.03, "--output-tensor-type", random.choice(TYPE_NAMES))
    maybe(0.03, "--token-embedding-type", random.choice(TYPE_NAMES))
    for flag in ("--pure", "--leave-output-tensor", "--no-fallback", "--dry-run", "--as-reference", "--json"):
        maybe(0.06, flag)
    if random.random() < 0.06:
        lines = b"attn_q=Q8_0\nffn=Q4_0\n"
        (place / "types.txt").write_bytes(spoil_bytes(lines, random) if random.random() < 0.8 else lines)
        some += ["--tensor-type-file", str(place / "types.txt")]
    if random.random() < 0.06:
        (place / "imatrix").write_bytes(spoil_bytes(_imatrix(place), random))
        some += ["--imatrix", str(place / "imatrix")]
    return some


def _imatrix(place: Path) -> bytes:
    """An importance matrix of one tensor."""
    name = "blk.0.attn_q.weight"
    infos = [TensorInfo(f"{name}.in_sum2", (1, 64), TYPES["F32"]), TensorInfo(f"{name}.counts", (1, 1), TYPES["F32"])]
    metadata = {"general.type": string("imatrix"), "imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(512)}
    with GGUFWriter(place / "made", metadata, infos, overwrite=True) as writer:
        for index, info in enumerate(infos):
            writer.write(index, 0, np.ones(info.size, np.float32).view(np.uint8))
    return (place / "made").read_bytes()


# --- Trials ---------------------------------------------------------------------------------------------------------------


def write(directory: Path, files: Files) -> None:
    """Write files by name."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def trial(seed: int, place: Path) -> list[str]:
    """Write the checkpoint of a trial under `place`; the words of the command that converts it to `place/out.gguf`."""
    random = Random(seed)
    kind = random.choice([*VOCABULARIES, "golden", "golden", "golden"])
    files = golden_checkpoint(random.choice(GOLDENS)) if kind == "golden" else checkpoint(kind, random)[0]
    with_adapter = random.random() < 0.15
    alone = with_adapter and random.random() < 0.5
    adapter = {"adapter_config.json": to_json(ADAPTER), "adapter_model.safetensors": safetensors(PAIRS)}
    spoiled = adapter if with_adapter and random.random() < 0.9 else files
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        name = random.choice(list(spoiled))
        if random.random() < 0.04:
            del spoiled[name]
            spoiled = spoiled or files
        else:
            try:
                spoiled[name] = spoil_file(name, spoiled[name], random)
            except (ValueError, RecursionError):  # spoiled before, and no JSON any more
                spoiled[name] = spoil_bytes(spoiled[name], random)
    write(place / "model", files)
    write(place / "adapter", adapter)
    out = ["-o", str(place / "out.gguf")]
    if alone:
        return ["lora", str(place / "adapter"), "--base", str(place / "model"), *out]
    names = random.choice(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "IQ4_NL"])
    words = ["convert", str(place / "model"), "--type", names, *out, *options(random, place)]
    if kind in ("bytes", "files", "ranks", "golden"):
        words += ["--pre-tokenizer", "gpt-2"]
    if with_adapter and kind != "golden":
        scale = random.choice(["", "", ":0", ":-1", ":1e38", ":1e400", ":nan", ":x", ":٣", ":"])
        words += ["--lora", f"{place / 'adapter'}{scale}"]
    return words


def fault(words: list[str], place: Path) -> str | None:
    """What is wrong with what the command does, None where nothing is."""

    def call() -> None:
        cli.main(args=words, prog_name="quantize", standalone_mode=False)

    def read_again() -> None:
        for path in [*place.glob("out.gguf"), *place.glob("out-00001-of-*.gguf")]:
            open_gguf(path).close()

    return told(call) or told(read_again, refusals=())


def told(
    call: Callable[[], None], refusals: tuple[type[Exception], ...] = (QuantcliError, click.ClickException)
) -> str | None:
    """What a call raises that is none of `refusals`, or is more than one line; None where it does neither."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", QuantcliWarning)
            call()
    except refusals as error:
        message = error.message if isinstance(error, QuantcliError) else ""
        return None if "\n" not in message and len(message) < LONGEST_LINE else f"message: {message[:200]!r}"
    except BaseException as error:
        return "".join(traceback.format_exception(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def decoding_fault(seed: int, place: Path) -> str | None:
    """What is wrong with how a spoiled fixture of a quantization method is decoded, None where nothing is."""
    random = Random(seed)
    data = random.choice(FIXTURES).read_bytes()
    length = int.from_bytes(data[:8], "little")
    config = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["quantization_config"])
    for _ in range(random.randrange(1, 4)):
        if config and random.random() < 0.5:
            config = spoil_json(config, random)
        else:
            with contextlib.suppress(ValueError):  # spoiled before, and no header any more
                data = random.choice([spoil_header, spoil_numbers])(data, random)
    (place / "model.safetensors").write_bytes(data)

    def read() -> None:
        tensors = open_safetensors(place / "model.safetensors")
        found = decoded_checkpoint(Checkpoint(place, place, {"quantization_config": config}, tensors))
        for tensor in found.tensors.values():
            for start in range(0, tensor.rows, max(1, tensor.rows // 2)):
                tensor.read(start, start + 1, np.empty((1, tensor.row_bytes), np.uint8))

    return told(read)


LOADER: Final = """
import sys
import llama_cpp
parameters = llama_cpp.llama_model_default_params()
parameters.vocab_only = True
for line in sys.stdin:
    model = llama_cpp.llama_model_load_from_file(line.strip().encode(), parameters)
    print("loads" if model else "refuses", flush=True)
    if model:
        llama_cpp.llama_model_free(model)
"""


class Reference:
    """llama.cpp in a process of its own, since it may abort."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def loads(self, path: Path) -> str | None:
        """What it says against a file, None where it loads."""
        if self._child is None or self._child.poll() is not None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._child = subprocess.Popen([sys.executable, "-c", LOADER], text=True, **pipes)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{path}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline().strip()
        if not answer:
            return f"aborts with status {self._child.wait()}"
        return None if answer == "loads" else answer

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.communicate()


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-reference", action="store_true")
    given = parser.parse_args()
    reference, bad, written = Reference(), 0, 0
    for seed in range(given.seed, given.seed + given.count):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            place = Path(folder)
            words = trial(seed, place)
            faults = [fault(words, place), decoding_fault(seed, place)]
            output = place / "out.gguf"
            if output.exists():
                written += 1
                if words[0] == "convert" and "--override-kv" not in words and not given.no_reference:
                    faults.append(reference.loads(output))
            found = list(filter(None, faults))
            if found and given.keep:
                shutil.copytree(place, given.keep / str(seed), dirs_exist_ok=True)
        bad += bool(found)
        for text in found:
            print(f"--- {seed}: {words}\n{text}", flush=True)
    reference.close()
    print(f"{given.count} trials, {written} files, {bad} faults")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
