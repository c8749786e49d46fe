"""The page in a real browser: what a reader sees and can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import Browser, browser, missing
from tests.report.comparisons import write_run
from twostage import report

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

LEFT, RIGHT, DOWN, ESCAPE = "\ue012", "\ue014", "\ue015", "\ue00c"
SEEN = "[...document.querySelectorAll('.panel:not([hidden]) .shot img')]"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.build([comparison], tmp_path_factory.mktemp("page") / "report.html", command="twostage compare x")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_pictures_and_charts_are_there_and_nothing_sticks_out(chromium, page, width, dark):
    chromium.open(page, width, dark)
    chromium.wait(f"{SEEN}.every(image => image.complete)")
    assert chromium.run(f"{SEEN}.length") == 6 * 8 + 4
    assert chromium.run(f"{SEEN}.every(image => image.naturalWidth > 1 && image.alt)")
    charts = chromium.run("document.querySelectorAll('[data-chart]').length")
    assert charts == chromium.run("document.querySelectorAll('[data-chart] svg.main-svg:first-child').length") > 10
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert chromium.complaints() == []


def test_the_page_asks_the_network_for_nothing(chromium, page):
    chromium.open(page, 1400)
    asked = (
        "performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:'))"
    )
    assert chromium.run(asked) == []
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and 'src="http' not in text and 'href="http' not in text


def test_a_heading_sorts_the_table_by_value_the_best_first(chromium, page):
    chromium.open(page, 1400)
    head = "document.querySelector('table.figures thead tr:last-child').cells"
    column = f"[...{head}].findIndex(cell => cell.textContent.includes('Drift, class'))"
    values = (
        f"[...document.querySelector('table.figures').tBodies[0].rows].map(row => +row.cells[{column}].dataset.sort)"
    )
    assert chromium.run(values) != sorted(chromium.run(values))
    chromium.run(f"{head}[{column}].querySelector('button').click()")
    assert chromium.run(values) == sorted(chromium.run(values))
    assert chromium.run(f"{head}[{column}].ariaSort") == "ascending"
    chromium.run(f"{head}[{column}].querySelector('button').click()")
    assert chromium.run(values) == sorted(chromium.run(values), reverse=True)
    assert len(chromium.run(values)) == 5  # base and real photos stay below


def test_a_picture_opens_large_and_the_keyboard_goes_on_from_it(chromium, page):
    chromium.open(page, 1400)
    chromium.run(f"{SEEN}[4].parentElement.click()")
    assert chromium.run("document.getElementById('viewer').open")
    assert chromium.run("document.getElementById('who').textContent") == "two-stage"
    assert "in the jungle" in chromium.run("document.getElementById('what').textContent")
    chromium.wait("document.getElementById('large').naturalWidth > 1")
    chromium.press(RIGHT)
    assert "in the snow" in chromium.run("document.getElementById('what').textContent")
    chromium.press(DOWN)
    assert chromium.run("document.getElementById('who').textContent") == "dreambooth"
    chromium.press(LEFT)
    assert "in the jungle" in chromium.run("document.getElementById('what').textContent")
    chromium.press(ESCAPE)
    chromium.wait("!document.getElementById('viewer').open")


def test_the_chooser_shows_another_subject_and_seed(chromium, page):
    chromium.open(page, 1400)
    chromium.run("(subject.value = 'dog', subject.dispatchEvent(new Event('change')))")
    chromium.run("(seed.value = '1', seed.dispatchEvent(new Event('change')))")
    panels = "[...document.querySelectorAll('.panel:not([hidden])')]"
    shown = f"{panels}.map(panel => panel.dataset.subject + panel.dataset.seed)"
    assert chromium.run(shown) == ["dog1"]
    chromium.wait(f"{SEEN}.every(image => image.complete && image.naturalWidth > 1)")


def test_the_button_turns_light_to_dark_and_charts_follow(chromium, page):
    chromium.open(page, 1400)
    ink = "document.querySelector('[data-chart] .ytick text').style.fill"
    before = chromium.run(ink), chromium.run("getComputedStyle(document.body).backgroundColor")
    chromium.run("document.getElementById('theme').click()")
    chromium.wait(f"{ink} !== '{before[0]}'")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") != before[1]


def test_hostile_text_is_shown_as_text(chromium, tmp_path):
    evil = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>\"'</style>&{{ 7 * 7 }}"
    for strategy in ("two-stage", "dreambooth"):
        folder = tmp_path / "runs" / strategy
        data = write_run(folder, strategy, "dog", 0)
        data["result"] |= {"name": f"{strategy}{evil}", "subject": f"dog{evil}", "device": evil}
        data["choices"]["prompts"] = [f"{prompt}{evil}" for prompt in data["choices"]["prompts"]]
        data["figures"]["dino_unseen"]["title"] += evil
        data["left_out"]["x"] = evil
        (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    page = report.build([tmp_path], tmp_path / "report.html", title=evil, command=evil, notes=[evil])
    chromium.open(page, 400)
    assert chromium.run("window.harmed === undefined")
    assert chromium.run("document.querySelector('h1').textContent") == evil
    assert chromium.run("document.documentElement.scrollWidth") <= 400
    assert chromium.complaints() == []


def test_a_picture_that_cannot_be_read_is_marked_and_the_rest_is_shown(chromium, tmp_path):
    folder = tmp_path / "runs" / "a"
    write_run(folder, "two-stage", "dog", 0)
    (folder / "evaluation" / "subject" / "0002.png").write_bytes(b"no picture")
    (folder / "evaluation" / "subject" / "0003.png").unlink()
    chromium.open(report.build([tmp_path], tmp_path / "report.html"), 1400)
    assert chromium.run("document.querySelectorAll('.shot.broken').length") == 1
    assert chromium.run("document.querySelectorAll('.none').length") == 1
    assert chromium.complaints() == []


def test_a_report_without_pictures_charts_and_intervals_is_a_page_too(chromium, tmp_path):
    write_run(tmp_path / "a", "two-stage", "dog", 0, pictures=False, curves=False)
    data = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    data |= {"figures": {"kid": data["figures"]["kid"]}, "base": {}, "real": {}, "choices": {}}
    data["result"] = {"name": "two-stage"}
    (tmp_path / "a" / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    chromium.open(report.build([tmp_path / "a"], tmp_path / "report.html"), 400)
    assert chromium.run("document.querySelector('.headline').textContent")
    assert chromium.run("document.documentElement.scrollWidth") <= 400
    assert chromium.complaints() == []
