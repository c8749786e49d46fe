"""Keep run folders as this version writes them: one that was interrupted, and the same one finished.

    python -m tests.kept

They go into tests/kept/format-N, N being `run_facts.FORMAT`, with the photos they are of. Paths in them are BASE and
PHOTOS, for the test to put in. A folder that is there is never written again: it is what that version wrote.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from benchmarks.random_sd15 import SIZES, write_pipeline
from tests.watching import Watcher, ctrl_c
from twostage.recipe import Adapter, Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import train
from twostage.run_facts import FORMAT

KEPT = Path(__file__).parent


def main() -> None:
    """Train, stop, copy; go on, copy."""
    torch.set_num_threads(1)
    target = KEPT / f"format-{FORMAT}"
    target.mkdir()
    photos = target / "photos"
    photos.mkdir()
    for index, colour in enumerate(("crimson", "teal", "gold")):
        photo = Image.new("RGB", (40, 32), "ivory")
        ImageDraw.Draw(photo).rectangle((4 + index, 6, 22 + index, 26 - index), fill=colour)
        photo.save(photos / f"{index}.png")
    (photos / "0.txt").write_text("a photo of a {} on a table\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        base, run = Path(scratch) / "base", Path(scratch) / "run"
        write_pipeline(base, SIZES["tiny"])
        recipe = Recipe(
            name="kept",
            base=str(base),
            data=Data(photos=photos, class_noun="backpack"),
            token=Token(initializer="red", num_vectors=2),
            stage1=Stage1(steps=4, learning_rate=5e-3, batch_size=2),
            stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2, train="adapter", ema_decay=0.9),
            adapter=Adapter(rank=1),
            sample=Sample(prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=2),
            checkpoints=Checkpoints(every=2, keep=1),
        )
        try:
            train(recipe, run, display=Watcher(("stage 2", 3), ctrl_c))
        except KeyboardInterrupt:
            _keep(run, target / "interrupted", base, photos)
        train(recipe, run, resume=True, display=Watcher())
        _keep(run, target / "finished", base, photos)


def _keep(run: Path, target: Path, base: Path, photos: Path) -> None:
    shutil.copytree(run, target, ignore=shutil.ignore_patterns(".lock", "README.md"))
    for file in (path for path in target.rglob("*") if path.suffix in (".json", ".toml", ".md")):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(base), "BASE").replace(str(photos), "PHOTOS"), encoding="utf-8")


if __name__ == "__main__":
    main()
