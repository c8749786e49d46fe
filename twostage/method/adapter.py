"""Adapters: a few added parameters learn, and the base's own weights keep their bits; PEFT makes and stores them.

lora     W + (alpha / r) B A                                 arXiv 2106.09685
rslora   W + (alpha / sqrt(r)) B A                           arXiv 2312.03732
dora     as lora, with the norms of W's rows learned apart   arXiv 2402.09353
loha     W + (alpha / r) (B1 A1) * (B2 A2), elementwise      arXiv 2108.06098
lokr     W + (alpha / r) (C kron B A)                        arXiv 2309.14859
oft      W R, R a rotation of blocks of inputs               arXiv 2306.07280
boft     as oft, with a factor for each of W's rows          arXiv 2311.06243

The last is BOFT of one butterfly factor. More of them need a CUDA extension, which PEFT compiles on the spot and, where
it cannot, does without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from peft import (
    BOFTConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.boft import layer as boft_layer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from twostage.errors import UserError
from twostage.family import Family
from twostage.loading import loading
from twostage.method.seeding import seeded
from twostage.quiet import quiet
from twostage.reading import read_json
from twostage.recipe import Adapter
from twostage.weights import PICKLES, conversion

# The last four are of attention in which prompts have projections of their own.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
# What the names of `adapter.target_modules` stand for, beside the modules' own names and patterns.
PRESETS = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "all": ("down_blocks.*", "mid_block.*", "up_blocks.*", "transformer_blocks.*"),
}

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = {"LORA": LoraConfig, "LOHA": LoHaConfig, "LOKR": LoKrConfig, "OFT": OFTConfig, "BOFT": BOFTConfig}
# Of a saved adapter's description, what tells one from another.
_OURS = {"peft_type", "peft_version", "base_model_name_or_path", "target_modules"}

# PEFT's OFT answers wrongly on a larger convolution (it adds up overlapping patches), and a rotation of one has
# (inputs * 9)^2 entries: half a gigabyte in each of Stable Diffusion's inner ones.
_ROTATIONS = ("oft", "boft")


def target_modules(family: Family, component: str, options: Adapter) -> Sequence[str]:
    """What `find_targets` is to look for in a component, denoiser or text encoder."""
    return family.text[component].adapted if component in family.text else options.target_modules


def find_targets(net: nn.Module, kind: str, wanted: Sequence[str]) -> list[str]:
    """The modules that get an adapter.

    Args:
        net: a U-Net or text encoder; on the meta device will do.
        kind: of adapter.
        wanted: keys of PRESETS, the modules' names or their ends ("to_k", "attn2.to_k"), or patterns ("up_blocks.*").
            Presets and patterns mean those of the modules they match that the kind can adapt.

    Returns:
        Full names, in the net's order.

    Raises:
        UserError: one of `wanted` matches nothing, or by name a module that the kind cannot adapt.
    """
    modules = {name: module for name, module in net.named_modules() if name}
    able = [name for name, module in modules.items() if _can_adapt(kind, module)]
    chosen: set[str] = set()
    for value in wanted:
        by_name = [name for name in modules if _ends_with(name, value)]
        for name in by_name:
            if name not in able:
                adapts = "Linear and 1x1 Conv2d" if kind in _ROTATIONS else "Linear and Conv2d"
                raise UserError(
                    f"adapter.target_modules: {value!r} is a {_describe(modules[name])} ({name}); "
                    f"{kind} adapts {adapts}"
                )
        patterns = PRESETS.get(value, (value,))
        found = {name for name in able if any(_ends_with(name, p) or fnmatchcase(name, p) for p in patterns)}
        if not found:
            raise UserError(
                f"adapter.target_modules: {value!r} is no module of the {type(net).__name__} that {kind} can adapt"
                + _nearest(value, able)
            )
        chosen |= found
    return [name for name in able if name in chosen]


def adapter_config(net: Any, options: Adapter, wanted: Sequence[str]) -> PeftConfig:
    """PEFT's description of an adapter.

    Args:
        net: a U-Net or text encoder; on the meta device will do.
        options: the recipe's section.
        wanted: as in `find_targets`.

    Raises:
        UserError: `wanted` does not fit the net; see `find_targets`.
    """
    targets = find_targets(net, options.kind, wanted)
    modules = [net.get_submodule(name) for name in targets]
    alpha = options.rank if options.alpha is None else options.alpha
    match options.kind:
        case "loha":
            return LoHaConfig(r=options.rank, alpha=alpha, rank_dropout=options.dropout, target_modules=targets)
        case "lokr":
            return LoKrConfig(r=options.rank, alpha=alpha, rank_dropout=options.dropout, target_modules=targets)
        case "oft":
            return OFTConfig(r=0, oft_block_size=_block_size(options.rank, modules), target_modules=targets)
        case "boft":
            return BOFTConfig(
                boft_block_size=_block_size(options.rank, modules),
                boft_n_butterfly_factor=1,
                boft_dropout=options.dropout,
                target_modules=targets,
            )
        case kind:
            return LoraConfig(
                r=options.rank,
                lora_alpha=alpha,
                lora_dropout=options.dropout,
                use_rslora=kind == "rslora",
                use_dora=kind == "dora",
                target_modules=targets,
            )


def add_adapter(net: Any, options: Adapter, wanted: Sequence[str], seed: int) -> None:
    """Give a net an adapter, in place; from then on nothing but the adapter requires a gradient.

    At first it changes nothing that the net says. It is float32 whatever the net is.

    Args:
        net: a U-Net or text encoder, frozen, on the CPU.
        options: the recipe's section.
        wanted: as in `find_targets`.
        seed: the fresh adapter is drawn from.

    Raises:
        UserError: `wanted` does not fit the net; see `find_targets`.
    """
    config = adapter_config(net, options, wanted)
    with seeded(seed), _no_compiler(), quiet():
        get_peft_model(net, config)
    net.eval()
    for layer in _layers(net) if options.dropout else []:
        layer.train()  # For its dropout; nothing else here knows the difference.
    kept = next(net.parameters()).dtype
    for layer in _layers(net) if kept != torch.float32 else []:
        _compute_in_half(layer, kept, options.kind)


def _compute_in_half(layer: Any, half: torch.dtype, kind: str) -> None:
    """Have an adapted layer cast its adapter, which is float32, as autocast does; the net around it is without.

    Else PEFT would take the input to float32, keep it so for the backward pass, and multiply slowly.
    """
    usual = layer.forward
    if kind in ("lora", "rslora"):  # The others need float32 inside.
        layer.cast_input_dtype_enabled = False

    def forward(shown: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(shown.device.type, half):
            return usual(shown, *args, **kwargs)

    layer.forward = forward


def save_adapter(net: Any, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as stock `PeftModel.from_pretrained` reads them.

    Args:
        net: that `add_adapter` was given.
        folder: to write to; made where it is missing.
        base: the name of the pretrained pipeline.
    """
    config = copy(net.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # A set, else written in another order each time.
    config.save_pretrained(folder)
    tensors = get_peft_model_state_dict(net, save_embedding_layers=False)  # "auto" would ask the hub.
    prefixed = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(prefixed, folder / _WEIGHTS, metadata={"format": "pt"})


def merge_adapter(net: Any, folder: Path, strength: float = 1.0) -> Any:
    """Write a saved adapter into a net's own weights, in place: W <- W + strength (W_adapted - W).

    For lora, rslora, loha and lokr that is PEFT's `set_scale`; for the others, which have no scale of their own, it
    interpolates between the base's weights and the adapted ones.

    Args:
        net: the base's, as it was before training.
        folder: that `save_adapter` wrote.
        strength: 0 leaves the net untouched, 1 is what was trained.

    Raises:
        UserError: the files are missing, broken, or of another net.
    """
    if strength == 0:
        return net
    model = _read(net, folder)
    for layer in _layers(model):
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        if strength != 1:
            weight = layer.get_base_layer().weight.data
            weight.copy_(torch.lerp(before, weight, strength))
    return model.unload()


def _read(net: nn.Module, folder: Path) -> PeftModel:
    for pickled in folder.glob("adapter_model*") if not (folder / _WEIGHTS).exists() else ():
        if pickled.suffix in PICKLES:
            raise UserError(f"cannot load the adapter in {folder}: {conversion(pickled)}")
    with loading(f"the adapter in {folder}", "train it anew"):
        # Where a file is missing here, PEFT would look for it on the hub.
        _refuse_foreign(read_json(folder / _CONFIG))
        (folder / _WEIGHTS).stat()
        with _no_compiler():
            return PeftModel.from_pretrained(net, folder)


def _refuse_foreign(config: Any) -> None:
    """Raise a ValueError where a description asks of PEFT what no adapter of ours does: to import a module, or to
    begin with other weights of the base. Numbers and truth values are harmless, and versions differ in theirs."""
    kind = _KINDS.get(str(config.get("peft_type"))) if isinstance(config, dict) else None
    if kind is None:
        raise ValueError(f"{_CONFIG} describes none of {', '.join(_KINDS)}")
    usual = kind().to_dict()
    for name, value in config.items():
        harmless = value is None or isinstance(value, bool | int | float)
        if name in usual and name not in _OURS and value != usual[name] and not harmless:
            raise ValueError(f"{_CONFIG} has {name} = {str(value)[:80]!r}, which no adapter of twostage has")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{_CONFIG} has target_modules that are no list of names")


def _block_size(rank: int, modules: list[Any]) -> int:
    """Side of the blocks that rotate: the largest up to 4 rank that divides the inputs of all modules.

    At 4 rank, OFT has as many parameters as a square LoRA of that rank: in * 4r / 2 against r (in + out).

    Raises:
        UserError: there is none.
    """
    inputs = [module.in_features if isinstance(module, nn.Linear) else module.in_channels for module in modules]
    common = math.gcd(*inputs)
    size = max(side for side in range(1, 4 * rank + 1) if common % side == 0)
    if size == 1:
        raise UserError(
            f"adapter.target_modules: modules of {min(inputs)} to {max(inputs)} inputs share no block to rotate; "
            "choose fewer, or another adapter.kind"
        )
    return size


def _can_adapt(kind: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return kind not in _ROTATIONS or module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


def _describe(module: nn.Module) -> str:
    kernel = "x".join(map(str, module.kernel_size)) + " " if isinstance(module, nn.Conv2d) else ""
    return kernel + type(module).__name__


def _nearest(value: str, names: list[str]) -> str:
    """'; the nearest are ...' of the modules' names and their ends."""
    parts = [name.split(".") for name in names]
    ends = dict.fromkeys(".".join(part[start:]) for part in parts for start in reversed(range(len(part))))
    near = get_close_matches(value, [*PRESETS, *ends], n=3, cutoff=0.4)
    return f"; the nearest are {', '.join(near)}" if near else f"; presets are {', '.join(PRESETS)}"


def _layers(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Within it, PEFT compiles no CUDA extension for BOFT: it would try once for every layer."""
    found = boft_layer._FBD_CUDA
    boft_layer._FBD_CUDA = False
    try:
        yield
    finally:
        boft_layer._FBD_CUDA = found
