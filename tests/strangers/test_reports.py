"""What is shown of strangers' text stays text: in a report, a model card, a spreadsheet, a terminal and a command."""

from __future__ import annotations

import base64
import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from cli.main import app
from tests.report.comparisons import write_run
from tests.watching import without
from twostage import report
from twostage.display import _Bars, _Lines
from twostage.errors import UserError
from twostage.model_card import Card
from twostage.recipe import Recipe, Sample, Token
from twostage.report.gallery import data_uri
from twostage.run_folder import RunFolder

SCRIPT = "</script><script>alert(1)</script>"
EVIL = (
    f'{SCRIPT}<img src=x onerror=alert(2)>"\'><a href="javascript:alert(3)">a</a><!--</style>&{{{{ 7 * 7 }}}}'
    "![x](http://tracker/x.png)[a](javascript:alert(4))\\"
)


class Page(HTMLParser):
    """The elements of a page, and what stands in them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)


def write_report(folder: Path, evil: str) -> Path:
    """Of two runs in which every text that a stranger has a say in holds `evil`; a photo is called so, too."""
    for strategy in ("two-stage", "dreambooth"):
        own = folder / "runs" / f"{strategy}{evil.replace('/', '_')[:40]}"
        data = write_run(own, strategy, "dog", 0)
        photo = own / f"{evil.replace('/', '_')[:60]}.png"
        Image.new("RGB", (8, 8)).save(photo)
        data["result"] |= {
            "name": f"{strategy}{evil}", "recipe": evil, "base": evil, "token": evil, "device": evil,
            "class_noun": f"dog{evil}", "subject": f"dog{evil}", "photos": [photo.name],
        }  # fmt: skip
        data["choices"] |= {name: f"{value}{evil}" for name, value in data["choices"].items() if isinstance(value, str)}
        data["choices"]["prompts"] = [f"{prompt}{evil}" for prompt in data["choices"]["prompts"]]
        data["choices"][evil] = evil
        data["versions"][evil] = evil
        data["figures"]["dino_unseen"]["title"] += evil
        data["figures"][evil] = data["figures"]["kid"]
        for figure in data["figures"].values():
            figure["prompts"] = [f"{prompt}{evil}" for prompt in figure["prompts"]]
        data["left_out"][evil] = evil
        (own / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    broken = folder / "runs" / "broken"
    broken.mkdir()
    (broken / "evaluation.json").write_text(json.dumps({"format": evil}))
    return report.build([folder], folder / "report.html", title=evil, command=f"twostage {evil}", notes=[evil])


def test_a_report_has_no_script_link_or_picture_of_theirs(tmp_path: Path) -> None:
    plain, evil = (
        Page(write_report(tmp_path / name, text).read_text(encoding="utf-8"))
        for name, text in (("plain", "plain"), ("evil", EVIL))
    )
    # The same elements as with harmless names, and what is a script are ours: two of data, one packed, one that runs.
    assert [tag for tag in set(evil.tags) if tag not in set(plain.tags)] == []
    for tag in ("script", "style", "link", "iframe", "object", "form", "a"):
        assert evil.tags.count(tag) == plain.tags.count(tag), tag
    assert len(evil.scripts) == 4
    assert evil.scripts[3] == plain.scripts[3] and evil.scripts[2] == plain.scripts[2]
    assert all("<" not in data for data in evil.scripts[:2])
    for data in evil.scripts[:2]:
        json.loads(data)
    assert "<script>alert(1)</script>" in "".join(evil.text)
    for name, value in evil.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "action", "data", "srcset"):
            assert value.startswith(("data:image/svg+xml,", "#")), value


def test_charts_hold_no_markup_of_theirs(tmp_path: Path) -> None:
    """plotly reads links and line breaks out of text."""
    page = Page(write_report(tmp_path, EVIL).read_text(encoding="utf-8"))
    waiting: list[Any] = [json.loads(page.scripts[1])]
    texts = []
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        texts += [part] if isinstance(part, str) else []
    assert any("alert(1)" in text for text in texts)
    assert not any("<script" in text or "<a " in text or "<img" in text for text in texts)


def test_the_page_forbids_scripts_pictures_and_forms_from_elsewhere(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, "plain").read_text(encoding="utf-8"))
    policy = next(value for name, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:;") and "form-action 'none'" in policy


def test_the_report_in_markdown_has_no_html_link_or_picture_of_theirs(tmp_path: Path) -> None:
    text = write_report(tmp_path, EVIL).with_suffix(".md").read_text(encoding="utf-8")
    shown, command = text.split("To repeat it:")
    assert "alert(1)" in shown and "<" not in shown.replace("\\", "")
    assert "![" not in shown and "](" not in shown.replace("\\]", "")
    assert all(line.startswith("    ") for line in command.strip("\n").splitlines())


def test_the_report_as_a_spreadsheet_holds_no_formula(tmp_path: Path) -> None:
    file = write_report(tmp_path, "=cmd|' /C calc'!A0").with_suffix(".csv")
    for strategy in ("two-stage", "dreambooth"):
        (own,) = (tmp_path / "runs").glob(f"{strategy}*")
        data = json.loads((own / "evaluation.json").read_text())
        data["result"] |= {"name": f"=HYPERLINK({strategy})", "subject": "+dog", "class_noun": ""}
        data["figures"]["@x"] = data["figures"]["kid"] | {"title": "-1+1"}
        (own / "evaluation.json").write_text(json.dumps(data))
    report.build([tmp_path], tmp_path / "report.html")
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    assert any("HYPERLINK" in row["strategy"] for row in rows)
    for row in rows:
        for name in ("strategy", "subject", "figure", "title", "folder"):
            assert not row[name].startswith(("=", "+", "-", "@")), row[name]


def test_pictures_are_shown_without_what_stands_in_their_files(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("prompt", EVIL)
    exif = Image.Exif()
    exif[0x010E] = EVIL
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info, exif=exif)
    uri = data_uri((tmp_path / "a.png").read_bytes(), 64)
    assert uri.startswith("data:image/webp;base64,")
    assert b"alert" not in base64.b64decode(uri.split(",")[1])


@pytest.fixture
def card(finished: Path, tiny_recipe: Recipe, tmp_path: Path) -> Callable[..., str]:
    """The model card of a run whose texts are a stranger's."""

    def write(noun: str, name: str = "run", **facts: Any) -> str:
        folder = RunFolder(Path(shutil.copytree(finished, tmp_path / name)))
        folder.open()
        folder.facts |= facts
        recipe = without(
            tiny_recipe,
            data=tiny_recipe.data.model_copy(update={"class_noun": noun, "caption": f"{{}} {noun}"}),
            sample=Sample(prompts=(f"a {{}} {noun}", noun)),
            token=Token(placeholder="<`a``b>"),
        )
        return Card(folder, recipe, str(folder.path), recipe.base).text()

    return write


def test_a_model_card_s_metadata_holds_no_keys_of_theirs(card: Callable[..., str]) -> None:
    evil = "dog\"'\n---\nlicense: mit\ntags: [evil]\n---\n# evil"
    text = card(evil, base_card={"license": "other\nextra: evil", "hub_id": "a/b\nextra: evil"})
    _, metadata, _ = text.split("\n---\n", 1)[0], *text.removeprefix("---\n").split("\n---\n", 1)
    found = yaml.safe_load(metadata)
    assert "extra" not in found and "evil" not in found["tags"] and found["license"] == "other\nextra: evil"
    assert "base_model" not in found


def test_a_model_card_shows_their_text_as_text(card: Callable[..., str]) -> None:
    text = card(f"{EVIL} ``` `` `\n```\n\n{EVIL}", device=EVIL)
    body = text.split("\n---\n", 1)[1]
    fenced = False
    for line in body.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            assert line in ("```", "```python", "```sh")
        elif not fenced:
            assert "<script" not in _outside_code(line) and "](http" not in _outside_code(line), line
    assert not fenced


def _outside_code(line: str) -> str:
    """What of a line of Markdown is in no code span, by the rule of CommonMark: a span ends at as many ticks."""
    left, at = "", 0
    for opened in re.finditer("`+", line):
        if opened.start() < at:
            continue
        closed = re.compile(f"(?<!`){opened[0]}(?!`)").search(line, opened.end())
        if closed:
            left, at = left + line[at : opened.start()], closed.end()
    return left + line[at:]


def test_a_command_to_be_copied_runs_nothing_of_theirs(card: Callable[..., str]) -> None:
    text = card("dog", name='run"; touch x; echo "$(touch y)`touch z`\'')
    (line,) = [line for line in text.splitlines() if line.startswith("twostage generate")]
    words = shlex.split(line)
    assert words[:2] == ["twostage", "generate"] and "touch x" in words[2]
    assert words[3:] == ["a photo of a {}", "-n", "4"]


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08\u202eevil"


def test_a_terminal_is_given_nothing_to_obey(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (_Bars, _Lines):
        console = Console(stderr=True, force_terminal=kind is _Bars, color_system=None)
        kind(console).say(f"note: {ESCAPES}")
        told = capsys.readouterr().err
        assert "\\x1b[2J" in told and not set(told) & set("\x1b\x9b\x07\x08\u202e"), repr(told)
    assert not set(str(UserError(f"{ESCAPES}\nline two"))) & set("\x1b\x9b\x07\x08\r\u202e")
    assert str(UserError("one\ntwo")) == "one\ntwo"


@pytest.mark.parametrize(
    "words", [["recipe", "show", "{}"], ["train", "{}", "nowhere"], ["report", "{}"], ["generate", "{}", "x"]]
)
def test_a_command_prints_nothing_to_obey(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"a{ESCAPES}.toml"
    text = json.dumps(ESCAPES).replace("\x7f", "")
    recipe = f"description = {text}\n{text} = 1\n[data]\nclass_noun = {text}\n[stage1]\nsteps = {text}\n"
    Path(name).write_text(recipe, encoding="utf-8")
    with pytest.raises(SystemExit):
        app([word.replace("{}", name) if word == "{}" else word for word in words])
    told = capsys.readouterr()
    assert (told.out + told.err).strip()
    assert not set(told.out + told.err) & set("\x1b\x9b\x07\x08\r\u202e"), repr(told)
