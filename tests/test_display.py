"""What a person sees: bars on a terminal, lines in a log, nothing for a program."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from twostage.display import Display, _Bars, _Lines, terminal_display


def test_a_log_gets_the_last_step_with_its_numbers() -> None:
    stream = io.StringIO()
    display = _Lines(Console(file=stream))
    with display.progress("stage 1", 3) as update:
        for done in range(1, 4):
            update(done, loss=0.5, lr=1e-3)
    assert stream.getvalue().splitlines() == ["stage 1  3/3  loss 0.5  lr 0.001  took 0 s"]


def test_a_terminal_gets_a_bar_with_an_eta_and_the_numbers() -> None:
    stream = io.StringIO()
    display = _Bars(Console(file=stream, force_terminal=True, width=120))
    with display.progress("stage 2", 10, 4) as update:
        update(5, loss=0.25, lr=1e-4)
        display.say("[brackets] are text")
    with display.progress("drawing a[/b]", 1) as update:
        update(1)
    shown = stream.getvalue()
    assert "drawing a[/b]" in shown
    assert all(word in shown for word in ("stage 2", "5/10", "loss 0.25", "lr 0.0001", ":", "[brackets] are text"))


def test_the_terminal_display_leaves_standard_output_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    terminal_display().say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_the_plain_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display().progress("stage 1", 3) as update:
        update(1, loss=1.0)
    Display().say("hello")
    assert capsys.readouterr() == ("", "")


def test_an_overview_shows_what_is_done_of_the_whole_and_what_is_under_way() -> None:
    stream = io.StringIO()
    with _Lines(Console(file=stream)).overview("compare", 10.0) as update:
        update(5.0, ["a: stage 1 3/6"])  # Too soon after the beginning for a log.
        update(10.0, [])
    assert stream.getvalue().splitlines() == ["compare  100%"]
    stream = io.StringIO()
    with _Bars(Console(file=stream, force_terminal=True, width=120)).overview("compare", 10.0) as update:
        update(5.0, ["a: stage 1 3/6", "b [x]: 7 pictures"])
    assert all(word in stream.getvalue() for word in ("compare", "50%", "a: stage 1 3/6", "b [x]: 7 pictures"))
