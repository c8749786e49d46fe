"""Prompt suites: bundled, a user's own, and the DreamBooth data set's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twostage.errors import UserError
from twostage.evaluation.suites import load_suite, load_unrelated, suite_names
from twostage.pocket import world

DREAMBOOTH = Path(__file__).resolve().parents[3] / "shared" / "dreambooth" / "dataset" / "prompts_and_classes.txt"
LISTS = """Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""


@pytest.mark.parametrize("name", suite_names())
def test_every_bundled_suite_has_prompts_with_a_place_for_the_subject(name: str) -> None:
    suite = load_suite(name, class_noun="dog")
    assert 8 <= len(suite.prompts) <= 14
    assert all(prompt.count("{}") == 1 for prompt in suite.prompts)


def test_the_applications_of_the_paper_are_bundled() -> None:
    assert {
        "recontextualization",
        "art-renditions",
        "novel-views",
        "accessorization",
        "property-modification",
        "expression",
        "comics",
    } <= set(suite_names())


def test_the_pocket_suites_ask_for_what_the_pocket_world_knows() -> None:
    contexts = load_suite("pocket", class_noun="dog").prompts
    assert contexts == tuple(world.prompt("dog", context=context).replace("dog", "{}") for context in world.CONTEXTS)
    known = {
        world.prompt("vase", **asked).replace("vase", "{}")
        for asked in (
            *({"colour": colour} for colour in world.COLOURS),
            *({"property": word} for word in world.PROPERTIES),
            *({"style": style} for style in world.STYLES),
            *({"accessory": worn, "context": context} for worn in world.ACCESSORIES for context in world.CONTEXTS),
        )
    }
    for name in ("pocket-properties", "pocket-accessories"):
        assert set(load_suite(name, class_noun="dog").prompts) <= known
    unrelated = load_unrelated(pocket=True, class_noun="").prompts
    assert set(unrelated) <= {world.prompt(name, context=c) for name in world.CLASSES for c in world.CONTEXTS}


@pytest.mark.parametrize(("noun", "last"), [("dog", "dog"), ("toy car", "car"), ("stuffed animal", "animal")])
def test_unrelated_prompts_never_name_the_class(noun: str, last: str) -> None:
    for pocket in (True, False):
        prompts = load_unrelated(pocket=pocket, class_noun=noun, first=8).prompts
        assert len(prompts) == 8
        assert not [prompt for prompt in prompts if last in prompt.split() or "{}" in prompt]


def test_the_first_prompts_are_those_of_the_whole() -> None:
    whole, first = (load_suite("pocket", class_noun="dog", first=first) for first in (None, 3))
    assert first.prompts == whole.prompts[:3]
    assert first.sha256 != whole.sha256
    assert load_suite("pocket", class_noun="dog", first=99) == whole


def test_a_text_file_is_a_suite(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff# of my own\n\n  a {} in the sun  \na {} in space\n", encoding="utf-8")
    suite = load_suite(str(file), class_noun="dog")
    assert (suite.name, suite.prompts) == ("mine.txt", ("a {} in the sun", "a {} in space"))


def test_the_lists_of_the_dreambooth_file_go_by_class(tmp_path: Path) -> None:
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(LISTS, encoding="utf-8")
    objects, live = (load_suite(str(file), class_noun=noun) for noun in ("vase", "cat"))
    assert objects.prompts == ("a {} in the jungle", "a red {}")
    assert objects.name == "prompts_and_classes.txt (objects)"
    assert live.prompts == ("a {} wearing a santa hat",)


@pytest.mark.skipif(not DREAMBOOTH.is_file(), reason="the DreamBooth data set is not at hand")
def test_the_dreambooth_data_set_has_25_prompts_for_each_kind() -> None:
    objects, live = (load_suite(str(DREAMBOOTH), class_noun=noun).prompts for noun in ("backpack", "dog"))
    assert len(objects) == len(live) == 25
    assert (objects[-1], live[10]) == ("a cube shaped {}", "a {} wearing a red hat")
    assert len(set(objects) & set(live)) == 15


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a {} here\na dog there\n", r"mine\.txt, line 2: 'a dog there' has no \{\}"),
        (b"a {} here\n\na {} here\n", r"mine\.txt, line 3: .* is line 1 once more"),
        (b"# nothing\n\n", r"mine\.txt holds no prompt"),
        (b"caf\xe9 {}\n", r"mine\.txt is no UTF-8 text \(byte 3\)"),
        (LISTS.partition("Live")[0].encode(), "not all of it"),
    ],
)
def test_a_broken_suite_is_one_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        load_suite(str(tmp_path / "mine.txt"), class_noun="dog")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "suite.txt")
    with pytest.raises(UserError, match="cannot read the suite .* a pipe or a device"):
        load_suite(str(tmp_path / "suite.txt"), class_noun="dog")


@pytest.mark.parametrize("content", ["x" * 100_000, "{}" + "x" * 100_000 + "\n{}" + "x" * 100_000])
def test_a_line_without_end_is_told_in_short(tmp_path: Path, content: str) -> None:
    (tmp_path / "suite.txt").write_text(content)
    with pytest.raises(UserError) as caught:
        load_suite(str(tmp_path / "suite.txt"), class_noun="dog")
    assert len(str(caught.value)) < 1000


def test_a_suite_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean novel-views"):
        load_suite("novel-view", class_noun="dog")
    with pytest.raises(UserError, match="cannot read the suite .*directory"):
        load_suite(str(tmp_path), class_noun="dog")
    with pytest.raises(UserError, match="neither a file here nor a bundled suite"):
        load_suite("unrelated", class_noun="dog")
