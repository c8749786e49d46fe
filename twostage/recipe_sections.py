"""Tables of a recipe: what the user brings and what is saved. The stages' tables are in recipe_stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from pydantic.fields import FieldInfo


def option(default: Any, help: str, *, unit: str = "", flags: tuple[str, ...] = (), **bounds: Any) -> Any:
    """Declare a field of the recipe.

    Args:
        default: the value when neither flag nor recipe file gives one; `...` where there is none.
        help: one sentence for `--help` and the documentation.
        unit: "steps", "pixels", "images" ...; shown behind the help.
        flags: short names users know from other trainers, beside the `--section.field` every field has.
        bounds: pydantic's `ge`, `gt`, `le`, `lt`, `min_length` ...
    """
    return Field(default, description=help, json_schema_extra={"unit": unit, "flags": list(flags)}, **bounds)


def short_names(field: FieldInfo) -> list[str]:
    """The names users know an option by, beside the one that its place in the recipe gives it."""
    extra = field.json_schema_extra
    names = extra.get("flags", []) if isinstance(extra, dict) else []
    assert isinstance(names, list)
    return [str(name) for name in names]


def unit(field: FieldInfo) -> str:
    """What the option's number counts: "steps", "pixels" ..., or nothing."""
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


class Section(BaseModel):
    """A table of the recipe: frozen, and strict about names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The photos, and what is said about them."""

    photos: Path | None = option(None, "Folder with the 3 to 5 photos of the subject.", flags=("instance-data-dir",))
    num_photos: int | None = option(
        None, "Use the first so many of them, by name; all when not given.", unit="photos", ge=1
    )
    held_out: tuple[Path, ...] = option(
        (),
        "A photo of the subject, or a folder of them, that training must not see and evaluation measures against; may "
        "be given several times. Photos with the same bytes are left out of training. It is the first subject's.",
        flags=("held-out",),
    )
    class_noun: str = option(
        "",
        "What the subject is, in a word or two: backpack, stuffed animal. It stands behind the token; for prompts "
        "without it, make the token a noun (token.role).",
        flags=("class",),
    )
    learnable: Literal["subject", "style"] = option(
        "subject",
        "What the photos have in common: the subject on them, or a style, which has templates of its own and needs no "
        "class noun.",
        flags=("learnable-property",),
    )
    resolution: int | None = option(
        None,
        "Side of the square training picture; the base's own when not given.",
        unit="pixels",
        flags=("resolution",),
        ge=16,
        le=4096,
        multiple_of=8,
    )
    fit: Literal["crop", "pad", "bucket"] = option(
        "crop",
        "Centre crop to a square, pad the short side to one, or crop to a bucket: a shape of about the square's area "
        "nearest to the photo's own. A step then shows photos of one bucket.",
    )
    flip: bool = option(False, "Mirror half of the pictures; wrong for subjects with text or a left and right.")
    caption: str = option(
        "",
        "One caption for all photos, with {} where token and class stand; the field's templates when empty. "
        "A text file beside a photo (a.jpg, a.txt) always wins.",
        flags=("instance-prompt",),
    )
    caption_dropout: float = option(
        0.0,
        "Share of samples shown with an empty prompt, from which guidance steers away.",
        flags=("caption-dropout-rate", "proportion-empty-prompts"),
        ge=0,
        lt=1,
    )
    unmasked_weight: float = option(
        0.1,
        "How much of a photo's loss counts where its mask (a.jpg, a-masklabel.png) is black; white counts in full.",
        flags=("unmasked-weight",),
        ge=0,
        le=1,
    )

    @field_validator("held_out")
    @classmethod
    def _held_out_are_named(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if Path() in value:  # What "$UNSET" becomes.
            raise ValueError("is empty or '.'; name a photo of the subject, or a folder of them")
        return value

    @field_validator("learnable", mode="before")
    @classmethod
    def _object_is_a_subject(cls, value: Any) -> Any:
        # Textual Inversion's own word for it, and diffusers'.
        return "subject" if value == "object" else value


class Token(Section):
    """The placeholder token that stage 1 learns."""

    placeholder: str = option(
        "<rare>",
        "Name of the new token; without stage 1, a word of the vocabulary, best a rare one such as sks.",
        flags=("placeholder-token",),
        min_length=1,
    )
    num_vectors: int = option(1, "Embedding vectors the token stands for.", flags=("num-vectors",), ge=1, le=64)
    initializer: str = option(
        "",
        "Word, or rare token of the vocabulary, whose embedding the new one starts from; of several tokens, "
        "their mean; the mean of the whole vocabulary when empty.",
        flags=("initializer-token", "init-word"),
    )
    role: Literal["adjective", "noun"] = option(
        "adjective", "Adjective: 'a <rare> backpack'. Noun, as in Textual Inversion: 'a <rare>'."
    )


class AnotherSubject(Section):
    """One more subject beside that of [data] and [token], which say all that is not said here."""

    photos: Path = option(..., "Folder with its photos.")
    class_noun: str = option("", "What it is, in a word or two.")
    placeholder: str = option(..., "Its own token.", min_length=1)
    initializer: str = option("", "Word whose embedding its token starts from; as token.initializer.")

    def __repr__(self) -> str:
        initializer = f":{self.initializer}" if self.initializer else ""
        return repr(f"{self.photos}:{self.class_noun}:{self.placeholder}{initializer}")

    @model_validator(mode="before")
    @classmethod
    def _read_flag(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # A colon behind one letter is that of a Windows drive.
        parts = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]+):([^:]*):([^:]+)(?::([^:]*))?", value)
        if parts is None:
            raise ValueError(
                f"{value!r} is not PHOTOS:CLASS:TOKEN or PHOTOS:CLASS:TOKEN:INITIALIZER, as in "
                "'toy/:stuffed animal:<odd>'"
            )
        return dict(zip(cls.model_fields, parts.groups(default=""), strict=True))

    @field_validator("photos")
    @classmethod
    def _names_a_folder(cls, value: Path) -> Path:
        if str(value) == ".":
            raise ValueError("is empty or '.'; name the folder with the photos")
        return value


class Sample(Section):
    """Pictures drawn at each checkpoint, with the same prompts and seeds every time."""

    prompts: tuple[str, ...] = option(
        ("a photo of a {} on the beach", "a photo of a {} in the snow"),
        "Prompts, {} standing for token and class; may be given several times.",
        flags=("validation-prompt",),
    )
    per_prompt: int = option(
        2, "Pictures a prompt; 0 draws none.", unit="images", flags=("num-validation-images",), ge=0
    )
    num_inference_steps: int = option(25, "Denoising steps a picture.", unit="steps", ge=1, le=1000)
    guidance_scale: float = option(7.5, "Weight of classifier-free guidance; 1 is off.", ge=0, le=100)
    class_guidance: float = option(
        0.0,
        "Share of the guidance that goes towards the class alone, without the token: edits are followed better, in "
        "half as much time again; wants a class noun.",
        flags=("class-guidance",),
        ge=0,
        le=1,
    )
    away_from: Literal["own", "base"] = option(
        "own",
        "What the guidance steers away from: what the trained U-Net draws of nothing, or what the untouched one does, "
        "which shows the subject more clearly and takes a second U-Net; samples in training take their own.",
        flags=("away-from",),
    )

    def within(self, class_noun: str, unet_trains: bool = True) -> Sample:
        """As it can be done for a result: both kinds of guidance tell a subject by its class, and one wants two U-Nets.

        Args:
            class_noun: what the subject is; empty where nobody said.
            unet_trains: whether the result's U-Net, or an adapter on it, is its own.
        """
        if not class_noun.strip():
            return self.model_copy(update={"class_guidance": 0.0, "away_from": "own"})
        return self if unet_trains else self.model_copy(update={"away_from": "own"})


class Checkpoints(Section):
    """When progress is saved."""

    every: int = option(
        200, "Save after this many steps of a stage.", unit="steps", flags=("checkpointing-steps",), ge=1
    )
    at: tuple[PositiveInt, ...] = option(
        (),
        "Save after these steps of a stage too, and keep what was saved there whatever else goes; may be given several "
        "times.",
        unit="steps",
    )
    keep: int = option(2, "Checkpoints kept beside those; older ones go.", flags=("checkpoints-total-limit",), ge=1)

    def due(self, step: int) -> bool:
        """Whether to save after so many steps of a stage."""
        return step % self.every == 0 or step in self.at


class Select(Section):
    """Measuring the sample pictures of each checkpoint, and what is decided by it."""

    measure: bool = option(False, "Measure them and decide nothing; the two below do so anyway.")
    keep: Literal["last", "best"] = option(
        "last",
        "Which checkpoint becomes the result: the last, or the one of the highest score, which is identity with the "
        "held-out photos times prompt fidelity.",
    )
    stop_on_copying: int = option(
        0,
        "Stop a stage early when, for so many checkpoints in a row, its pictures came nearer to single training photos "
        "and no nearer to the held-out ones; 0 never does.",
        unit="checkpoints",
        ge=0,
    )
    encoders: tuple[str, ...] = option(
        (),
        "ROLE=SOURCE as in an evaluation, of dino, which sees identity, or clip, which reads prompts; may be given "
        "several times.",
        flags=("encoder",),
    )

    @field_validator("encoders")
    @classmethod
    def _encoders_have_a_role(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not re.fullmatch(r"\s*(dino|clip)\s*=.*\S.*", text):
                raise ValueError(
                    f"{text!r} is not ROLE=SOURCE with the role dino or clip, as in dino=facebook/dino-vits16"
                )
        return value

    @property
    def wanted(self) -> bool:
        """Whether anything is measured."""
        return self.measure or self.keep == "best" or self.stop_on_copying > 0
