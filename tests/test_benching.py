"""The DreamBooth protocol: the data set is read as it is, and our rows are told from the paper's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.bench import markdown
from twostage.benching import FIGURES, bench_dreambooth, find_subjects
from twostage.comparing import Machine
from twostage.comparing.request import Bench
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe_evaluation import Evaluation

REAL = Path(__file__).resolve().parents[2] / "shared" / "dreambooth" / "dataset"
FILE = """Classes

subject_name,class
thing,backpack
plushie,stuffed animal
pet,dog
gone,can

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def data_set(tmp_path: Path, photos: Path) -> Path:
    """Three of four subjects, in the layout of google/dreambooth."""
    folder = tmp_path / "dataset"
    for name in ("thing", "plushie", "pet"):
        shutil.copytree(photos, folder / name)
    (folder / "prompts_and_classes.txt").write_text(FILE, encoding="utf-8")
    return folder


def test_subjects_and_their_classes_are_those_of_the_data_sets_file(data_set: Path) -> None:
    subjects, missing = find_subjects(data_set)
    assert {subject.name: subject.class_noun for subject in subjects} == {
        "thing": "backpack",
        "plushie": "stuffed animal",
        "pet": "dog",
    }
    assert missing == ["gone"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the DreamBooth data set is not at hand")
def test_the_real_data_set_is_read() -> None:
    subjects, missing = find_subjects(REAL)
    assert len(subjects) + len(missing) == 30 and len(subjects) == 24
    assert {subject.class_noun for subject in subjects} >= {"stuffed animal", "backpack", "dog", "cat"}
    spread, _ = find_subjects(REAL, 6)
    assert len({subject.class_noun for subject in spread}) >= 4


def test_a_folder_that_is_no_such_data_set_is_refused(data_set: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="prompts_and_classes.txt"):
        find_subjects(photos)
    with pytest.raises(UserError, match="num_subjects 4"):
        find_subjects(data_set, 4)
    (data_set / "prompts_and_classes.txt").write_text("nothing of the kind", encoding="utf-8")
    with pytest.raises(UserError, match="lists no subjects"):
        find_subjects(data_set)


def test_the_papers_rows_stand_beside_ours_and_say_whose_they_are(data_set: Path, tiny_base: Path) -> None:
    asked = Bench(
        photos=data_set, num_subjects=2, base=str(tiny_base), budget="steps=2", settings=("stage.batch_size=1",)
    )
    options = Evaluation(
        num_prompts=1,
        images_per_prompt=1,
        num_class_images=2,
        num_unrelated_images=0,
        num_inference_steps=2,
        encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
    )
    outcome = bench_dreambooth(asked, options, data_set.parent / "bench", machine=Machine(workers=1), display=Display())
    assert not outcome.comparison.failed
    ours = [line for line in outcome.table if line.source == "here"]
    assert [line.name for line in ours] == ["real photos", "two-stage"]
    assert all(ours[1].figures) and len(FIGURES) == 3
    table = markdown(outcome)
    assert (
        "| DreamBooth (Stable Diffusion) | 0.668 | 0.803 | 0.305 | in the paper (arXiv 2208.12242, Table 1) |" in table
    )
    assert "2 of 30 subjects; not in" in table and "gone" in table
    assert "cannot be compared with the paper's" in table
    assert Path(outcome.comparison.report or "").is_file()


def test_a_suite_of_ones_own_is_no_protocol(data_set: Path) -> None:
    with pytest.raises(UserError, match="the data set's own prompts"):
        bench_dreambooth(Bench(photos=data_set), Evaluation(suite="pocket"), data_set.parent / "bench")
