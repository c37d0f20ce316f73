"""Completion in shells: the script, and what it is answered."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from command_line import run_command
from terminal import ROOT

SOURCE = "_QUANTIZE_COMPLETE"


def completed(capsys, monkeypatch, *words: str) -> list[str]:
    """What bash gets for the last of the words: `plain,NAME` or `file,`."""
    monkeypatch.setenv(SOURCE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("quantize", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    status, out, err = run_command(capsys)
    assert (status, err) == (0, "")
    return out.splitlines()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ins"], ["plain,inspect"]),
        (["./mod"], ["file,./mod"]),
        (["inspect", "mod"], ["file,mod"]),
        (["run", "m.gguf", "--prompt-f"], ["plain,--prompt-file"]),
        (["m", "--type", "Q4_K_"], ["plain,Q4_K_S", "plain,Q4_K_M"]),
        (["m", "--type", "f16,iq4"], ["plain,f16,IQ4_NL", "plain,f16,IQ4_XS"]),
        (["m", "q8"], ["plain,Q8_0"]),
        (["m", "--output-tensor-type", "nv"], ["plain,NVFP4"]),
        (["m", "-o", "out/"], ["file,out/"]),
        (["completion", "f"], ["plain,fish"]),
    ],
)
def test_commands_types_and_files_are_completed(capsys, monkeypatch, words, found):
    assert completed(capsys, monkeypatch, *words) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_the_shell(capsys, shell):
    status, out, _ = run_command(capsys, "completion", shell)
    assert status == 0
    assert f"{SOURCE}={shell}_complete" in out
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=out, text=True, check=True)


def test_bash_calls_it(capsys, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("there is no bash here")
    program = tmp_path / "quantize"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m quantcli \"$@\"\n")
    program.chmod(0o755)
    script = f"""
    PATH={tmp_path}:$PATH
    eval "$(quantize completion bash)"
    COMP_WORDS=(quantize model --type Q4_K_) COMP_CWORD=3
    compopt() {{ :; }}
    _quantize_completion quantize Q4_K_ --type
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("Q4_K_S Q4_K_M\n", "")
