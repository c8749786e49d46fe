"""What measures say about a set of photos: findings, each with what to do.

The thresholds were set on the 24 subjects of the DreamBooth data set that are at hand (125 photos, all of them usable):
what is found there without cause is said beside each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from twostage.subject.copies import Copy, Likeness, alike, confirm
from twostage.subject.measures import SHARPNESS_SIDE, Measures
from twostage.subject.photos import Fit, some_of

# The least sharp of those photos has 151; blurred by 1/256 of their side, half of them have less than 60.
_BLURRED = 100.0
# The least of any set has 0.19 of the median of its set.
_BLURRED_BESIDE_OTHERS = 0.15
_MUCH_ENLARGED = 1.5
# Grey values: all but 5 % of the picture is darker, or lighter.
_DARK, _LIGHT, _FLAT = 50, 205, 12
_CUT, _SMALL, _LOST = 0.05, 0.1, 0.25
# Two sets have more: one on a white page, one on the same table.
_SAME_BORDER = 0.8
# By the bundled encoders 3 sets of 24 have a photo beyond it; a stranger put among the photos of a set is beyond it in
# 6 cases of 10.
_UNLIKE, _FEWEST_TO_COMPARE = 0.3, 4
# Photos that are compared with all before them at once.
_TOGETHER = 128

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing about the photos, for people.

    Attributes:
        level: "error": training would refuse it; "warning": it will cost quality; "note": worth knowing.
        kind: in a word, for programs.
        photos: names of those it is about; empty where it is about all.
        says: what was found, in a few words.
        advice: what to do.
    """

    level: Level
    kind: str
    photos: tuple[str, ...]
    says: str
    advice: str


def sorted_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first, else in their order."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def look_at_photo(photo: Measures, fit: Fit) -> list[Finding]:
    """What is to say about a photo by itself."""
    return [
        Finding(level, kind, (photo.name,), says, advice)
        for level, kind, says, advice in (*_of_the_picture(photo), *_of_the_crop(photo, fit), *_of_the_file(photo))
    ]


def look_at_all(photos: Sequence[Measures], copies: Mapping[tuple[str, str], Copy]) -> list[Finding]:
    """What is to say about photos together.

    Args:
        photos: of one subject.
        copies: from `find_copies`.
    """
    found = [
        Finding(
            "warning",
            "copy",
            pair,
            f"the same picture, {copy}" if str(copy) != "unchanged" else "the same picture",
            "it counts double in training, and leaks where one of them is held out: keep one",
        )
        for pair, copy in copies.items()
    ]
    if len(photos) < 3:
        found.append(_few(len(photos)))
    median = float(np.median([photo.sharpness for photo in photos]))
    for photo in photos if len(photos) >= 3 else ():
        if _BLURRED <= photo.sharpness < _BLURRED_BESIDE_OTHERS * median:
            says = f"less sharp than the others: {photo.sharpness:.0f}, where their median is {median:.0f}"
            found.append(Finding("warning", "blur", (photo.name,), says, "look whether the subject is in focus"))
    seconds = {second for _, second in copies}
    borders = np.stack([photo.border for photo in photos if photo.name not in seconds])
    # One with itself is 1, and never the least.
    if len(borders) >= 3 and min(float((borders @ own).min()) for own in borders) > _SAME_BORDER:
        advice = "the background may be learned with the subject: add photos from elsewhere, or give masks"
        found.append(Finding("warning", "background", (), "all photos have the same colours at their edges", advice))
    return [*found, *_captions(photos)]


def look_at_likeness(names: Sequence[str], embedded: Tensor) -> list[Finding]:
    """A photo that looks unlike the rest, where there is one and there are enough to tell.

    Args:
        names: of photos, none a copy of another.
        embedded: (N, D) of length 1, what encoders see in them; the threshold is that of the bundled ones.
    """
    if len(names) < _FEWEST_TO_COMPARE:
        return []
    likeness = (embedded @ embedded.T).double().numpy()
    count = len(names)
    own = likeness.sum(axis=1) - likeness.diagonal()
    # Of each: the mean over the pairs that it is not in, less the mean over those that it is in.
    gaps = (own.sum() / 2 - own) / ((count - 1) * (count - 2) / 2) - own / (count - 1)
    worst = int(np.argmax(gaps))
    if gaps[worst] <= _UNLIKE:
        return []
    says = f"looks unlike the rest: {gaps[worst]:.2f} less than they look like each other ({_UNLIKE} is remarked on)"
    advice = "a rough measure of colours and shapes: make sure that it shows the same subject; variety is welcome"
    return [Finding("note", "unlike", (names[worst],), says, advice)]


def find_copies(photos: Sequence[Measures]) -> dict[tuple[str, str], Copy]:
    """Which photos are copies of which, by name, the earlier first; the later is compared with what is no copy."""
    found: dict[tuple[str, str], Copy] = {}
    originals: list[int] = []
    of_file: dict[str, int] = {}
    thumbnails = [photo.thumbnail for photo in photos]
    for start in range(0, len(photos), _TOGETHER):
        some = range(start, min(start + _TOGETHER, len(photos)))
        near: dict[int, dict[int, list[Likeness]]] = {}
        for (earlier, place), likenesses in alike(thumbnails[: some.stop], thumbnails[start : some.stop]).items():
            near.setdefault(start + place, {})[earlier] = likenesses
        for index in some:
            photo, own = photos[index], near.get(index, {})
            same = of_file.get(photo.photo.sha256)
            for other in [other for other in originals if other in own or other == same]:
                copy = Copy(mirrored=False, shift=0.0) if other == same else None
                copy = copy or confirm(thumbnails[other], thumbnails[index], own[other])
                if copy:
                    found[photos[other].name, photo.name] = copy
                    break
            else:
                originals.append(index)
                of_file[photo.photo.sha256] = index
    return found


def most_typical(names: Sequence[str], embedded: Tensor, candidates: Sequence[str]) -> str:
    """Of the candidates, the photo nearest to the mean of all: the one to hold out.

    Args:
        names: of photos, none a copy of another.
        embedded: (N, D) of length 1, what encoders see in them.
        candidates: some of the names, at least one.
    """
    nearness = (embedded @ embedded.mean(0)).tolist()
    return max(candidates, key=dict(zip(names, nearness, strict=True)).__getitem__)


_Said = tuple[Level, str, str, str]


def _of_the_picture(photo: Measures) -> list[_Said]:
    found: list[_Said] = []
    if photo.light < _DARK:
        found.append(("warning", "exposure", "nearly black", "brighten it, or take it again"))
    elif photo.dark > _LIGHT:
        found.append(("warning", "exposure", "nearly white", "darken it, or take it again"))
    elif photo.light - photo.dark < _FLAT:
        found.append(("warning", "exposure", "one colour nearly all over: nothing is to be seen", "leave it out"))
    elif photo.sharpness < _BLURRED:
        says = f"blurred: sharpness {photo.sharpness:.0f} at {SHARPNESS_SIDE} pixels, good photos have 150 and more"
        found.append(("warning", "blur", says, "take it again, or leave it out"))
    if photo.enlarged > 1:
        width, height = photo.photo.size
        says = f"small: {width}x{height}, enlarged {photo.enlarged:.1f} times to train at {photo.seen.height} pixels"
        level: Level = "warning" if photo.enlarged >= _MUCH_ENLARGED else "note"
        found.append((level, "size", says, "find it larger, or train at a lower --resolution"))
    return found


def _of_the_crop(photo: Measures, fit: Fit) -> list[_Said]:
    found: list[_Said] = []
    other = "--data.fit bucket or pad" if fit == "crop" else "--data.fit pad"
    if photo.cut is not None and photo.cut > _CUT:
        says = f"the crop cuts {photo.cut:.0%} of the subject off (by its mask)"
        found.append(("warning", "cut", says, f"crop it yourself, or train with {other}"))
    elif photo.kept < 1 - _LOST:
        says = f"the crop keeps the middle {photo.kept:.0%}"
        found.append(("note", "crop", says, f"see that the subject is whole; to keep more: {other}"))
    if photo.cut is None and photo.filled is not None:
        found.append(("warning", "mask", "its mask is all black", "paint the subject white, or remove the mask"))
    elif photo.filled is not None and photo.filled < _SMALL:
        says = f"the subject fills {photo.filled:.0%} of the picture (by its mask)"
        found.append(("warning", "fills", says, "crop closer"))
    return found


def _of_the_file(photo: Measures) -> list[_Said]:
    found: list[_Said] = []
    caption = photo.photo.caption
    if caption is not None and "{}" not in caption and not re.search(r"<[^<>]+>", caption):
        says = f"its caption {caption!r} has no {{}}: training refuses it unless it names the token"
        found.append(("error", "caption", says, "write {} where token and class belong"))
    if photo.turned:
        found.append(("note", "turned", "turned upright, as its EXIF says", "nothing: training turns it too"))
    if photo.clear > 0:
        says = f"{photo.clear:.0%} transparent: laid on white" if photo.clear >= 0.005 else "transparent: laid on white"
        found.append(("note", "transparent", says, "put another background behind it if white is learned with it"))
    if photo.grey:
        found.append(("note", "grey", "without colours", "colour photos teach the subject's colours"))
    return found


def _few(number: int) -> Finding:
    if number == 1:
        says, advice = "one photo", "none can be held out, and it is learned as it is: take 3 to 5, from several sides"
    else:
        says, advice = "two photos", "holding one out leaves one to train on: take 3 to 5, from several sides"
    return Finding("warning", "number", (), says, advice)


def _captions(photos: Sequence[Measures]) -> list[Finding]:
    without = [photo.name for photo in photos if photo.photo.caption is None]
    if not without or len(without) == len(photos):
        return []
    says = f"{len(without)} of {len(photos)} photos have no caption: {some_of(without)}"
    return [Finding("note", "captions", (), says, "those are trained with templates; write one beside each photo")]
