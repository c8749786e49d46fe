"""The files of a report."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import combinations

import plotly.graph_objects as go
import pytest

from tests.report.comparisons import write_run
from twostage import report
from twostage.errors import UserError
from twostage.report import pooling
from twostage.report.charts import all_charts
from twostage.report.formats import listed
from twostage.report.pooling import Pool
from twostage.report.reading import read_runs


@pytest.fixture(scope="module")
def built(comparison, tmp_path_factory):
    return report.build(
        [comparison], tmp_path_factory.mktemp("out") / "new" / "report.html", command="twostage compare x"
    )


def test_markdown_json_and_csv_come_beside_the_page(built, comparison):
    assert sorted(path.name for path in built.parent.iterdir()) == [
        f"report.{end}" for end in ("csv", "html", "json", "md")
    ]
    text = built.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        text.startswith("# 5 strategies on 3 subjects") and "| two-stage |" in text and "    twostage compare x" in text
    )
    data = json.loads(built.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(data["strategies"])[0] == "two-stage" and data["strategies"]["dreambooth"]["runs"] == 6
    assert len(data["runs"]) == 30 and data["differences"][0]["told"] in (True, False)
    rows = list(csv.DictReader(built.with_suffix(".csv").open(encoding="utf-8")))
    written = json.loads((comparison / "runs" / "dreambooth-dog-1" / "evaluation.json").read_text())
    (row,) = [
        row
        for row in rows
        if (row["strategy"], row["subject"], row["seed"], row["row"], row["figure"])
        == ("dreambooth", "dog", "1", "result", "clip_t")
    ]
    assert float(row["value"]) == written["figures"]["clip_t"]["value"]
    assert float(row["result_bytes"]) == written["result"]["result_bytes"]


def test_the_page_is_small_enough_to_be_mailed(built):
    assert built.stat().st_size < 5_000_000


def test_no_file_names_the_folders_of_whoever_made_it(built, comparison):
    for path in built.parent.iterdir():
        assert str(comparison.parent) not in path.read_text(encoding="utf-8")


def test_charts_are_what_plotly_knows(comparison):
    """plotly's own check of names and values."""
    charts = [chart for section in all_charts(Pool(read_runs([comparison])[0])).values() for chart in section]
    assert {"tradeoff", "drift_class", "diversity", "train_seconds", "step-dino_unseen", "strength-clip_t"} <= {
        chart.name for chart in charts
    }
    for chart in charts:
        # Colours are put in by the page.
        go.Figure(_painted(chart.figure))


def _painted(value):
    if isinstance(value, dict):
        return {name: _painted(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_painted(part) for part in value]
    return "#123456" if isinstance(value, str) and value.startswith("var(--") else value


@pytest.mark.parametrize("output", ["report.json", "folder.html", "file/report.html"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, output):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="the report"):
        report.build([tmp_path / "nothing is read"], tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_any_run_there_is_no_report(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no evaluated run"):
        report.build([tmp_path / "empty"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_was_skipped_is_in_the_report(tmp_path):
    write_run(tmp_path / "runs" / "good", "two-stage", "dog", 0, pictures=False)
    (tmp_path / "runs" / "cut short").mkdir()
    page = report.build([tmp_path], tmp_path / "report.html")
    for path in (page, page.with_suffix(".md"), page.with_suffix(".json")):
        assert "cut short" in path.read_text(encoding="utf-8")


def test_a_report_needs_no_torch():
    code = "import sys, twostage.report; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_of_many_strategies_the_best_are_charted_and_compared_and_that_is_said(comparison, tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "MANY", 3)
    page = report.build([comparison], tmp_path / "report.html")
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(data["strategies"]) == 5
    pairs = {(one["first"], one["second"]) for one in data["differences"]}
    assert pairs == set(combinations(list(data["strategies"])[:3], 2))
    assert "Of 5 strategies, charts show the 3 best on identity" in page.read_text(encoding="utf-8")
    charts = all_charts(Pool(read_runs([comparison])[0]))
    assert [len(chart.figure["data"][0]["x"]) for chart in charts["costs"]] == [3, 3, 3]


def test_lists_of_hundreds_end_with_how_many_more_there_are():
    assert listed([f"s{index}" for index in range(500)], "or").endswith(", s23 or 476 more")
