"""Tables of a recipe: the two stages, and what stage 2 can be given."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from twostage.recipe_sections import Section, option

Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
]


class Stage(Section):
    """What both stages have: steps, batch, learning rate and AdamW."""

    steps: int = option(..., "Optimizer steps.", unit="steps", flags=("max-train-steps",), ge=1)
    learning_rate: float = option(..., "Peak learning rate, per optimizer step.", flags=("learning-rate",), gt=0, le=10)
    batch_size: int = option(4, "Photos in a batch, per process.", unit="images", flags=("train-batch-size",), ge=1)
    gradient_accumulation_steps: int = option(
        1, "Batches whose gradients one optimizer step adds up.", flags=("gradient-accumulation-steps",), ge=1
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, slower.", flags=("gradient-checkpointing",)
    )
    lr_scheduler: Schedule = option("constant", "Shape of the learning rate over the steps.", flags=("lr-scheduler",))
    lr_warmup_steps: int = option(
        0,
        "Steps of linear warm-up; every schedule has it but the constant ones.",
        unit="steps",
        flags=("lr-warmup-steps",),
        ge=0,
    )
    lr_num_cycles: int = option(1, "Restarts of cosine_with_restarts.", ge=1)
    lr_power: float = option(1.0, "Exponent of polynomial.", gt=0)
    lr_step_rules: str = option(
        "",
        "Factors and steps of piecewise_constant: '1:200,0.1:400,0.01'.",
        pattern=r"^$|^(\d*\.?\d+:\d+,)+\d*\.?\d+$",
    )
    adam_beta1: float = option(0.9, "AdamW: decay of the first moment.", ge=0, lt=1)
    adam_beta2: float = option(0.999, "AdamW: decay of the second moment.", ge=0, lt=1)
    adam_epsilon: float = option(1e-8, "AdamW: added to the denominator.", gt=0)
    weight_decay: float = option(0.0, "AdamW: decoupled weight decay.", ge=0, le=1)
    max_grad_norm: float = option(1.0, "Clip the gradient's norm to this; 0 does not clip.", ge=0)
    snr_gamma: float | None = option(
        None,
        "Min-SNR weighting (arXiv 2303.09556): noise levels whose signal-to-noise ratio is above this count less. The "
        "paper takes 5; not weighted when not given.",
        flags=("snr-gamma", "min-snr-gamma"),
        gt=0,
    )
    noise_offset: float = option(
        0.0,
        "Offset noise: one more draw for each channel, times this, on all of it, so that pictures darker and brighter "
        "than noise are learned too; 0.1 is much.",
        flags=("noise-offset",),
        ge=0,
        le=1,
    )
    flow_weighting: Literal["velocity", "latents"] = option(
        "velocity",
        "Of bases that learn a flow, as Stable Diffusion 3: what the loss is the error of. The velocity, or the "
        "latents that follow from it, so that a noise level counts by its square (as in diffusers' script for it).",
    )
    flow_levels: Literal["logit_normal", "mode", "uniform"] = option(
        "logit_normal",
        "Of bases that learn a flow: which noise levels come how often. The middle ones most (logit_normal; mode, with "
        "heavy tails; arXiv 2403.03206, section 3.1), or all alike.",
    )
    ema_decay: float = option(
        0.0,
        "Average the weights over the steps, each new average this much of the one before (at step k no more than "
        "k / (9 + k)); samples and result are then of the average. 0 is off.",
        flags=("ema-decay",),
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _schedule_takes_its_options(self) -> Self:
        if self.lr_warmup_steps and self.lr_scheduler in ("constant", "piecewise_constant"):
            raise ValueError(
                f"lr_scheduler = '{self.lr_scheduler}' has no warm-up, and lr_warmup_steps = {self.lr_warmup_steps} "
                "would do nothing; did you mean constant_with_warmup?"
            )
        if self.lr_scheduler == "polynomial" and self.learning_rate <= 1e-7:
            raise ValueError("lr_scheduler = 'polynomial' ends at 1e-7: learning_rate must be above that")
        if (self.lr_scheduler == "piecewise_constant") != bool(self.lr_step_rules):
            raise ValueError("lr_scheduler = 'piecewise_constant' and lr_step_rules need each other")
        return self

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.snr_gamma is not None and self.flow_weighting != "velocity":
            raise ValueError(
                f"snr_gamma = {self.snr_gamma:g} weighs noise levels, and so does flow_weighting = "
                f"'{self.flow_weighting}'; choose one"
            )
        return self


class Stage1(Stage):
    """Stage 1: the token's embedding learns, everything else is frozen (Textual Inversion)."""

    norm_control: Literal["pull", "none"] = option(
        "pull",
        "Pull the embedding's norm to the vocabulary's mean after each step: a large norm drowns the other words.",
    )


class Stage2(Stage):
    """Stage 2: the denoiser learns; the token's embedding is frozen, the text encoder unless asked for."""

    train: Literal["unet", "adapter"] = option(
        "unet",
        "What learns: all of the denoiser, whether it is a U-Net or not, or an adapter to it, and to the text encoder "
        "where that learns too; its options are in [adapter].",
    )
    train_text_encoder: bool = option(
        False,
        "The text encoder's transformer learns too. Its token table does not: every word, and a token learned in "
        "stage 1, keeps the embedding it has. Prompts are then encoded in each step.",
        flags=("train-text-encoder",),
    )
    text_encoder_learning_rate: float | None = option(
        None,
        "Peak learning rate of the text encoder; the U-Net's when not given.",
        flags=("text-encoder-lr",),
        gt=0,
        le=10,
    )

    @model_validator(mode="after")
    def _a_rate_is_for_what_learns(self) -> Self:
        if self.text_encoder_learning_rate is not None and not self.train_text_encoder:
            raise ValueError(
                f"text_encoder_learning_rate = {self.text_encoder_learning_rate:g}, and train_text_encoder = false: "
                "nothing would learn at that rate"
            )
        return self


class Adapter(Section):
    """The adapter that stage 2 trains in place of the base's own weights."""

    kind: Literal["lora", "rslora", "dora", "loha", "lokr", "oft", "boft"] = option(
        "lora",
        "What it adds: products of thin matrices (lora; rslora, dora), of two such products (loha) or of a Kronecker "
        "product (lokr), or rotations of a layer's inputs (oft, boft).",
    )
    rank: int = option(
        4,
        "Rank; for oft and boft, a quarter of the side of a rotated block.",
        flags=("rank", "network-dim"),
        ge=1,
        le=1024,
    )
    alpha: float | None = option(
        None,
        "What is added counts alpha / rank times (rslora: alpha / sqrt(rank)); the rank when not given.",
        flags=("lora-alpha", "network-alpha"),
        gt=0,
        le=1024,
    )
    dropout: float = option(
        0.0,
        "Share left out at random in each forward pass of training: of a layer's inputs to lora, rslora and dora, of "
        "the outputs of loha and lokr, of the blocks of boft.",
        flags=("lora-dropout", "network-dropout"),
        ge=0,
        lt=1,
    )
    target_modules: tuple[str, ...] = option(
        ("attention",),
        "Where in the denoiser: attention, attention+ff (feed-forward too), all (convolutions too, where the kind "
        "can), modules' names or their ends (attn2.to_k), or patterns (up_blocks.*); may be given several times. In a "
        "text encoder it is always the attention.",
        flags=("target-modules",),
        min_length=1,
    )

    @model_validator(mode="after")
    def _kind_takes_its_options(self) -> Self:
        if self.kind in ("oft", "boft") and self.alpha is not None:
            raise ValueError(f"kind = '{self.kind}' rotates and has no alpha; leave alpha = {self.alpha:g} out")
        if self.kind == "oft" and self.dropout:
            raise ValueError(f"kind = 'oft' has no dropout, and dropout = {self.dropout:g} would do nothing; boft has")
        return self


# Options of a prior that its source has no use for.
_NOT_OF = {
    "images": ("states_per_path",),
    "predictions": ("class_images",),
    "photos": ("class_images", "num_inference_steps", "guidance_scale", "states_per_path"),
}


class Prior(Section):
    """Prior preservation: stage 2 holds to what the untouched base draws or predicts for the class."""

    preserve: bool = option(
        False,
        "Add to each sample's loss that of one prior sample, so that the class keeps its own look (DreamBooth).",
        flags=("with-prior-preservation",),
    )
    source: Literal["images", "predictions", "photos"] = option(
        "images",
        "Images: pictures of the class, drawn by the untouched base or your own. Predictions: no pictures; what the "
        "untouched base predicts on its way from noise to a picture of the class, computed once and held to. Photos: "
        "no pictures either; what it predicts for the subject's own photos, noised, when it is asked for the class.",
    )
    weight: float = option(
        1.0, "Weight of the prior loss; 0 is the same as no prior.", flags=("prior-loss-weight",), ge=0, le=1000
    )
    class_prompt: str = option(
        "a photo of a {class}", "What prior samples are prompted with.", flags=("class-prompt",), min_length=1
    )
    num_class_images: int = option(
        200,
        "Class images, paths from noise to picture, or noised photos.",
        unit="images",
        flags=("num-class-images",),
        ge=1,
    )
    class_images: Path | None = option(
        None,
        "Folder with your own class images, never written to. Where it holds too few, the base draws the rest; of "
        "more, the first by name count. A text file beside a picture is its prompt.",
        flags=("class-data-dir",),
    )
    sample_batch_size: int = option(
        8, "Class images, paths or noised photos made together.", unit="images", flags=("sample-batch-size",), ge=1
    )
    num_inference_steps: int = option(25, "Denoising steps a class image or path.", unit="steps", ge=1, le=1000)
    guidance_scale: float = option(
        7.5, "Weight of classifier-free guidance for class images and paths; 1 is off.", ge=0, le=100
    )
    states_per_path: int = option(
        10, "Predictions kept of each path, spread over its denoising steps; no more than it has.", ge=1, le=1000
    )

    @property
    def wanted(self) -> bool:
        """Whether prior samples make a difference."""
        return self.preserve and self.weight > 0

    def counts(self, name: str) -> bool:
        """Whether an option of this section makes a difference with this source."""
        return name not in _NOT_OF[self.source]

    @model_validator(mode="after")
    def _pictures_are_held_to(self) -> Self:
        if self.class_images is not None and not self.counts("class_images"):
            raise ValueError(
                f"class_images = '{self.class_images}' would do nothing with source = '{self.source}'; did you mean "
                "source = 'images'?"
            )
        return self

    @model_validator(mode="after")
    def _paths_have_their_states(self) -> Self:
        if self.source == "predictions" and self.states_per_path > self.num_inference_steps:
            raise ValueError(
                f"states_per_path = {self.states_per_path} is more than num_inference_steps = "
                f"{self.num_inference_steps}: a path has one state a step"
            )
        return self
