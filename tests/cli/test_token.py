"""`twostage token` prints lines for programs, tables for people, and refuses what it cannot look at."""

import json

import pytest

from cli.token import _encodable, _free_file, _print_table


def test_suggest_prints_a_line_for_each(twostage):
    result = twostage("token", "suggest", "-n", 3)
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["rare token"] * 3 + ["rare adjective"] * 3
    assert {len(line) for line in lines} == {8}
    assert "note: ranks are of" in result.stderr


def test_suggest_prints_json(twostage, tiny_base):
    result = twostage("token", "suggest", "--base", tiny_base, "--class", "dog", "-n", 2, "--length", 2, "--json")
    found = json.loads(result.stdout)
    assert len(found["tokens"]) == len(found["initial_words"]) == 2
    assert {"text", "ids", "norm", "nearest", "rank", "score", "verdict", "pull"} == found["tokens"][0].keys()
    assert len(found["tokens"][0]["ids"]) == 2
    assert found["notes"]


def test_inspect_shows_pieces_status_and_cut(twostage, tiny_base):
    prompt = "{} " + "photo " * 90
    result = twostage("token", "inspect", "sks dóg", "--base", tiny_base, "--class", "vase", "--prompt", prompt)
    assert result.exit_code == 0, result.output
    assert "sks</w>" in result.stdout
    assert "2 words" in result.stdout
    assert "sks dóg vase photo" in result.stdout
    assert "photo[CUT HERE] photo" in result.stdout


def test_inspect_draws_into_the_next_free_file(twostage, tiny_base, tmp_path):
    for name in ("token-sks.png", "token-sks-2.png"):
        result = twostage("token", "inspect", "sks", "--base", tiny_base, "--draw", "-n", 1, "--json")
        assert json.loads(result.stdout)["picture"] == name
        assert (tmp_path / name).is_file()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["suggest", "--base", "./nowhere"], "no folder here"),
        (["suggest", "-n", 0], "--count"),
        (["suggest", "-n", -3], "--count"),
        (["suggest", "--length", 4], "--length"),
        (["suggest", "--class", "!!"], "holds no word"),
        (["suggest", "--class", "caf\udce9"], "UTF-8"),
        (["inspect", ""], "TEXT is empty"),
        (["inspect", " "], "TEXT is empty"),
        (["inspect", "caf\udce9"], "UTF-8"),
        (["inspect", "sks", "--base", "./nowhere"], "no folder here"),
        (["inspect", "sks", "--output", "a.png"], "add --draw"),
        (["inspect", "sks", "--draw", "--output", "a.gif"], ".png"),
        (["inspect", "sks", "--draw", "-n", 0], "--count"),
    ],
)
def test_a_mistake_gets_one_line(mistake, arguments, expected):
    assert expected in mistake("token", *arguments)


def test_a_picture_is_called_after_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(_free_file(text)) for text in ("<rare>", "a/b c", "***")] == [
        "token-rare.png",
        "token-a-b-c.png",
        "token-text.png",
    ]


def test_a_table_for_people_takes_tokens_for_no_markup(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _print_table("token", ("norm",), [("[red]", "0.4")])
    assert "[red]" in capsys.readouterr().out


def test_what_the_terminal_cannot_show_becomes_an_escape(monkeypatch):
    monkeypatch.setattr("sys.stdout", type("Ascii", (), {"encoding": "ascii"}))
    assert _encodable("dóg") == "d\\xf3g"
