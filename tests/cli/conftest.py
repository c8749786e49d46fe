import pytest
from typer.testing import CliRunner, Result

from cli.main import app


@pytest.fixture
def twostage(tmp_path, monkeypatch):
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def mistake(twostage, tmp_path):
    """Run the command, which must answer in one line and leave nothing behind; returns the line."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = twostage(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run
