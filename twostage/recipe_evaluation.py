"""The options of an evaluation: what is drawn, with what, and which encoders measure it.

They are no part of a recipe: one run can be evaluated in many ways, and many runs in the same one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from twostage.errors import UserError
from twostage.recipe_sections import Section, option


class Evaluation(Section):
    """How a result is evaluated."""

    suite: str = option(
        "",
        "Prompts, {} standing for token and class: a bundled suite's name, a text file with one a line, or the "
        "DreamBooth data set's prompts_and_classes.txt; when not given 'pocket' on the pocket model, elsewhere "
        "'recontextualization'.",
    )
    num_prompts: int | None = option(None, "Only the suite's first so many prompts.", unit="prompts", ge=1)
    images_per_prompt: int = option(2, "Pictures a prompt; the DreamBooth paper has 4.", unit="images", ge=1, le=1000)
    num_class_images: int = option(
        16, "Pictures of the bare class, by which drift, PRES and KID are measured.", unit="images", ge=2, le=10_000
    )
    class_prompt: str = option("a photo of a {}", "What those are prompted with, {} standing for the class.")
    num_unrelated_images: int = option(
        8, "Pictures of other things, one a prompt, by which drift is measured; 0 draws none.", unit="images", ge=0
    )
    seed: int = option(
        0, "Of the first picture's noise; every run and the untouched base get the same.", ge=0, lt=2**31
    )
    num_inference_steps: int | None = option(
        None, "Denoising steps a picture; the recipe's for samples when not given.", unit="steps", ge=1, le=1000
    )
    guidance_scale: float | None = option(
        None, "Weight of classifier-free guidance; the recipe's for samples when not given.", ge=0, le=100
    )
    class_guidance: float | None = option(
        None,
        "Share of the guidance that goes towards the class alone, without the token; the recipe's for samples when not "
        "given.",
        ge=0,
        le=1,
    )
    away_from: Literal["own", "base"] | None = option(
        None,
        "What the guidance steers away from: what the trained U-Net draws of nothing, or what the untouched one does; "
        "as the recipe says when not given.",
    )
    encoders: tuple[str, ...] = option(
        (),
        "ROLE=SOURCE, where ROLE is dino, dinov2 or clip and SOURCE a folder, a hub id, 'pocket' or 'none'; may be "
        "given several times. On the pocket model its own; elsewhere facebook/dino-vits16, facebook/dinov2-small and "
        "openai/clip-vit-base-patch32.",
        flags=("encoder",),
    )
    strengths: tuple[Annotated[float, Field(ge=0, le=2)], ...] = option(
        (),
        "Evaluate the weights between base (0) and result (1) too, at these shares; may be given several times.",
        flags=("strength",),
    )

    def check_guidance(self, class_noun: str) -> None:
        """Make sure that pictures can be guided as asked.

        Raises:
            UserError: there is no class noun, by which the subject is told in prompts.
        """
        refuse_guidance(self.class_guidance, self.away_from, class_noun)


def refuse_guidance(class_guidance: float | None, away_from: str | None, class_noun: str) -> None:
    """What was asked for by name is refused where it cannot be done; what a recipe brings along is left out.

    Raises:
        UserError: there is no class noun.
    """
    asked = f"class_guidance is {class_guidance:g}" if class_guidance else "away_from is 'base'"
    if (class_guidance or away_from == "base") and not class_noun.strip():
        raise UserError(
            f"{asked}, and the subject has no class noun, by which guidance tells it; leave it out, or train with "
            "--class"
        )


class Foreign(Section):
    """A result that another trainer has left, in place of a run"""

    pipeline: str | None = option(
        None,
        "Folder of the whole pipeline in diffusers' layout, or hub id; of the base where a LoRA or an embedding is all "
        "that was trained.",
    )
    token: str = option("", "What the subject is called in prompts: sks.")
    class_noun: str = option("", "What the subject is, in a word or two.", flags=("class",))
    photos: Path | None = option(None, "Folder with the photos it was trained on.")
    base: str | None = option(None, "The untouched model, by which is measured what was forgotten.")
    lora: Path | None = option(None, "A LoRA to load into the pipeline, in diffusers' or kohya's layout.")
    embedding: Path | None = option(None, "A token's embedding to load into it, as diffusers or A1111 write it.")
