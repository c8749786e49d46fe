"""Comparisons as `twostage compare` leaves them, with drawn pictures and made-up figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twostage.pocket import world

PLACES = world.CONTEXTS[:8]
# Made up, but in the order that the literature leads one to expect: identity, prompt, drift, diversity, copying;
# seconds, bytes of memory and of the result.
STRATEGIES: dict[str, tuple[float, float, float, float, float, float, float, float]] = {
    "two-stage": (0.71, 0.296, 0.34, 0.31, 0.78, 49, 6.9e8, 43.8e6),
    "dreambooth": (0.69, 0.297, 0.18, 0.33, 0.77, 71, 7.4e8, 43.8e6),
    "textual-inversion": (0.52, 0.281, 0.0, 0.42, 0.61, 23, 4.1e8, 3.1e3),
    "two-stage-lora": (0.68, 0.301, 0.22, 0.35, 0.74, 41, 5.2e8, 1.3e6),
    "dreambooth-lora": (0.61, 0.304, 0.15, 0.38, 0.69, 38, 5.2e8, 1.3e6),
}
SUBJECTS = ("backpack", "dog", "teapot")
TITLES: dict[str, tuple[str, str, list[float | None]]] = {
    "dino_unseen": ("DINO, held-out photos", "higher", [-1, 1]),
    "dino_seen": ("DINO, photos trained on", "higher", [-1, 1]),
    "clip_i_unseen": ("CLIP-I, held-out photos", "higher", [-1, 1]),
    "clip_t": ("CLIP-T, without the token", "higher", [-1, 1]),
    "clip_t_token": ("CLIP-T, with the token", "higher", [-1, 1]),
    "diversity": ("Diversity", "higher", [0, 2]),
    "drift_class": ("Drift of the class", "lower", [0, 2]),
    "drift_unrelated": ("Drift of other things", "lower", [0, 2]),
    "dpres": ("PRES less the base's", "lower", [-2, 2]),
    "kid": ("KID of the class", "lower", [None, None]),
    "copying": ("Copying", "lower", [-1, 1]),
    "overfit_gap": ("Overfit gap", "neither", [-2, 2]),
}


def figure(name: str, values: Sequence[float], prompts: Sequence[str] = ()) -> dict[str, Any]:
    """As `dump_figure` writes it."""
    title, better, bounds = TITLES.get(name, (name, "higher", [None, None]))
    found = {"title": title, "value": float(np.mean(values)), "interval": None, "range": bounds, "better": better}
    if len(values) > 1:
        spread = 1.96 * float(np.std(values)) / len(values) ** 0.5
        found["interval"] = [found["value"] - spread, found["value"] + spread]
    return {**found, "values": [float(value) for value in values], "prompts": list(prompts) if len(values) > 1 else []}


def write_run(
    folder: Path, strategy: str, subject: str, seed: int, *, pictures: bool = True, curves: bool = True
) -> dict[str, Any]:
    """One evaluated run."""
    identity, prompt, drift, diversity, copying, seconds, memory, size = STRATEGIES[strategy]
    # What makes a prompt of a subject hard is the same for every strategy: that is why they are compared in pairs.
    shared = np.random.default_rng([SUBJECTS.index(subject)])
    own = np.random.default_rng([SUBJECTS.index(subject), seed, list(STRATEGIES).index(strategy)])
    prompts = [f"a photo of a {{}} {place}" for place in PLACES]

    def drawn(mean: float, hard: float = 0.06, noise: float = 0.02) -> list[float]:
        return [
            float(mean + hard * a + noise * b) for a, b in zip(shared.normal(size=8), own.normal(size=8), strict=True)
        ]

    def figures(identity: float, prompt: float, diversity: float, copying: float) -> dict[str, Any]:
        seen = drawn(identity + 0.05)
        made = {
            "dino_unseen": drawn(identity),
            "dino_seen": seen,
            "clip_i_unseen": drawn(0.6 + identity / 3, 0.03),
            "clip_t": drawn(prompt, 0.02, 0.008),
            "clip_t_token": drawn(prompt - 0.01, 0.02, 0.008),
            "diversity": drawn(diversity, 0.04),
            "copying": drawn(copying, 0.04),
        }
        return {name: figure(name, values, prompts) for name, values in made.items()}

    measured = figures(identity, prompt, diversity, copying)
    for name, value in (("drift_class", drift), ("drift_unrelated", drift / 3)):
        measured[name] = figure(name, [max(0.0, v) for v in drawn(value, 0.01, 0.02)] if drift else [0.0] * 8, prompts)
    for name, value in (("dpres", drift / 2), ("kid", drift / 9), ("overfit_gap", 0.05)):
        measured[name] = figure(name, [value + 0.005 * float(own.normal())])
    data = {
        "format": 1,
        "versions": {"twostage": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        "result": {
            "name": strategy, "folder": str(folder), "recipe": strategy, "base": "pocket", "base_sha256": "ab" * 32,
            "token": "<rare>", "class_noun": subject, "subject": subject, "photos": [], "held_out": [], "seed": seed,
            "steps": {"stage1": 300, "stage2": 200}, "seconds": {"stage1": 22.9, "stage2": 26.0},
            "train_seconds": seconds + float(own.normal()), "peak_memory_bytes": memory, "result_bytes": size,
            "device": "cpu, 2 threads, x86_64",
        },
        "choices": {
            "suite": "pocket", "suite_sha256": "cd" * 32, "prompts": prompts, "images_per_prompt": 1, "seed": 0,
            "num_inference_steps": 25, "guidance_scale": 5.0, "scheduler": "DDPMScheduler", "resolution": 64,
            "class_prompt": f"a photo of a {subject}", "num_class_images": 16,
            "encoders": {"dino": {"source": "pocket", "sha256": "ef" * 32, "model": "ViTModel"},
                         "clip": {"source": "pocket", "sha256": "01" * 32, "model": "CLIPModel"}},
            "interval": "95 % bootstrap over prompts, 1000 resamples",
        },
        "figures": measured,
        "base": {name: value for name, value in figures(0.31, 0.309, 0.58, 0.42).items() if name != "overfit_gap"},
        "real": {name: figure(name, [0.83]) for name in ("dino_unseen", "dino_seen")},
        "left_out": {"dinov2_seen": "no dinov2 encoder", "diversity_lpips": "no lpips weights"},
        "pictures": {},
    }  # fmt: skip
    if curves:
        data["curve"] = _curves(identity, prompt, drift)
    folder.mkdir(parents=True, exist_ok=True)
    if pictures:
        _draw(folder, data, subject, identity, own)
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    return data


def _curves(identity: float, prompt: float, drift: float) -> dict[str, Any]:
    def at(share: float) -> dict[str, Any]:
        made = {
            "dino_unseen": 0.31 + (identity - 0.31) * share**0.6,
            "clip_t": 0.309 - (0.309 - prompt) * share**2,
            "drift_class": drift * share,
        }
        return {name: figure(name, [value]) for name, value in made.items()}

    strengths = [{"at": share, "figures": at(share)} for share in (0, 0.25, 0.5, 0.75, 1)]
    steps = [{"at": step, "stage": 2, "figures": at(0.4 + 0.6 * step / 200)} for step in (0, 50, 100, 150, 200)]
    return {"strength": strengths, "step": steps}


def _draw(folder: Path, data: dict[str, Any], subject: str, identity: float, rng: np.random.Generator) -> None:
    """The subject as well as `identity` says: now and then another of its class."""
    photos = folder.parents[1] / "photos" / subject
    photos.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        path = photos / f"{number}.png"
        if not path.exists():
            scene = world.sample_scene(np.random.default_rng([8, number]), subject in world.LIVE, plain=True)
            world.draw(_itself(subject), scene).save(path)
        data["result"]["held_out" if number == 3 else "photos"].append(str(path))
        data["result"].setdefault("photo_sha256", []).append(hashlib.sha256(path.read_bytes()).hexdigest())
    for kind, likeness in (("subject", identity), ("base_subject", 0.0)):
        (folder / "evaluation" / kind).mkdir(parents=True, exist_ok=True)
        names = []
        for number in range(len(PLACES)):
            shown = bool(likeness) and rng.random() < (likeness - 0.3) * 2.2
            names.append(f"evaluation/{kind}/{number:04}.png")
            _picture(subject, number, shown).save(folder / names[-1])
        data["pictures"][kind] = names


@cache
def _picture(subject: str, number: int, itself: bool) -> Image.Image:
    rng = np.random.default_rng([9, number, SUBJECTS.index(subject)])
    other = world.sample_subject(rng, subject)
    scene = world.sample_scene(rng, subject in world.LIVE, context=PLACES[number], plain=True)
    return world.draw(_itself(subject) if itself else other, scene)


def _itself(subject: str) -> world.Subject:
    return world.sample_subject(np.random.default_rng([7, SUBJECTS.index(subject)]), subject)


def write_comparison(
    folder: Path,
    strategies: Sequence[str] = tuple(STRATEGIES),
    subjects: Sequence[str] = SUBJECTS,
    seeds: Sequence[int] = (0, 1),
    **kinds: bool,
) -> Path:
    """Runs of every strategy on every subject with every seed, below `runs`."""
    for subject in subjects:
        for seed in seeds:
            for strategy in strategies:
                write_run(folder / "runs" / f"{strategy}-{subject}-{seed}", strategy, subject, seed, **kinds)
    (folder / "compare.json").write_text("{}", encoding="utf-8")
    return folder


def large_picture(path: Path, side: int = 1500) -> None:
    """A picture larger than a report takes, with a place and a camera in its metadata."""
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0110] = "Secret camera"
    Image.fromarray(noise).save(path, "JPEG", exif=exif)
