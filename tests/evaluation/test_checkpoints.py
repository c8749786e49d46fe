"""What is concluded from measured checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from twostage.evaluation.checkpoints import Measured, copies, ranked, read_measured, step_curve


def line(copying: float, unseen: float | None, step: int = 0) -> Measured:
    return Measured(2, step, 0.5, unseen, 0.3, copying, 0.1)


@pytest.mark.parametrize(
    ("lines", "patience", "expected"),
    [
        ([(0.5, 0.6), (0.6, 0.6)], 1, True),
        ([(0.5, 0.6), (0.6, 0.5), (0.7, 0.6)], 2, True),
        ([(0.5, 0.6), (0.6, 0.6)], 2, False),  # too few
        ([(0.5, 0.5), (0.6, 0.6)], 1, False),  # the subject is learned
        ([(0.5, 0.6), (0.5, 0.6)], 1, False),  # as near as before
        ([(0.5, 0.6), (0.7, 0.6), (0.6, 0.6)], 2, False),  # not in a row
        ([(0.1, 0.9), (0.2, 0.1), (0.3, 0.2)], 1, False),  # what was before does not count
        ([(0.5, None), (0.6, None)], 1, False),
    ],
)
def test_copying_is_a_rise_in_a_row_without_a_rise_of_identity(
    lines: list[tuple[float, float | None]], patience: int, expected: bool
) -> None:
    assert copies([line(*values) for values in lines], patience) is expected


def test_the_best_comes_first_and_of_equals_the_later() -> None:
    lines = [replace(line(0.5, 0.6, step), score=score) for step, score in ((2, 0.1), (4, 0.3), (6, 0.3), (8, 0.4))]
    lines.append(replace(lines[-1], stage=1, score=0.9))
    assert [found.step for found in ranked(lines, 2, (2, 8))] == [8, 6, 4, 2]
    assert [found.step for found in ranked(lines, 2, (2, 7))] == [6, 4, 2]
    assert ranked(lines, 2, (1, 9)) == []


def test_lines_are_read_back_as_they_were_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    lines = [line(1 / 3, None, 200), line(0.7, 2 / 3, 400)]
    text = "".join(json.dumps(asdict(found)) + "\n" for found in lines)
    (tmp_path / "selection.jsonl").write_text(text + text[:30])
    assert read_measured(tmp_path) == lines
    assert read_measured(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "damage", [{"step": "x"}, {"stage": None}, {"score": [1]}, {"copying": float("nan")}, {"x": 1}]
)
def test_a_damaged_line_is_left_out(tmp_path: Path, damage: dict[str, object]) -> None:
    text = json.dumps(asdict(line(0.5, 0.6)) | damage)
    (tmp_path / "selection.jsonl").write_text(
        text + "\nnull\n" + "[" * 5000 + "\n" + json.dumps(asdict(line(0.1, 0.2)))
    )
    assert read_measured(tmp_path) == [line(0.1, 0.2)]


def test_a_curve_has_a_point_for_each_line_and_no_figure_that_was_not_measured(tmp_path: Path) -> None:
    lines = [line(0.4, None, 200), line(0.7, 0.6, 400)]
    (tmp_path / "selection.jsonl").write_text("".join(json.dumps(asdict(found)) + "\n" for found in lines))
    first, second = step_curve(tmp_path)
    assert (first["stage"], first["at"], second["at"]) == (2, 200, 400)
    assert {*second["figures"]} - {*first["figures"]} == {"dino_unseen"}
    copying = second["figures"]["copying"]
    assert (copying["value"], copying["better"], copying["range"]) == (0.7, "lower", [-1, 1])
