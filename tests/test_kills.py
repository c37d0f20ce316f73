"""A fixed sample of `python tests/kills.py`: each command is killed, and continued or begun anew."""

from __future__ import annotations

from kills import kill, operations


def test_killed_commands_leave_whole_files(tmp_path):
    assert sum(kill(len(operations()), 1, folder=tmp_path).values()) > 0
