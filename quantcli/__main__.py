"""`python -m quantcli`, and the command `quantize`."""

import os
import sys


def main() -> None:
    """Run the command. Ctrl-C is told as one line even while what tells it otherwise is being imported."""
    try:
        from quantcli.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    run()


def _leave_working_directory() -> None:
    """Import nothing from the working directory, which `python -m` searches first: it may be a folder that was downloaded.

    Where quantcli itself lies there, what it needs may lie beside it, and is looked for there last.
    """
    try:
        first = not sys.flags.safe_path and os.path.samefile(sys.path[0], os.curdir)  # noqa: PTH121
    except OSError:
        return
    if first:
        place = sys.path.pop(0)
        if os.path.dirname(os.path.dirname(__file__)) == place:  # noqa: PTH120
            sys.path.append(place)


if __name__ == "__main__":
    _leave_working_directory()
    main()
