"""The command as it is called, in this process."""

from __future__ import annotations

from quantcli.cli.main import main


def run_command(capsys, *words) -> tuple[int, str, str]:
    """Status, stdout and stderr; what is said of compiling, which happens once, is left out."""
    status = 0
    try:
        main([*map(str, words)])
    except SystemExit as end:
        status = end.code or 0
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("compiling kernels")]
    return status, captured.out, "\n".join(errors)
