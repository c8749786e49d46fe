"""`bench dreambooth`: the DreamBooth paper's protocol on its data set, and its Table 1 beside what is measured here.

Ruiz et al. 2022 (arXiv 2208.12242), section 4: 30 subjects, 25 prompts, 4 pictures each. DINO and CLIP-I are the mean
cosine of drawn pictures and the subject's photos, CLIP-T that of pictures and prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twostage.comparing import ComparedSubject, Comparison, Machine, Request, compare
from twostage.comparing.request import Bench, read_budget, read_seeds, read_settings
from twostage.display import Display
from twostage.errors import UserError
from twostage.reading import read_text
from twostage.recipe_evaluation import Evaluation
from twostage.report.pooling import REAL, Estimate, Pool
from twostage.report.reading import read_runs

PROMPTS = "prompts_and_classes.txt"
FIGURES = ("dino_seen", "clip_i_seen", "clip_t")
_COUNT = 30


@dataclass(frozen=True)
class Line:
    """A row of Table 1: its figures are None where they are not given.

    Attributes:
        name: method and model.
        figures: DINO, CLIP-I and CLIP-T.
        source: who measured it: "here", or "paper".
    """

    name: str
    figures: tuple[Estimate | None, ...]
    source: str


# Table 1 of the paper, arXiv 2208.12242v2, as printed there: single numbers, without intervals.
_PAPER = {
    "real photos": (0.774, 0.885, None),
    "DreamBooth (Imagen)": (0.696, 0.812, 0.306),
    "DreamBooth (Stable Diffusion)": (0.668, 0.803, 0.305),
    "Textual Inversion (Stable Diffusion)": (0.569, 0.780, 0.255),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a bench.

    Attributes:
        comparison: the runs, and their report.
        table: our rows, then the paper's.
        notes: in what it differs from the paper's protocol.
    """

    comparison: Comparison
    table: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def bench_dreambooth(
    asked: Bench,
    evaluation: Evaluation,
    output: Path,
    *,
    machine: Machine | None = None,
    command: str = "",
    display: Display | None = None,
) -> Outcome:
    """Train on each subject of the data set, draw its prompts, and lay the figures beside the paper's.

    Args:
        asked: data set, recipes and how much of it.
        evaluation: how it is measured; the suite is the data set's own.
        output: folder; one that holds part of the same bench is gone on with.
        machine, command, display: as in `compare`.

    Raises:
        UserError: it is no such data set, or as in `compare`.
    """
    subjects, missing = find_subjects(asked.photos, asked.num_subjects)
    if evaluation.suite:
        raise UserError(f"suite {evaluation.suite!r}: the protocol has the data set's own prompts; leave it out")
    options = evaluation.model_copy(update={"suite": str((asked.photos / PROMPTS).resolve())})
    overrides = {name: values[0] for name, values in read_settings(asked.settings, "--set").items()}
    request = Request(
        recipes=asked.recipes,
        subjects=tuple(subjects),
        seeds=read_seeds(asked.seeds),
        overrides=overrides | ({"base": asked.base} if asked.base else {}),
        budget=read_budget(asked.budget),
        evaluation=options,
    )
    done = compare(request, output, machine=machine, command=command, display=display)
    runs, _ = read_runs([output])
    if not runs:
        return Outcome(done)
    pool = Pool(runs)
    ours = [_line(pool, name, name) for name in pool.strategies]
    return Outcome(
        done,
        [_line(pool, REAL, "real photos"), *ours, *(_paper(name) for name in _PAPER)],
        _differences(asked, options, len(subjects), missing, pool),
    )


def find_subjects(folder: Path, count: int | None = None) -> tuple[list[ComparedSubject], list[str]]:
    """The data set's subjects with their classes, and the names of those that are not there.

    Args:
        folder: with the subjects' folders and prompts_and_classes.txt.
        count: only so many, spread evenly over the list, so that every kind is there.

    Raises:
        UserError: it is no such folder.
    """
    listed = _classes(folder)
    there = [name for name in listed if (folder / name).is_dir()]
    missing = [name for name in listed if name not in there]
    if not there:
        raise UserError(f"{folder} has none of the {len(listed)} subjects that {PROMPTS} lists; get the data set whole")
    if count is not None and count > len(there):
        raise UserError(f"num_subjects {count}: {folder} has {len(there)}; ask for no more")
    chosen = there if count is None else [there[index * len(there) // count] for index in range(count)]
    return [ComparedSubject(photos=folder / name, class_noun=listed[name]) for name in chosen], missing


def _classes(folder: Path) -> dict[str, str]:
    """Class by subject, as the data set's file lists them."""
    file = folder / PROMPTS
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text (byte {error.start}); get the data set anew") from error
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; --photos is the `dataset` folder of google/dreambooth, which has "
            "it beside the subjects"
        ) from error
    _, header, rest = text.partition("subject_name,class")
    # A class may hold a space, and a name none of both.
    pairs = re.findall(r"^([\w-]+),([^\n,]+)$", rest.partition("Prompts")[0], re.MULTILINE)
    if not header or not pairs:
        raise UserError(f"{file} lists no subjects below 'subject_name,class'; get the data set anew")
    return {name: noun.strip() for name, noun in pairs}


def _line(pool: Pool, strategy: str, name: str) -> Line:
    return Line(name, tuple(pool.estimate(strategy, figure) for figure in FIGURES), "here")


def _paper(name: str) -> Line:
    figures = (None if value is None else Estimate(value, None, None, 0) for value in _PAPER[name])
    return Line(name, tuple(figures), "paper")


def _differences(asked: Bench, options: Evaluation, subjects: int, missing: Sequence[str], pool: Pool) -> list[str]:
    """In what this is another measurement than the paper's."""
    notes = []
    if subjects < _COUNT:
        short = f"; not in {asked.photos}: {', '.join(missing)}" if missing else ""
        notes.append(f"{subjects} of {_COUNT} subjects{short}")
    prompts = max(len(run.document.choices["prompts"]) for run in pool.runs)
    if prompts < 25:
        notes.append(f"{prompts} of 25 prompts")
    if options.images_per_prompt != 4:
        notes.append(f"pictures a prompt: {options.images_per_prompt}; the paper has 4")
    encoders = pool.runs[0].document.choices.get("encoders", {})
    used = ", ".join(f"{role} {facts['source']}" for role, facts in encoders.items())
    notes.append(f"encoders: {used}; the paper's are DINO ViT-S/16 and a CLIP it does not name")
    if any(facts["source"] == "pocket" for facts in encoders.values()):
        notes.append("the pocket encoders know a drawn world alone: these rows cannot be compared with the paper's")
    notes.append("of real photos, no photo is compared with itself; CLIP-T is of the prompt without the token")
    return notes
