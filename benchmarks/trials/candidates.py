"""What is tried, in the order it was tried in."""

from __future__ import annotations

from benchmarks.trials.carrying_out import Candidate
from benchmarks.trials.drawing import at_strength, class_first, guided, mixed, personalization
from benchmarks.trials.options import (
    class_consistency,
    class_word,
    context_embeddings,
    described,
    direct_consistency,
    fewer_high_levels,
    fixed_norm,
    learning,
    masked,
    seen_colour,
)

# What is tested: the recipes as they are shipped, which have the settings that were chosen.
OURS = Candidate("two-stage")
PRIOR = Candidate("dreambooth", "dreambooth")
NO_PRIOR = Candidate("dreambooth-no-prior", "dreambooth", {"prior.preserve": False, "stage2.learning_rate": 2e-5})
# Each is also drawn as the other recipes are: by its prompts alone, towards the class, and away from the base.
_GUIDED = {"class": {"class_guidance": 0.5}, "class-base": {"class_guidance": 0.5, "away_from": "base"}}
TESTED = [OURS, PRIOR, NO_PRIOR]
REDRAWN = [
    Candidate(f"{one.name}-by-{name}", after=one.name, drawing=guided(**how), subject_only=True)
    for one in TESTED
    for name, how in ({"prompt": {}} | _GUIDED).items()
    if name != ("class-base" if one is OURS else "prompt")
]

# Those that others are measured by: DreamBooth within 60 s.
_PRIOR = {"prior.num_class_images": 32}
DREAMBOOTH = [
    *(
        Candidate(f"prior-{rate:g}", "dreambooth", {**_PRIOR, "stage2.learning_rate": rate}, at=(100, 200))
        for rate in (5e-5, 1e-4, 2e-4)
    ),
    *(
        Candidate(f"noprior-{rate:g}", "dreambooth", {"prior.preserve": False, "stage2.learning_rate": rate}, at=at)
        for rate, at in ((2e-5, (100, 200, 300)), (5e-5, (50, 100, 200)))
    ),
]

# Stage 1 alone.
_ALONE = "textual-inversion"
_ADJECTIVE = {"token.role": "adjective", "stage1.norm_control": "pull", "stage1.learning_rate": 5e-3}


def _stage1(name: str, at: tuple[int, ...] = (100,), **rest: object) -> Candidate:
    options = {**_ADJECTIVE, **rest.pop("options", {})}  # type: ignore[dict-item]
    return Candidate(f"s1-{name}", _ALONE, options, at, **rest)  # type: ignore[arg-type]


STAGE1 = [
    _stage1("mean", (50, 100, 200)),
    _stage1("mean-100"),
    _stage1("mean-50", (50,)),
    _stage1("mean-25", (25,)),
    _stage1("mean-35", (35,)),
    _stage1("gentle-50", (50,), options={"stage1.learning_rate": 1e-3}),
    _stage1("class-word", (50, 100), prepare=class_word),
    _stage1("seen-colour", (50, 100), prepare=seen_colour),
]


def _stage2(name: str, at: tuple[int, ...], parent: str, rate: float = 3e-5, **rest: object) -> Candidate:
    # Whatever the recipe has come to have.
    plain = {"stage2.batch_size": 4, "prior.preserve": False, "sample.class_guidance": 0.0, "sample.away_from": "own"}
    options = {"stage2.learning_rate": rate, **plain, **rest.pop("options", {})}  # type: ignore[dict-item]
    return Candidate(f"s2-{name}", "two-stage", options, at, parent, **rest)  # type: ignore[arg-type]


def _photos(count: int = 64, weight: float = 1.0) -> dict[str, object]:
    """The prior that stayed: the base's predictions for the noised photos, asked for the class alone."""
    options = {"preserve": True, "source": "photos", "num_class_images": count, "weight": weight}
    return {f"prior.{name}": value for name, value in options.items()}


# Stage 2, behind the first of those: how fast and how long.
_FIRST = "s1-mean"
STAGE2 = [
    *(_stage2(f"rate-{rate:g}", (50, 100, 150), _FIRST, rate) for rate in (3e-5, 5e-5, 1e-4)),
    _stage2("rate-2e-05", (25, 50, 100), _FIRST, 2e-5),
    _stage2("rate-1e-05", (50, 100), _FIRST, 1e-5),
    _stage2("class-consistency", (25, 50), _FIRST, within=class_consistency()),
    _stage2("direct-consistency", (25, 50), _FIRST, within=direct_consistency()),
    _stage2("cross-attention", (25, 50), _FIRST, 3e-4, within=learning(r"\.attn2\.")),
    _stage2("inner-blocks", (25, 50), _FIRST, within=learning(r"^(mid_block|down_blocks\.[12]|up_blocks\.[01])")),
    _stage2(
        "predictions",
        (25, 50),
        _FIRST,
        options={
            "prior.preserve": True,
            "prior.source": "predictions",
            "prior.num_class_images": 16,
        },
    ),
    _stage2("high-levels", (25, 50), _FIRST, within=fewer_high_levels()),
    _stage2("class-consistency-3", (25, 50), _FIRST, within=class_consistency(3.0)),
    _stage2("class-consistency-10", (25, 50), _FIRST, within=class_consistency(10.0)),
    _stage2("class-consistency-5e-05", (25, 50), _FIRST, 5e-5, within=class_consistency(3.0)),
    _stage2("direct-consistency-100", (25, 50), _FIRST, within=direct_consistency(100.0)),
    *(
        _stage2(f"photos-{count}-{weight:g}", (25, 50), _FIRST, options=_photos(count, weight))
        for count, weight in ((64, 1.0), (64, 3.0), (16, 1.0))
    ),
]

# Both stages within 30 s, with the prior that stayed.
_SHORT = "s1-mean-100"
_TWO_BY_TWO = {**_photos(64, 3.0), "stage2.batch_size": 2}
_COSINE = {"stage2.lr_scheduler": "cosine"}
BOTH = [
    _stage2("both-5e-05", (50, 75), _SHORT, 5e-5, options=_photos(64, 3.0)),
    _stage2("both-1e-04", (50,), _SHORT, 1e-4, options=_photos(64, 5.0)),
    _stage2("both-class-word", (50,), "s1-class-word", 5e-5, options=_photos(64, 3.0)),
    _stage2("both-seen-colour", (50,), "s1-seen-colour", 5e-5, options=_photos(64, 3.0)),
    _stage2("both-batch-2", (100,), _SHORT, 5e-5, options=_TWO_BY_TWO),
    *(
        _stage2(f"both-batch-2-{parent}", (60, 100), f"s1-{parent}", 5e-5, options=_TWO_BY_TWO)
        for parent in ("mean-25", "mean-50", "gentle-50")
    ),
    _stage2("both-batch-2-weight-1", (60, 100), "s1-mean-50", 3e-5, options={**_TWO_BY_TWO, "prior.weight": 1.0}),
    _stage2("both-25-rate-1e-04", (60, 100, 130), "s1-mean-25", 1e-4, options={**_TWO_BY_TWO, "prior.weight": 5.0}),
    *(
        _stage2(f"cosine-{name}", at, parent, rate, options={**_TWO_BY_TWO, "prior.weight": weight, **_COSINE})
        for name, at, parent, rate, weight in (
            ("35", (130,), "s1-mean-35", 1e-4, 5.0),
            ("50", (110,), "s1-mean-50", 1e-4, 5.0),
            ("25-fast", (130,), "s1-mean-25", 2e-4, 5.0),
        )
    ),
    _stage2("both-50-high-levels", (100,), "s1-mean-50", 5e-5, options=_TWO_BY_TWO, within=fewer_high_levels()),
    _stage2("both-35", (100, 130), "s1-mean-35", 5e-5, options=_TWO_BY_TWO),
    Candidate(
        "dreambooth-photos",
        "dreambooth",
        {**_TWO_BY_TWO, "stage2.learning_rate": 5e-5},
        at=(100, 150),
    ),
    _stage2("both-one-caption", (50,), _SHORT, 5e-5, options={**_photos(64, 3.0), "data.caption": "a photo of a {}"}),
]

# What was left, each beside the setting that is shipped: another stage 1 before the same stage 2 ...
_SHIPPED = _TWO_BY_TWO
_CHANGED_STAGE1 = [
    _stage1("50-vectors-2", (50,), options={"token.num_vectors": 2}),
    _stage1("50-vectors-4", (50,), options={"token.num_vectors": 4}),
    _stage1("50-norm-none", (50,), options={"stage1.norm_control": "none"}),
    _stage1("50-norm-fixed", (50,), within=fixed_norm()),
    _stage1("50-noun", (50,), options={"token.role": "noun"}),
    _stage1("50-context-embeddings", (50,), within=context_embeddings()),
    _stage1("50-context-embeddings-strong", (50,), within=context_embeddings(1e-2)),
    _stage1("50-rate-2e-2", (50,), options={"stage1.learning_rate": 2e-2}),
    _stage1("50-described", (50,), prepare=described),
    _stage1("50-masked", (50,), prepare=masked),
    _stage1("50-snr-5", (50,), options={"stage1.snr_gamma": 5.0}),
    _stage1("50-dropout", (50,), options={"data.caption_dropout": 0.1}),
]
_SHAPE = ("token.num_vectors", "token.role")
BEFORE = [
    *_CHANGED_STAGE1,
    *(
        _stage2(
            f"after-{one.name.removeprefix('s1-50-')}",
            (100,),
            one.name,
            5e-5,
            options={**_SHIPPED, **{name: one.options[name] for name in _SHAPE if name in one.options}},
            prepare=one.prepare,
        )
        for one in _CHANGED_STAGE1
    ),
]
# ... and another stage 2 after the same stage 1.
_FIFTY = "s1-mean-50"
BEHIND = [
    _stage2("100-weight-1", (100, 150), _FIFTY, 5e-5, options={**_SHIPPED, "prior.weight": 1.0}),
    _stage2("100-longer", (150, 200), _FIFTY, 5e-5, options=_SHIPPED),
    _stage2("100-keys-values", (100,), _FIFTY, 1e-3, options=_SHIPPED, within=learning(r"\.attn2\.to_[kv]\.")),
    _stage2("100-attention", (100,), _FIFTY, 1e-4, options=_SHIPPED, within=learning(r"\.attn[12]\.")),
    _stage2("100-masked", (100,), _FIFTY, 5e-5, options=_SHIPPED, prepare=masked),
    _stage2("100-dropout", (100,), _FIFTY, 5e-5, options={**_SHIPPED, "data.caption_dropout": 0.1}),
    _stage2("100-ema", (100,), _FIFTY, 5e-5, options={**_SHIPPED, "stage2.ema_decay": 0.97}),
    _stage2("100-snr-5", (100,), _FIFTY, 5e-5, options={**_SHIPPED, "stage2.snr_gamma": 5.0}),
    _stage2("100-batch-1", (100, 200), _FIFTY, 5e-5, options={**_SHIPPED, "stage2.batch_size": 1}),
]

# Other ways to draw one of those.
DRAWN = "s2-both-batch-2"
DRAWING = [
    Candidate(f"draw-{name}", after=DRAWN, drawing=way)
    for name, way in (
        ("personalization-0", personalization(0.0)),
        ("personalization-0.5", personalization(0.5)),
        ("class-first-0.1", class_first(0.1)),
        ("class-first-0.25", class_first(0.25)),
        ("mixed-2.5-2.5", mixed(2.5, 2.5)),
        ("mixed-4-1", mixed(4.0, 1.0)),
        ("strength-0.8", at_strength(0.8)),
        ("strength-1.2", at_strength(1.2)),
    )
]

# ... and of what is shipped, and of those that it is measured by.
_WAYS = (
    ("mixed-2.5-2.5", mixed()),
    ("mixed-3.5-1.5", mixed(3.5, 1.5)),
    ("mixed-3.5-3.5", mixed(3.5, 3.5)),
    ("mixed-base", mixed(asked_base=True)),
    ("personalization", personalization()),
    ("both-2.5-2.5", personalization(0.0, 2.5, 2.5)),
    ("both-3-2", personalization(0.0, 3.0, 2.0)),
    ("both-0.5-2.5-2.5", personalization(0.5, 2.5, 2.5)),
)
DRAWN_SHIPPED = [
    *(Candidate(f"shipped-{name}", after="two-stage", drawing=way) for name, way in _WAYS),
    *(
        Candidate(f"{other}-{name}", after=other, drawing=way)
        for other in ("dreambooth", "dreambooth-no-prior")
        for name, way in _WAYS
        if name in ("mixed-2.5-2.5", "personalization", "both-2.5-2.5")
    ),
]

# LoRAs: as shipped, after the short stage 1, and held to the base at the photos; the last two drawn as `two-stage` is.
_LORA = {"stage2.learning_rate": 4e-4, "sample.class_guidance": 0.0, "sample.away_from": "own"}
LORA = [
    Candidate("lora-shipped", "two-stage-lora", {"sample.class_guidance": 0.0, "sample.away_from": "own"}),
    Candidate("lora-50", "two-stage-lora", {**_LORA, "prior.preserve": False}, (100, 200), _FIFTY),
    Candidate("lora-50-photos", "two-stage-lora", {**_LORA, **_SHIPPED}, (100, 200), _FIFTY),
    *(
        Candidate(f"{name}-class-base", after=name, drawing=guided(**_GUIDED["class-base"]), subject_only=True)
        for name in ("lora-50", "lora-50-photos")
    ),
]
# A single photo.
FEW = [Candidate(f"few-{one.name}", one.recipe, {**one.options, "data.num_photos": 1}) for one in TESTED]

CANDIDATES = [*DREAMBOOTH, *STAGE1, *STAGE2, *BOTH, *BEFORE, *BEHIND, *DRAWING, *DRAWN_SHIPPED, *LORA, *FEW]
