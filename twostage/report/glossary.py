"""How to read each figure: its group, its short name, one line. The order here is the order in tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A figure: which group it belongs to, its name in charts, and how to read it."""

    group: str
    short: str
    line: str


IDENTITY, PROMPT, VARIETY, CLASS, COPYING, OTHER = (
    "Subject",
    "Prompt",
    "Variety",
    "Class kept",
    "Copying",
    "Other",
)

ENTRIES: dict[str, Entry] = {
    "dino_unseen": Entry(
        IDENTITY,
        "DINO, held-out",
        "How alike the drawn subject and photos that training never saw look to a DINO encoder: mean pairwise cosine. "
        "The fairest of the identity figures.",
    ),
    "dino_seen": Entry(
        IDENTITY,
        "DINO, seen",
        "As DINO on held-out photos, but against the photos trained on, as in the DreamBooth paper; rewards copying.",
    ),
    "masked_dino_unseen": Entry(
        IDENTITY, "DINO, masked", "DINO on the subject alone, cut out with its masks: the surroundings do not count."
    ),
    "dinov2_unseen": Entry(IDENTITY, "DINOv2, held-out", "As DINO on held-out photos, with the newer DINOv2 encoder."),
    "dinov2_seen": Entry(IDENTITY, "DINOv2, seen", "DINOv2 against the photos trained on."),
    "clip_i_unseen": Entry(
        IDENTITY,
        "CLIP-I, held-out",
        "How alike drawn subject and held-out photos look to CLIP: kinds of things rather than details.",
    ),
    "clip_i_seen": Entry(IDENTITY, "CLIP-I, seen", "CLIP-I against the photos trained on."),
    "clip_t": Entry(
        PROMPT,
        "CLIP-T",
        "How well a picture fits its prompt, the token left out of the text: CLIP cosine of image and text.",
    ),
    "clip_t_token": Entry(PROMPT, "CLIP-T with token", "CLIP cosine of picture and prompt, the token in the text."),
    "diversity": Entry(
        VARIETY,
        "Diversity",
        "How unlike each other pictures of one prompt are: 1 - mean pairwise DINO cosine. 0: always the same picture.",
    ),
    "diversity_lpips": Entry(
        VARIETY,
        "Diversity, LPIPS",
        "How unlike each other pictures of one prompt are, by LPIPS, the distance of the DreamBooth paper.",
    ),
    "drift_class": Entry(
        CLASS,
        "Drift, class",
        "How far pictures of the bare class have moved from what the untouched base draws with the same seeds: "
        "1 - DINO cosine. 0: nothing forgotten.",
    ),
    "drift_unrelated": Entry(
        CLASS,
        "Drift, other things",
        "How far pictures of other things have moved from the untouched base's of the same seeds: 1 - DINO cosine.",
    ),
    "pres": Entry(
        CLASS,
        "PRES",
        "How much pictures of the bare class look like the subject (DINO): high means the class was taken over.",
    ),
    "dpres": Entry(CLASS, "PRES - base", "PRES less that of the untouched base: what training added."),
    "kid": Entry(
        CLASS,
        "KID",
        "Distance between the pictures of the class of result and base, as sets; 0 where they cannot be told apart.",
    ),
    "copying": Entry(
        COPYING, "Copying", "Cosine to the nearest training photo, mean over pictures: near 1, photos are reproduced."
    ),
    "copying_p95": Entry(
        COPYING, "Copying, 95th pct.", "Cosine to the nearest training photo that one picture in twenty exceeds."
    ),
    "overfit_gap": Entry(
        COPYING,
        "Overfit gap",
        "Identity on seen less that on held-out photos: what is learned by heart rather than of the subject.",
    ),
}

# Which figure answers a question: the first of these that was measured.
IDENTITY_FIGURES = ("dino_unseen", "dinov2_unseen", "clip_i_unseen", "dino_seen", "dinov2_seen", "clip_i_seen")
PROMPT_FIGURES = ("clip_t", "clip_t_token")
CLASS_FIGURES = ("drift_class", "dpres", "pres", "kid", "drift_unrelated")
VARIETY_FIGURES = ("diversity", "diversity_lpips")
# The untouched base has 0 by definition.
AGAINST_BASE = ("drift_class", "drift_unrelated", "dpres", "kid")
COPYING_FIGURES = ("copying", "copying_p95", "overfit_gap")


def entry(name: str) -> Entry:
    """The figure's entry; of one that is not listed, a plain one."""
    return ENTRIES.get(name, Entry(OTHER, name, ""))


def ordered(names: set[str]) -> list[str]:
    """Figures in the order of the glossary, others after them by name."""
    return [name for name in ENTRIES if name in names] + sorted(names - set(ENTRIES))
