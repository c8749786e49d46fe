"""What the figures look like: pictures of trials side by side.

python -m benchmarks.trials.picture FOLDER docs/default-recipe.jpg --subjects cat sneaker
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.trials.candidates import NO_PRIOR, OURS, PRIOR
from benchmarks.trials.carrying_out import Job, Trials
from benchmarks.trials.measuring import questionnaire
from benchmarks.trials.subjects import TEST, photograph
from twostage.evaluation.sheet import Row, contact_sheet

# Of each group, which of its pictures are shown, from so many on.
_SHOWN = {"context": (4, 6, 10), "edit": (0, 5), "class": (0, 1), "unrelated": (0, 1)}
TITLES = {
    OURS: "two-stage, half of DreamBooth's time",
    PRIOR: "DreamBooth with class images",
    NO_PRIOR: "DreamBooth without prior",
}


def rows(trials: Trials, noun: str, seed: int) -> list[Row]:
    """Of one individual: its photos, the untouched base, and each result."""
    photos = photograph(trials.folder / "photos", noun, TEST[noun])
    seen, unseen = (
        [Image.open(file) for file in sorted(folder.glob("*.png"))] for folder in (photos.seen, photos.unseen)
    )
    asked = questionnaire(noun)
    places = [
        [place for place, one in enumerate(asked) if one.group == group][shown]
        for group, chosen in _SHOWN.items()
        for shown in chosen
    ]
    words = [asked[place].template.replace("{}", f"<rare> {noun}") for place in places]
    base = trials.base_pictures(noun)
    found = [
        Row(f"{noun}: four photos to learn from, and others of it", [*seen, *unseen][: len(places)]),
        Row("the untouched model, the class in the token's place", [base[place] for place in places]),
    ]
    for candidate, title in TITLES.items():
        drawn = trials.drawn(Job(candidate.name, noun, TEST[noun], seed))
        found.append(Row(title, [drawn[place] for place in places], words))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--subjects", nargs="+", choices=TEST, default=("cat", "sneaker"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trials = Trials(arguments.folder, list(TITLES))
    shown = [row for noun in arguments.subjects for row in rows(trials, noun, arguments.seed)]
    contact_sheet(shown, side=96).save(arguments.output, quality=88)


if __name__ == "__main__":
    main()
