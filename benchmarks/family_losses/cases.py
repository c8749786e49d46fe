"""What is compared: scripts, the options of theirs that change the loss, and what of ours means the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

PROMPT, CLASS_PROMPT = "a photo of sks dog", "a photo of a dog"
BATCH, PRIOR_WEIGHT = 4, 0.7
# So low that some of few samples get a weight.
SNR_GAMMA = 0.5

_SDXL = "examples/text_to_image/train_text_to_image_sdxl.py"
_DREAMBOOTH = "examples/dreambooth/train_dreambooth.py"
_SD3 = "examples/dreambooth/train_dreambooth_sd3.py"

# In place of CAPTIONED, PHOTOS, CLASS and CACHE stand folders.
_OPTIONS = {
    _SDXL: ("--train_data_dir", "CAPTIONED", "--caption_column", "text", "--cache_dir", "CACHE"),
    _DREAMBOOTH: ("--instance_data_dir", "PHOTOS", "--instance_prompt", PROMPT),
    # With one prompt for all, the script has states of one sample, and fails at a batch of several.
    _SD3: (
        *("--dataset_name", "CAPTIONED", "--caption_column", "text", "--instance_prompt", PROMPT),
        # The stock pipeline has T5 read 256 tokens, and so has ours; the script's default is 77.
        *("--cache_dir", "CACHE", "--max_sequence_length", "256"),
    ),
}
_PRIOR = (
    *("--with_prior_preservation", "--class_data_dir", "CLASS", "--class_prompt", CLASS_PROMPT),
    *("--num_class_images", str(BATCH), "--prior_loss_weight", str(PRIOR_WEIGHT)),
)


@dataclass(frozen=True)
class Case:
    """One run of a script, and of ours on the tensors it had.

    Attributes:
        base: one of `bases.BASES`.
        script: in the checkout.
        title: of its options.
        options: of the script.
        snr_gamma, flow_weighting: of ours.
        prior: whether ours is given the script's class pictures as a prior.
        handed: what ours would make otherwise, and is handed as the script made it, which shows that nothing else
            differs: "weight", where the script weighs noise levels in a way that ours has no option for; "enlarged" and
            "noise_level", since IF's second stage is shown the noisy picture twice by the script, with the timestep as
            its label, and by ours a small picture with noise of its own.
        batch: of the script.
    """

    base: str
    script: str
    title: str
    options: tuple[str, ...] = ()
    snr_gamma: float | None = None
    flow_weighting: str = "velocity"
    prior: bool = False
    handed: tuple[str, ...] = ()
    batch: int = BATCH

    @property
    def name(self) -> str:
        return f"{self.base} {self.title}".replace(" ", "-").replace(",", "")

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*_OPTIONS[self.script], *self.options, "--train_batch_size", str(self.batch))


def _dreambooth(base: str, *always: str, handed: tuple[str, ...] = ()) -> tuple[Case, ...]:
    case = partial(Case, base, _DREAMBOOTH, handed=handed)
    return (
        case("noise", always),
        case("min-SNR", (*always, *_MIN_SNR), snr_gamma=SNR_GAMMA),
        case("noise offset", (*always, "--offset_noise")),
        case("prior", (*always, *_PRIOR), prior=True),
    )


def _sd3(scheme: str, preconditioned: bool) -> Case:
    title = f"{scheme}, {'preconditioned' if preconditioned else 'velocity'}"
    options = ("--weighting_scheme", scheme, "--precondition_outputs", str(int(preconditioned)))
    case = partial(Case, "sd3", _SD3, title, options)
    if scheme == "sigma_sqrt" and preconditioned:  # What the one multiplies the error by the other takes away.
        return case()
    weighting = "latents" if preconditioned else "velocity"
    return case(flow_weighting=weighting, handed=("weight",) if scheme in {"sigma_sqrt", "cosmap"} else ())


_MIN_SNR = ("--snr_gamma", str(SNR_GAMMA))
_T5 = ("--pre_compute_text_embeddings", "--text_encoder_use_attention_mask", "--tokenizer_max_length", "77")
CASES = (
    *_dreambooth("sd15"),
    Case("sdxl", _SDXL, "noise"),
    Case("sdxl", _SDXL, "min-SNR", _MIN_SNR, snr_gamma=SNR_GAMMA),
    Case("sdxl", _SDXL, "noise offset", ("--noise_offset", "0.1")),
    Case("sdxl-velocity", _SDXL, "velocity"),
    Case("sdxl-velocity", _SDXL, "velocity, min-SNR", _MIN_SNR, snr_gamma=SNR_GAMMA),
    *_dreambooth("if-1", *_T5),
    *_dreambooth("if-2", *_T5, "--class_labels_conditioning", "timesteps", handed=("enlarged", "noise_level")),
    *(
        _sd3(scheme, preconditioned)
        for scheme in ("logit_normal", "mode", "sigma_sqrt", "cosmap")
        for preconditioned in (False, True)
    ),
    # Of more samples, the script's weights do not fit to either half of the batch, and it fails.
    Case("sd3", _SD3, "prior", (*_sd3("logit_normal", False).options, *_PRIOR), prior=True, batch=1),
)
