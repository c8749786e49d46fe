"""The verb `export`: a finished run in a format that other programs read."""

from __future__ import annotations

import re
from pathlib import Path

from twostage.display import Display, terminal_display
from twostage.export import Options, Source, check_options, default_output, find_format
from twostage.export.shared.proof import Exported
from twostage.export.shared.proof import export as write_export
from twostage.families import load_base
from twostage.run import load_pipeline, open_finished
from twostage.run_folder import RunFolder
from twostage.subject.captions import subject_phrase
from twostage.subject.tokens import load_embedding


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
    source = Source(
        name=re.sub(r"[^\w.+-]+", "-", Path(run).resolve().name.removesuffix(".safetensors")).strip("-.") or "run",
        folder=folder.path,
        base=load_base(recipe.base),
        embeddings=dict(load_embedding(file) for file in sorted(folder.path.glob("embedding/*.safetensors"))),
        adapters={file.parent.name: file.parent for file in folder.path.glob("adapter/*/adapter_config.json")},
        recipe=recipe,
        prompt=f"a photo of a {subject_phrase(recipe.token, recipe.data)}",
        load_pipeline=load_pipeline,
    )
    return write_export(source, find_format(to), options, output, display or terminal_display())
