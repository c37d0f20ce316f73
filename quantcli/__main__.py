"""`python -m quantcli`, and the command `quantize`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command. Ctrl-C is told as one line even while what tells it otherwise is being imported."""
    try:
        from quantcli.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
