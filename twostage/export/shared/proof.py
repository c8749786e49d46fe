"""Write an export, load it again by stock loaders, and compare a picture before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from twostage.display import Display
from twostage.errors import UserError
from twostage.export import Options, Source
from twostage.method.sampling import draw
from twostage.quiet import quiet
from twostage.recipe import Sample
from twostage.subject.tokens import embedding_table
from twostage.writing import whole_folder

# Mean difference of the picture, in 8-bit levels, above which an export is no copy of its run: several times what
# the rounding of the weights does, and a fraction of what a wrong layer does.
TOLERANCE = {"float32": 0.5, "float16": 2.0, "bfloat16": 8.0}
# Relative to a tensor's norm; of factors, it is doubled.
_ROUNDING = {"float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}
# Of float16's numbers.
_SMALLEST = 6e-8
SAMPLE = Sample(num_inference_steps=8)
SEED = 0


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: that holds it.
        files: in it, relative to it, and their sizes in bytes.
        usage: what to do with them, a line each.
        mean, largest: difference of the picture from the run's own, in 8-bit levels.
        tolerance: of `mean`; None where the export is an approximation by nature.
    """

    folder: Path
    files: dict[str, int]
    usage: list[str]
    mean: float
    largest: int
    tolerance: float | None


def export(source: Source, form: ModuleType, options: Options, folder: Path, display: Display) -> Exported:
    """Write a run to a new folder in one of the formats.

    Args:
        source: the run.
        form: the format's module.
        options: those it takes.
        folder: not there yet, or empty; appears whole, after the proof, or not at all.
        display: shows how far it is.

    Raises:
        UserError: the run cannot be exported so, the folder cannot be written, or the export draws something else.
    """
    form.check(source, options)
    with display.progress("export", 4) as update, quiet(), whole_folder(folder) as temporary:
        device = source.pipeline.device
        ours = _draw(source, source.pipeline)
        source.pipeline.to("cpu")  # A card that holds one pipeline need not hold two.
        update(1)
        written = form.write(source, options, temporary)
        update(2)
        loaded = form.load(source, options, temporary)
        if written.exact:
            _check_weights(source, loaded, options)
        judged = written.judge(loaded)
        update(3)
        theirs = _draw(source, loaded.to(device))
        update(4)
        exported = Exported(
            folder,
            _sizes(temporary),
            [line.replace("{folder}", str(folder)) for line in written.usage + judged],
            *difference(ours, theirs),
            TOLERANCE[options.precision] if written.exact else None,
        )
        _check(exported, options)
    return exported


def difference(one: Image.Image, other: Image.Image) -> tuple[float, int]:
    """Mean and largest absolute difference of two pictures' channels, in 8-bit levels."""
    levels = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return float(levels.mean()), int(levels.max())


def _draw(source: Source, pipeline: Any) -> Image.Image:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.low_resolution = None  # Exports are of what was trained, which draws by itself too.
    return draw(pipeline, [source.prompt], [SEED], SAMPLE, source.base.resolution)[0]


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_weights(source: Source, loaded: Any, options: Options) -> None:
    """A picture can look right where a bias is missing; so every tensor must be the run's, but for rounding."""
    for component in source.base.family.models:
        ours, theirs = (_read_weights(source, pipeline, component) for pipeline in (source.pipeline, loaded))
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        for name, value in ours.items():
            apart = (theirs[name].to(value.device) - value).norm()
            if not apart <= _ROUNDING[options.precision] * value.norm() + _SMALLEST * value.numel() ** 0.5:
                raise UserError(
                    f"loaded again, {component}.{name} is not what the run has (a relative difference of "
                    f"{apart / value.norm():.2g}); nothing was kept"
                )


def _read_weights(source: Source, pipeline: Any, component: str) -> dict[str, Tensor]:
    """Of a component, all but the rows of a longer table that no token has: stock diffusers cuts them off."""
    net = getattr(pipeline, component)
    state: dict[str, Tensor] = net.state_dict()
    if component not in source.base.family.text:
        return state
    table, tokenizer = embedding_table(net), getattr(pipeline, source.base.family.text[component].tokenizer)
    is_table = {name: value.data_ptr() == table.data_ptr() for name, value in state.items()}
    return {name: value[: len(tokenizer)] if is_table[name] else value for name, value in state.items()}


def _check(exported: Exported, options: Options) -> None:
    if exported.tolerance is not None and not exported.mean <= exported.tolerance:
        hint = "" if options.precision == "float32" else "; try --dtype float32"
        raise UserError(
            f"loaded again, the export draws another picture than the run: {exported.mean:.1f} of 255 levels apart in "
            f"the mean, {exported.tolerance:g} being the limit; nothing was kept{hint}"
        )
