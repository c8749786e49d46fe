"""The pocket nets: stock diffusers and transformers classes in small sizes."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

from .dataset import LABELS

PICTURE = 64
TEXT_WIDTH = 128
# Four, as in Stable Diffusion, lose what tells subjects apart: at a quarter of the side, 8 keep 3 dB more.
LATENT_CHANNELS = 6


def build_vae() -> AutoencoderKL:
    """64x64 pictures to 16x16 latents."""
    return AutoencoderKL(
        block_out_channels=(16, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PICTURE,
        mid_block_add_attention=False,
    )


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Three causal layers over 77 tokens, as wide as the U-Net's cross-attention expects."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(text_config(tokenizer))


def build_unet() -> UNet2DConditionModel:
    """Cross-attention at 8x8 and 4x4; at 16x16 convolutions alone, which is where the time goes on a CPU."""
    return UNet2DConditionModel(
        sample_size=PICTURE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_noise_scheduler() -> DDPMScheduler:
    """Stable Diffusion's schedule with zero terminal SNR: at 16x16 the leak of the mean at the last step shows."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # stock Stable Diffusion pipelines insist; trailing spacing ignores it
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": PICTURE,
        "patch_size": 8,
        "projection_dim": TEXT_WIDTH,
    }
    text = text_config(tokenizer).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH))


def build_vit() -> ViTModel:
    """DINO's shape in small: a picture is its class token after the last layer norm."""
    config = ViTConfig(
        hidden_size=144,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=PICTURE,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def build_judge() -> ResNetForImageClassification:
    """One classifier for all of LABELS: its logits are the groups one after the other."""
    names = [f"{group}: {name}" for group, values in LABELS.items() for name in values]
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[32, 64, 128],
        depths=[1, 2, 2],
        layer_type="basic",
        downsample_in_first_stage=False,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)
