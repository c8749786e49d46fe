"""One checkpoint in the original layout, the token beside it: what A1111 (stable-diffusion-webui) loads.

It takes a Stable Diffusion 1 checkpoint to predict noise unless a .yaml of the same name beside it says otherwise
(its `sd_models_config.find_checkpoint_config_near_filename`), so one is written where the base predicts velocity.
A Stable Diffusion XL checkpoint says so itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import UserError
from twostage.export import Options, Source, Written
from twostage.export.shared.files import (
    EMBEDDINGS,
    embedding_calls,
    load_checkpoint,
    load_embeddings,
    prediction,
    save_checkpoint,
    save_embeddings,
    single_file_call,
    unknown_shapes,
)
from twostage.export.shared.layouts import layout_of
from twostage.export.shared.original import is_open_clip

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "one checkpoint file for A1111, the token beside it"
OPTIONS = ("dtype",)


def check(source: Source, options: Options) -> None:
    """Refuse a base that has no original layout, or predicts neither noise nor velocity: A1111 has no name for it.

    Raises:
        UserError: it has none, or does not.
    """
    layout_of(source.base.family)
    kind, _ = prediction(source)
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"the base predicts {kind!r}, and A1111 epsilon or v_prediction; export it with --to diffusers")


def write(source: Source, options: Options, folder: Path) -> Written:
    """The checkpoint, embeddings/ with a file for each token, and the .yaml where A1111 needs one."""
    checkpoint = save_checkpoint(source, options, folder)
    usage = [f"{checkpoint.name}: to models/Stable-diffusion/"]
    calls: list[str] = []
    kind, ends_in_noise = prediction(source)
    if kind == "v_prediction" and not layout_of(source.base.family).told_by_keys:
        config = checkpoint.with_suffix(".yaml")
        config.write_text(_config(source.pipeline, source.base.noise_scheduler.config), encoding="utf-8")
        usage += [f"{config.name}: beside it; it says that the model predicts velocity"]
    if ends_in_noise:
        usage += ["in its settings, set the noise schedule for sampling to Zero Terminal SNR"]
    for name, file in save_embeddings(source, options, folder / EMBEDDINGS).items():
        usage += [f"{EMBEDDINGS}/{file.name}: to embeddings/; write {file.stem} for {name}"]
        calls += embedding_calls(source, options, name, f"{{folder}}/{EMBEDDINGS}/{file.name}")
    usage += [f"with diffusers: {single_file_call(source, f'{{folder}}/{checkpoint.name}')}", *calls]
    return Written(usage + unknown_shapes(source, "A1111"))


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The checkpoint and the tokens, by stock diffusers."""
    pipeline = load_checkpoint(source, folder)
    load_embeddings(pipeline, source, options, folder / EMBEDDINGS)
    return pipeline


def _config(pipeline: Any, scheduler: Any) -> str:
    """The settings of the original code's classes, as its own configuration files have them."""
    unet, vae = pipeline.unet.config, pipeline.vae.config
    width, levels = unet.block_out_channels[0], len(unet.block_out_channels)
    attended = [2**level for level, kind in enumerate(unet.down_block_types) if kind.startswith("CrossAttn")]
    encoder, heads = "FrozenCLIPEmbedder", f"num_heads: {_first(unet.attention_head_dim)}"
    if is_open_clip(pipeline.text_encoder):
        # Its heads are all of one width; diffusers calls the number of heads a level's "attention_head_dim".
        encoder, heads = "FrozenOpenCLIPEmbedder", f"num_head_channels: {width // _first(unet.attention_head_dim)}"
    return f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: v
    linear_start: {scheduler.beta_start}
    linear_end: {scheduler.beta_end}
    timesteps: {scheduler.num_train_timesteps}
    num_timesteps_cond: 1
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {unet.sample_size}
    channels: {unet.in_channels}
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {vae.scaling_factor}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {unet.sample_size}
        in_channels: {unet.in_channels}
        out_channels: {unet.out_channels}
        model_channels: {width}
        attention_resolutions: {attended[::-1]}
        num_res_blocks: {unet.layers_per_block}
        channel_mult: {[channels // width for channels in unet.block_out_channels]}
        {heads}
        use_spatial_transformer: true
        use_linear_in_transformer: {str(bool(unet.use_linear_projection)).lower()}
        transformer_depth: 1
        context_dim: {unet.cross_attention_dim}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {vae.latent_channels}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {vae.latent_channels}
          resolution: {unet.sample_size * 2 ** (levels - 1)}
          in_channels: {vae.in_channels}
          out_ch: {vae.out_channels}
          ch: {vae.block_out_channels[0]}
          ch_mult: {[channels // vae.block_out_channels[0] for channels in vae.block_out_channels]}
          num_res_blocks: {vae.layers_per_block}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.{encoder}
      params: {{{"freeze: true, layer: penultimate" if encoder == "FrozenOpenCLIPEmbedder" else ""}}}
"""


def _first(value: int | tuple[int, ...] | list[int]) -> int:
    return value if isinstance(value, int) else value[0]
