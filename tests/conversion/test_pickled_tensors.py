"""A lazy tensor is a value: pickled, it reads the same rows in a process that has seen nothing of its checkpoint."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.checkpoint.safetensors import open_safetensors
from quantcli.formats.prequantized import decode, decoded_checkpoint
from quantcli.tensors.tensor import Tensor

TESTS = Path(__file__).parents[1]
GOLDENS = sorted((TESTS / "golden/architectures").glob("*.json")) + sorted((TESTS / "golden/prequantized").glob("*.json"))
FIXTURES = sorted((TESTS / "formats/fixtures/prequantized").glob("*.safetensors"))

ELSEWHERE = """
import json, pickle, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from test_pickled_tensors import digests
pickled = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps({case: digests(pickle.loads(tensors)) for case, tensors in pickled.items()}))
"""


def digests(tensors: list[Tensor]) -> dict[str, str]:
    """The SHA-256 of each tensor's rows, read in stretches of eleven."""
    found = {}
    for tensor in tensors:
        digest = hashlib.sha256()
        for start in range(0, tensor.rows, 11):
            stop = min(start + 11, tensor.rows)
            out = np.full((stop - start, tensor.row_bytes), 0xA5, np.uint8)
            tensor.read(start, stop, out)
            digest.update(out.tobytes())
        found[tensor.name] = digest.hexdigest()
    return found


def every_case(place: Path) -> dict[str, list[Tensor]]:
    """The tensors to be written of all golden checkpoints, and the decoded tensors of all quantized fixtures."""
    cases: dict[str, list[Tensor]] = {}
    for path in GOLDENS:
        case = f"{path.parent.name}/{path.stem}"
        (place / case).mkdir(parents=True)
        directory = write_checkpoint(place / case, json.loads(path.read_text())["checkpoint"])
        checkpoint = decoded_checkpoint(open_checkpoint(directory))
        cases[case] = list(find_architecture(checkpoint.config).tensors(checkpoint.tensors, checkpoint.config))
    for path in FIXTURES:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        config = json.loads(header["__metadata__"]["quantization_config"]) or None
        cases[path.stem] = list(decode(open_safetensors(path), config).values())
    return cases


def test_pickled_tensors_read_the_same_rows_in_another_process(tmp_path: Path) -> None:
    cases = every_case(tmp_path)
    assert len(cases) == len(GOLDENS) + len(FIXTURES) > 300
    file = tmp_path / "pickled"
    file.write_bytes(pickle.dumps({case: pickle.dumps(tensors) for case, tensors in cases.items()}))
    command = [sys.executable, "-c", ELSEWHERE, str(file), str(Path(__file__).parent), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there.keys() == cases.keys()
    assert [case for case, tensors in cases.items() if there[case] != digests(tensors)] == []
