"""The verb `export`: a finished run in a format that other programs read."""

from __future__ import annotations

import re
from pathlib import Path

from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.export import Options, Source, check_options, default_output, find_format
from twostage.export.shared.proof import Exported
from twostage.export.shared.proof import export as write_export
from twostage.families import Base, load_base
from twostage.run import learned_tokens, load_pipeline, open_finished
from twostage.run_folder import RunFolder
from twostage.subject.captions import subject_phrase


def export(
    run: Path,
    to: str,
    output: Path | None = None,
    options: Options | None = None,
    *,
    display: Display | None = None,
) -> Exported:
    """Write a finished run as other programs read it, and prove it: stock loaders read it again and draw a picture.

    Args:
        run: the run folder, or a delta of it.
        to: one of `twostage.export.known_formats()`.
        output: folder to make; `run`/export/`to` when not given.
        options: precision, names of keys, rank.
        display: where progress is shown; the terminal when not given.

    Returns:
        What was written, what to do with it, and how far its picture is from the run's own.

    Raises:
        UserError: `run` is no finished run, or cannot be exported so; the output is taken or cannot be written; or
            what was written draws another picture. Nothing is left of it then.
    """
    options = options or Options()
    check_options(to, options)
    folder, recipe = open_finished(Path(run))
    output = Path(output) if output else default_output(Path(run), to)
    RunFolder(output).check_free()
    base = load_base(recipe.base)
    _check_base(Path(run), folder, base)
    source = Source(
        name=re.sub(r"[^\w.+-]+", "-", Path(run).resolve().name.removesuffix(".safetensors")).strip("-.") or "run",
        folder=folder.path,
        base=base,
        embeddings=learned_tokens(folder, recipe, base),
        adapters={file.parent.name: file.parent for file in folder.path.glob("adapter/*/adapter_config.json")},
        recipe=recipe,
        prompt=f"a photo of a {subject_phrase(recipe.token, recipe.data)}",
        load_pipeline=load_pipeline,
    )
    return write_export(source, find_format(to), options, output, display or terminal_display())


def _check_base(run: Path, folder: RunFolder, base: Base) -> None:
    """What was tuned fits the base it was tuned on; with another under its name, an export would be of neither."""
    trained_on = str(folder.facts.get("base", {}).get("sha256", ""))
    if trained_on != base.content_hash:
        raise UserError(
            f"run {run} was trained on base {base.source!r} of sha256 {trained_on[:12]}, and there it is "
            f"{base.content_hash[:12]} now; get the base it was trained on, or train anew"
        )
