"""The toy world: pictures repeat exactly, and captions say what they must and nothing false."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twostage.pocket.world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    CONTEXTS,
    EMBLEMS,
    LIVE,
    PATTERNS,
    PROPERTIES,
    STYLES,
    Scene,
    Subject,
    caption,
    draw,
    prompt,
    sample_scene,
    sample_subject,
)


def subject(class_name: str = "dog", seed: int = 0) -> Subject:
    return sample_subject(np.random.default_rng(seed), class_name)


def pixels(of: Subject, scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(draw(of, scene, size), dtype=np.int16)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def test_vocabulary_sizes() -> None:
    assert len(CLASSES) == 12 and len(COLOURS) == 10 and len(CONTEXTS) == 12
    assert LIVE.issubset(CLASSES)


def test_drawing_repeats_exactly() -> None:
    for seed in range(8):
        made = []
        for _ in range(2):
            rng = np.random.default_rng(seed)
            one = sample_subject(rng)
            scene = sample_scene(rng, one.class_name in LIVE)
            made.append((one, scene, draw(one, scene), caption(one, scene, rng)))
        assert made[0][:2] == made[1][:2] and made[0][3] == made[1][3]
        assert made[0][2].tobytes() == made[1][2].tobytes()


def test_size_and_mode() -> None:
    for style in STYLES:
        for size in (64, 128):
            image = draw(subject(), Scene(style=style), size)
            assert image.mode == "RGB" and image.size == (size, size)


@pytest.mark.parametrize("class_name", CLASSES)
def test_two_subjects_of_a_class_differ(class_name: str) -> None:
    plain = Scene(seed=3)
    assert differ(pixels(subject(class_name, 0), plain), pixels(subject(class_name, 1), plain)) > 2


@pytest.mark.parametrize("class_name", CLASSES)
def test_each_proportion_shows(class_name: str) -> None:
    one = replace(subject(class_name), main=COLOURS["red"], shape=(0.0, 0.0, 0.0))
    still = pixels(one, Scene())
    for i in range(3):
        shape = [0.0, 0.0, 0.0]
        shape[i] = 1.0
        moved = replace(one, shape=(shape[0], shape[1], shape[2]))
        assert differ(still, pixels(moved, Scene())) > 0.2


def test_contexts_differ_between_and_within() -> None:
    pictures = [pixels(subject(), Scene(context=c, seed=1)) for c in (None, *CONTEXTS)]
    for i, a in enumerate(pictures):
        assert all(differ(a, b) > 10 for b in pictures[:i])
    for i, c in enumerate(CONTEXTS):
        assert differ(pictures[i + 1], pixels(subject(), Scene(context=c, seed=2))) > 2


@pytest.mark.parametrize("class_name", CLASSES)
def test_properties_styles_and_colours_show(class_name: str) -> None:
    one = subject(class_name)
    still = pixels(one, Scene())
    for scene in (
        *(Scene(property=p) for p in PROPERTIES),
        *(Scene(style=s) for s in STYLES if s != "photo"),
        *(Scene(colour=c) for c in COLOURS if c != one.colour),
    ):
        assert differ(still, pixels(one, scene)) > 0.8


@pytest.mark.parametrize("class_name", sorted(LIVE))
def test_accessories_show(class_name: str) -> None:
    one = subject(class_name)
    pictures = [pixels(one, Scene(accessory=a)) for a in (None, *ACCESSORIES)]
    for i, a in enumerate(pictures):
        assert all(differ(a, b) > 0.5 for b in pictures[:i])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_main_colour_dominates(pattern: str) -> None:
    """More pixels follow the main colour than the trim (flowers, soles and dials included)."""
    main = trim = 0
    for class_name in CLASSES:
        one = replace(subject(class_name), main=(255, 0, 0), second=(0, 0, 255), accent=(0, 0, 255))
        one = replace(one, pattern=pattern)
        still = pixels(one, Scene())
        turned = pixels(replace(one, main=(0, 255, 0)), Scene())
        trimmed = pixels(replace(one, second=(0, 255, 0), accent=(0, 255, 0)), Scene())
        main += int((np.abs(still - turned).sum(axis=2) > 160).sum())
        trim += int((np.abs(still - trimmed).sum(axis=2) > 160).sum())
    assert main > 0.6 * (main + trim)


@pytest.mark.parametrize("colour", COLOURS)
def test_main_colour_keeps_its_name(colour: str) -> None:
    names, values = list(COLOURS), np.asarray(list(COLOURS.values()))
    rng = np.random.default_rng(5)
    for _ in range(40):
        one = sample_subject(rng)
        nearest = names[int(np.linalg.norm(values - one.main, axis=1).argmin())]
        assert nearest == one.colour
        assert draw(one, Scene(colour=colour)) is not None


def test_every_pattern_and_emblem_draws() -> None:
    one = subject("backpack")
    seen = {draw(replace(one, pattern=p, emblem=e), Scene()).tobytes() for p in PATTERNS for e in EMBLEMS}
    assert len(seen) == len(PATTERNS) * len(EMBLEMS)


def test_trim_is_far_from_the_main_colour() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        one = sample_subject(rng)
        for trim in (one.second, one.accent):
            assert np.linalg.norm(np.subtract(trim, one.main)) > 120


def test_captions_say_what_they_must() -> None:
    rng = np.random.default_rng(0)
    named = with_context = shown = placed = 0
    for _ in range(3000):
        one = sample_subject(rng)
        scene = sample_scene(rng, one.class_name in LIVE)
        text = caption(one, scene, rng)
        assert one.class_name in text
        for must in (scene.property, scene.accessory):
            assert must is None or must in text
        if scene.property is None:
            assert not any(p in text for p in PROPERTIES)
        if scene.style != "photo":
            assert text.startswith((f"a {scene.style} of a ", f"a {scene.style} of an "))
        worded = text.replace(scene.context or "", "").replace(scene.accessory or "", "")
        says = [c for c in COLOURS if c in worded.split()]
        if scene.style == "sketch":
            assert says == []
        else:
            assert says in ([], [one.colour])
            named, shown = named + bool(says), shown + 1
        if scene.context is not None:
            with_context, placed = with_context + (scene.context in text), placed + 1
    assert 0.6 < named / shown < 0.7
    assert 0.88 < with_context / placed < 0.96


def test_caption_names_the_override() -> None:
    scene = Scene(colour="green")
    one = replace(subject(), colour="red")
    texts = {caption(one, scene, np.random.default_rng(i)) for i in range(60)}
    assert any("green" in t for t in texts) and not any("red" in t.split() for t in texts)


def test_prompt() -> None:
    assert prompt("owl") == "a photo of an owl"
    assert prompt("dog", colour="orange") == "a photo of an orange dog"
    assert prompt("owl", token="sks", style="sketch") == "a sketch of a sks owl"
    assert (
        prompt("backpack", colour="red", property="shiny", token="sks", context=CONTEXTS[0])
        == "a photo of a shiny red sks backpack in the jungle"
    )
    assert prompt("cat", accessory=ACCESSORIES[0], style="painting") == "a painting of a cat wearing a red hat"


def test_sample_scene_keeps_what_is_given() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        plain = sample_scene(rng, True, plain=True)
        assert (plain.property, plain.accessory, plain.style, plain.colour) == (
            None,
            None,
            "photo",
            None,
        )
        assert sample_scene(rng, True, context=None).context is None
        given = sample_scene(rng, False, context=CONTEXTS[2], style="sketch")
        assert (given.context, given.style, given.accessory) == (CONTEXTS[2], "sketch", None)
