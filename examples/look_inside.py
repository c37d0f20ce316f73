"""Open a GGUF file and list its largest tensors. Only the header is read.

    python examples/look_inside.py model.gguf
"""

from __future__ import annotations

import sys

from quantcli import open_gguf

LISTED = 10


def main(path: str) -> None:
    """Print the name, architecture and size of the model, and its largest tensors."""
    with open_gguf(path) as file:
        tensors = sorted(file.tensors.values(), key=lambda tensor: tensor.nbytes, reverse=True)
        print(f"{file.get('general.name', path)}: {file.architecture}, {len(tensors)} tensors, {file.file_bytes:,} bytes\n")
        for tensor in tensors[:LISTED]:
            shape = " x ".join(map(str, tensor.shape))
            share = tensor.nbytes / file.file_bytes
            print(f"{tensor.name:28} {tensor.type.name:8} {shape:>14} {tensor.nbytes:12,} bytes {share:6.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
