"""The main job in a minute or two: a subject is drawn, learned from four photos, and shown where it never was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from twostage import run
from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.evaluation.sheet import Row, contact_sheet
from twostage.families import load_base
from twostage.method.sampling import assemble, draw
from twostage.pocket import world
from twostage.recipe import Sample
from twostage.recipe_file import load_recipe

SEEN = ("in the snow", "on top of a wooden floor", "with a city in the background", None)
UNSEEN = (
    "in the jungle",
    "on the beach",
    "on top of pink fabric",
    "with a mountain in the background",
    "on a cobblestone street",
    "on top of green grass with sunflowers around it",
)
DRAWING = Sample(num_inference_steps=25, guidance_scale=5.0)


def take_photos(folder: Path, subject: world.Subject, contexts: tuple[str | None, ...], seed: int) -> list[Image.Image]:
    """Draw the subject once in each context, another pose and light each time, and save them as 1.png, 2.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    for number, context in enumerate(contexts, start=1):
        rng = np.random.default_rng([seed, number])
        scene = world.sample_scene(rng, subject.class_name in world.LIVE, context=context, plain=True)
        photos.append(world.draw(subject, scene))
        photos[-1].save(folder / f"{number}.png")
    return photos


def demo(output: Path, *, seed: int = 0, class_name: str = "backpack", display: Display | None = None) -> Path:
    """Draw a subject, train the default recipe on four photos of it, and lay the results side by side.

    Args:
        output: folder to make; holds the photos, the run and the picture.
        seed: which subject, and which noise.
        class_name: one of the pocket world's classes.

    Returns:
        The picture file: the photos, the untouched model, the subject as learned, and the subject as it really is.

    Raises:
        UserError: an unknown class, or an output folder that holds something.
    """
    if class_name not in world.CLASSES:
        raise UserError(f"the pocket world has no {class_name!r}; it has {', '.join(world.CLASSES)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} already holds something; name another folder with --output")
    display = display or terminal_display()
    base = load_base("pocket")
    subject = world.sample_subject(np.random.default_rng([seed, 2024]), class_name)
    photos = take_photos(output / "photos", subject, SEEN, seed)
    recipe = load_recipe(
        "two-stage",
        base="pocket",
        overrides={"data.photos": str(output / "photos"), "data.class_noun": class_name, "seed": seed},
    )
    folder = run.train(recipe, output / "run", display=display)
    token = recipe.token.placeholder
    with_token = [world.prompt(class_name, context=context, token=token) for context in UNSEEN]
    learned = run.generate(
        folder,
        with_token,
        count=1,
        seed=seed,
        num_inference_steps=DRAWING.num_inference_steps,
        guidance_scale=DRAWING.guidance_scale,
    )
    without = [world.prompt(class_name, context=context) for context in UNSEEN]
    untouched = draw(assemble(base), without, [seed] * len(without), DRAWING, base.resolution)
    real = take_photos(output / "real", subject, UNSEEN, seed + 1)
    picture = output / "demo.png"
    contact_sheet(
        [
            Row(f"The photos: one {class_name}, four times", photos, [context or "plain" for context in SEEN]),
            Row(f'The untouched model, "a photo of a {class_name} ..."', untouched, list(UNSEEN)),
            Row(f'After two stages, "a photo of a {token} {class_name} ..."', learned, list(UNSEEN)),
            Row("The real subject there, which nobody has seen", real, list(UNSEEN)),
        ]
    ).save(picture)
    return picture
