"""Prompt suites: what a result is asked to draw. Bundled ones, a user's own, and the DreamBooth data set's lists.

The bundled ones are text files of the folder `suites`, one for each application of the DreamBooth paper (arXiv
2208.12242) and those of the pocket world; one prompt a line, {} standing for token and class.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from twostage.errors import UserError
from twostage.reading import read_text
from twostage.recipe_errors import show

_FOLDER = Path(__file__).parent / "suites"
_UNRELATED = ("unrelated", "pocket-unrelated")
# google/dreambooth, dataset/prompts_and_classes.txt: 'a {0} {1} on the beach'.format(unique_token, class_token),
_DREAMBOOTH = re.compile(r"^'(.*)'\.format\(unique_token, class_token\),?$", re.MULTILINE)
_LIVE_HEADER = "Live Subject Prompts"
# Of the data set's classes; nothing in the file tells them apart.
_LIVE = ("cat", "dog")


@dataclass(frozen=True)
class Suite:
    """Prompts to evaluate with.

    Attributes:
        name: of a bundled suite, or of the file; with "(objects)" or "(live subjects)" for the DreamBooth lists.
        prompts: different ones, {} in each standing for token and class; none in those of unrelated things.
        sha256: over the prompts, in hex: the same digest, the same prompts.
    """

    name: str
    prompts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Over the prompts, in hex: the same digest, the same prompts."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()


def suite_names() -> list[str]:
    """Of the bundled suites, those of unrelated prompts left out."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt") if path.stem not in _UNRELATED)


def load_suite(name_or_file: str, *, class_noun: str, first: int | None = None) -> Suite:
    """A suite by its name, from a text file with one prompt a line, or from the DreamBooth data set's file.

    In a text file, empty lines and those that begin with # are passed over.

    Args:
        name_or_file: which; a bundled name counts before a file.
        class_noun: of the subject; of the DreamBooth lists, cats and dogs get that for live subjects.
        first: only so many of its prompts, or all where it has fewer.

    Raises:
        UserError: no such suite or file; the file cannot be read, is no UTF-8, holds no prompt, one without {} or one
            twice.
    """
    if name_or_file in suite_names():
        return Suite(name_or_file, _prompts(_FOLDER / f"{name_or_file}.txt")[:first])
    path = Path(os.path.expanduser(name_or_file))
    if not os.path.exists(path):
        near = get_close_matches(name_or_file, suite_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"suite {name_or_file!r} is neither a file here nor a bundled suite; {hint}Bundled are "
            f"{', '.join(suite_names())}"
        )
    text = _text(path)
    if _DREAMBOOTH.search(text):
        kind, prompts = _dreambooth(path, text, class_noun)
        return Suite(f"{path.name} ({kind})", prompts[:first])
    return Suite(path.name, _prompts(path)[:first])


def load_unrelated(*, pocket: bool, class_noun: str, first: int | None = None) -> Suite:
    """Prompts of other things than the subject's class, none with {}.

    Args:
        pocket: whether they must be things that the pocket world knows.
        class_noun: prompts that hold its last word ("animal" of "stuffed animal") are left out; "" leaves out none.
        first: only so many, or all where there are fewer.
    """
    name = _UNRELATED[pocket]
    lines = [line for _, line in _lines(_text(_FOLDER / f"{name}.txt"))]
    if words := class_noun.split():
        named = re.compile(rf"\b{re.escape(words[-1])}(s|es)?\b", re.IGNORECASE)
        lines = [line for line in lines if not named.search(line)]
    return Suite(name, tuple(lines[:first]))


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(f"suite {path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read the suite {path}: {error.strerror}") from error


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines that say something, with their numbers."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _prompts(path: Path) -> tuple[str, ...]:
    found: dict[str, int] = {}
    for number, line in _lines(_text(path)):
        if "{}" not in line:
            raise UserError(
                f"suite {path}, line {number}: {show(line)} has no {{}} where token and class belong, as in 'a photo "
                "of a {} on the beach'"
            )
        if line in found:
            raise UserError(f"suite {path}, line {number}: {show(line)} is line {found[line]} once more; take one out")
        found[line] = number
    if not found:
        raise UserError(f"suite {path} holds no prompt; write one a line, as in 'a photo of a {{}} on the beach'")
    return tuple(found)


def _dreambooth(path: Path, text: str, class_noun: str) -> tuple[str, tuple[str, ...]]:
    """Which of the two lists, and its prompts."""
    objects, _, live = text.partition(_LIVE_HEADER)
    is_live = class_noun in _LIVE
    prompts = [prompt.replace("{0} {1}", "{}") for prompt in _DREAMBOOTH.findall(live if is_live else objects)]
    if not prompts or not all("{}" in prompt for prompt in prompts):
        raise UserError(f"suite {path} looks like the DreamBooth data set's prompts, but not all of it; get it anew")
    return "live subjects" if is_live else "objects", tuple(prompts)
