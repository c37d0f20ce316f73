"""`quantize run --chat` as a user meets it: in a terminal, with wrong turns."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from changed_file import write_chat

from quantcli.cli.conversation import whole_message
from quantcli.conversion.convert import convert

pty = pytest.importorskip("pty", reason="there are no such terminals here")
termios = pytest.importorskip("termios")

STORY = ", there was a little girl named Lily."
START = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from quantcli.cli.main import main; main()"
ENDLESS = ("--temp", "0", "--ignore-eos", "--ctx", "20000")
ANY_TOKEN = ("--temp", "50", "--top-k", "0", "--min-p", "0", "--top-p", "1", "--ignore-eos", "--seed", "1")


@pytest.fixture(scope="module")
def chat(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversation")
    convert(golden / "stories260K", "F32", folder / "plain.gguf")
    return write_chat(folder / "plain.gguf", folder / "chat.gguf")


class Terminal:
    """The command in a terminal of its own: what it shows, and what is typed."""

    def __init__(self, *words) -> None:
        self._end, inner = pty.openpty()
        self._before = termios.tcgetattr(inner)
        self._inner = inner
        command = [sys.executable, "-c", START, "run", *map(str, words), "--threads", "1"]
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=os.environ | {"TERM": "dumb"}, start_new_session=True,
        )  # fmt: skip
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, pattern: str) -> str:
        """What is shown from here on, until `pattern` is."""
        start, deadline = len(self.shown), time.monotonic() + 120
        while not (found := re.search(pattern, self.shown[start:])):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.shown[start:]!r}"
            if select.select([self._end], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._end, 4096).decode(errors="replace").replace("\r\n", "\n")
                except OSError:
                    pytest.fail(f"it ended before {pattern!r}: {self.shown!r}")
        text = self.shown[start : start + found.end()]
        self.shown = self.shown[: start + found.end()]
        return text

    def end(self) -> int:
        """The exit status, once it is done and the terminal is as it was."""
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self._end], [], [], 0.1)[0]:
                self.shown += os.read(self._end, 4096).decode(errors="replace")
        assert termios.tcgetattr(self._inner) == self._before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in (self._inner, self._end):
            with suppress(OSError):
                os.close(end)


@pytest.fixture
def terminal():
    started = []

    def start(*words) -> Terminal:
        started.append(Terminal(*words))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_conversation_from_beginning_to_end(chat, terminal):
    seen = terminal(chat, "--chat", "--temp", 0, "-n", 11)
    seen.wait_for("Ctrl-D exits.*\n> ")
    seen.type("Once upon a time\n")
    seen.wait_for(re.escape(STORY) + r"\n\n> ")
    seen.type("/help\n")
    seen.wait_for("/clear +forget.*(?s:.*)> ")
    seen.type("/nonsense\n")
    seen.wait_for("unknown command /nonsense.*\n> ")
    seen.type("\n")
    seen.wait_for("> ")
    seen.type("/clear\n")
    seen.wait_for("> ")
    seen.type("Once upon\\\n")
    seen.wait_for(r"\.\.\. ")
    seen.type(" a time\n")
    seen.wait_for("\n> ")
    seen.type("\x04")
    seen.wait_for(r"load [\d.]+ s \| prompt \d+ tokens, .* \| generated 22 tokens, .* \| memory .* weights \+ .* cache")
    assert seen.end() == 0
    assert "Traceback" not in seen.shown


def test_ctrl_c_stops_the_answer_and_not_the_session(chat, terminal):
    seen = terminal(chat, "--chat", *ENDLESS)
    seen.wait_for("\n> ")
    seen.type("Once\n")
    seen.wait_for("(?s:.{40})")
    seen.type("\x03")
    seen.wait_for("\n> $")
    seen.type("half a line")
    seen.wait_for("half a line$")
    # A signal that comes while Python takes in what was typed, it sees only with the next key: nobody types that fast.
    time.sleep(0.2)
    seen.type("\x03")
    seen.wait_for("\n> $")
    seen.type("/exit\n")
    seen.wait_for("memory")
    assert seen.end() == 0
    assert "Traceback" not in seen.shown


def test_a_kill_ends_the_session_and_leaves_the_terminal_sane(chat, terminal):
    seen = terminal(chat, "--chat", *ENDLESS)
    seen.wait_for("\n> ")
    seen.process.send_signal(signal.SIGTERM)
    assert seen.end() == 130
    seen = terminal(chat, "--chat", *ENDLESS)
    seen.wait_for("\n> ")
    seen.type("Once\n")
    seen.wait_for("(?s:.{40})")
    seen.process.send_signal(signal.SIGTERM)
    assert seen.end() == 130
    assert "Traceback" not in seen.shown


def test_a_full_context_does_not_end_the_session(chat, terminal):
    seen = terminal(chat, "--chat", "--temp", 0, "--ctx", 20)
    seen.wait_for("\n> ")
    seen.type("Once upon a time\n")
    seen.wait_for("warning: generation stopped: the context of 20 tokens is full(?s:.*)\n> ")
    seen.type("and\n")
    seen.wait_for("error: the prompt has .* too many for an answer(?s:.*)hint: .*/clear(?s:.*)\n> ")
    seen.type("/clear\n")
    seen.wait_for("> ")
    seen.type("Once\n")
    seen.wait_for("warning: generation stopped(?s:.*)\n> ")
    seen.type("\x04")
    assert seen.end() == 0


def test_an_answer_cannot_steer_the_terminal(chat, terminal):
    # Every byte is a token of this vocabulary; at this temperature all are as likely.
    seen = terminal(chat, "--prompt", "Once", *ANY_TOKEN, "-n", 300)
    seen.wait_for("load .*")
    assert seen.end() == 0
    answer = seen.shown[: seen.shown.rindex("load")]
    assert re.search(r"\\x[01][0-9a-f]", answer)
    assert not set(answer.removesuffix("\x1b[2m")) & {chr(code) for code in (*range(9), 11, 12, *range(14, 32), 127)}


def test_without_a_prompt_a_terminal_is_a_chat(chat, terminal):
    seen = terminal(chat, "--temp", 0, "-n", 11, "--system", "Be brief.")
    seen.wait_for("Ctrl-D exits.*\n> ")
    seen.type("/bye\n")
    assert seen.end() == 0
    seen = terminal(chat, "--json")
    seen.wait_for("error: no prompt given\nhint: --prompt TEXT")
    assert seen.end() == 2


def test_a_base_model_without_a_prompt_is_told_what_to_give(chat, terminal):
    seen = terminal(chat.with_name("plain.gguf"))
    seen.wait_for("error: the file has no chat template\nhint: --prompt TEXT .*")
    assert seen.end() == 1


def test_no_command_goes_to_the_model(chat, terminal):
    seen = terminal(chat, "--chat", "--temp", 0, "-n", 11)
    seen.wait_for("\n> ")
    seen.type("/?\n")
    seen.wait_for("/exit, /bye(?s:.*)> ")
    for typed in ("/Clear", "/clear  "):
        seen.type(f"{typed}\n")
        assert "unknown" not in seen.wait_for("> ")
    for typed in ("/set system Once", "/nonsense-2", "/", "/clear it"):
        seen.type(f"{typed}\n")
        seen.wait_for(f"unknown command {re.escape(typed)}; /help lists the commands\n> ")
    for typed in ("/etc/hosts is", " /bye"):
        seen.type(f"{typed}\n")
        answer = seen.wait_for("(?s:.+)\n\n> $").removeprefix(f"{typed}\n")
        assert "unknown" not in answer
    seen.type("/quit\n")
    seen.wait_for("generated 22 tokens")
    assert seen.end() == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\"], None),
        (["one\\", "two"], "one\ntwo"),
        (['"""'], None),
        (['"""one', "two"], None),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""', "one", "", 'two\\', '"""'], "one\n\ntwo\\"),
        (['"""one"""'], "one"),
        (["  "], ""),
    ],
)
def test_messages_of_several_lines(lines, message):
    assert whole_message(lines) == message
