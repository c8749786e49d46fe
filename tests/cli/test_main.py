"""The command line answers at once, in one line when something is wrong, and never with a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.main import Commands
from twostage import __version__

ROOT = Path(__file__).parents[2]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **environment}, timeout=60)


def test_version(twostage):
    assert twostage("--version").stdout == f"twostage {__version__}\n"


def test_no_arguments_show_the_commands(twostage):
    result = twostage()
    assert result.exit_code == 0
    for command in ("train", "generate", "demo", "recipe"):
        assert command in result.stdout


def test_a_mistyped_command_gets_a_suggestion(mistake):
    assert "Did you mean 'train'?" in mistake("tran")


def test_a_mistyped_flag_gets_a_suggestion(mistake):
    line = mistake("train", "two-stage", "photos", "--lerning-rate", "1")
    assert "--learning-rate" in line and "--help" in line


WAITING = """
import time, typer
from cli.main import Commands

app = typer.Typer(cls=Commands)

@app.callback()
def main(): ...

@app.command()
def wait():
    print("up", flush=True)
    time.sleep(60)

app(["wait"])
"""


def test_an_interrupt_ends_with_130_and_no_traceback():
    command = [sys.executable, "-c", WAITING]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_our_own_bugs_are_not_swallowed():
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.callback()
    def main() -> None: ...

    @app.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(app, ["fail"], catch_exceptions=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_is_readable_in_any_pipe(encoding):
    for arguments in (["train", "--help"], ["recipe", "show", "two-stage"], ["recipe", "list"]):
        done = _run(*arguments, PYTHONIOENCODING=encoding, COLUMNS="20")
        assert done.returncode == 0, done.stderr
        assert b"two" in done.stdout or b"stage" in done.stdout
        assert b"\x1b[" not in done.stdout


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m cli recipe show two-stage | head -1", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("name = ")
    assert "Traceback" not in done.stderr
