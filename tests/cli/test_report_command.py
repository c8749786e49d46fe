"""`twostage report`."""

from tests.report.comparisons import write_comparison


def _comparison(folder):
    return write_comparison(folder, ["two-stage", "dreambooth"], ["dog"], [0], pictures=False, curves=False)


def test_a_comparison_gets_its_report_in_its_own_folder(twostage, tmp_path):
    result = twostage("report", _comparison(tmp_path / "both"))
    assert result.exit_code == 0 and result.stderr == ""
    verdict, path = result.stdout.splitlines()
    assert "shows the subject best" in verdict and path == str(tmp_path / "both" / "report.html")
    assert (tmp_path / "both" / "report.html").is_file() and (tmp_path / "both" / "report.csv").is_file()


def test_several_runs_get_one_here_or_where_it_is_asked_for(twostage, tmp_path):
    runs = sorted((_comparison(tmp_path / "both") / "runs").iterdir())
    assert twostage("report", *runs).exit_code == 0
    assert twostage("report", *runs, "-o", "deep/mine.html", "--title", "Both of them").exit_code == 0
    assert (tmp_path / "report.html").is_file()
    assert "<title>Both of them</title>" in (tmp_path / "deep" / "mine.html").read_text(encoding="utf-8")


def test_a_corrupt_run_among_many_is_named_and_the_exit_code_is_1(twostage, tmp_path):
    (_comparison(tmp_path) / "runs" / "dreambooth-dog-0" / "evaluation.json").write_text("{")
    result = twostage("report", tmp_path)
    assert result.exit_code == 1 and (tmp_path / "report.html").is_file()
    (line,) = result.stderr.splitlines()
    assert line.startswith("skipped ") and "dreambooth-dog-0: evaluation.json cannot be read" in line


def test_nothing_to_report_is_one_line(mistake, tmp_path):
    (tmp_path / "run").mkdir()
    assert "no evaluated run" in mistake("report", "run", "-o", "new/report.html")
    assert "there is no such folder" in mistake("report", "none")


def test_an_output_that_cannot_be_written_is_told_before_work(mistake, tmp_path):
    _comparison(tmp_path)
    assert "must end in .html" in mistake("report", tmp_path, "-o", "report.pdf")
    assert "cannot write" in mistake("report", tmp_path, "-o", tmp_path / "compare.json" / "report.html")
