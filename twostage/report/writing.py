"""Build a report: from folders of runs to the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from twostage.errors import UserError, without_secrets
from twostage.report import page, tables
from twostage.report.formats import plural
from twostage.report.gallery import choose
from twostage.report.pooling import Pool
from twostage.report.reading import Run, Skipped, read_runs
from twostage.report.verdict import Verdict, verdict
from twostage.writing import whole_file


def build(
    folders: Sequence[Path], output: Path, *, title: str = "", command: str = "", notes: Sequence[str] = ()
) -> Path:
    """The report of all evaluated runs in the folders.

    Args:
        folders: run folders, comparisons, or folders of those.
        output: the HTML file; report.md, .json and .csv of the same name come beside it.
        title: what the runs say themselves when not given.
        command: what repeats it.
        notes: what else readers must know.

    Returns:
        `output`.

    Raises:
        UserError: it cannot be written, or there is no evaluated run.
    """
    check_output(output)
    runs, skipped = read_runs(folders)
    write(runs, skipped, output, title=title, command=command, notes=notes)
    return output


def check_output(output: Path) -> None:
    """Whether the report can be written there, before any work.

    Raises:
        UserError: it cannot.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"the report {output} must end in .html; Markdown, JSON and CSV come beside it")
    if os.path.isdir(output):
        raise UserError(f"the report {output} is a folder; name a file in it, such as {output / 'report.html'}")
    # Asked of the folder that is there, so that a mistake found later leaves no empty folders behind.
    there = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    with _telling(output):
        probe = there / f".{output.name}.{os.getpid()}"
        probe.touch()
        probe.unlink()


def write(
    runs: Sequence[Run],
    skipped: Sequence[Skipped],
    output: Path,
    *,
    title: str = "",
    command: str = "",
    notes: Sequence[str] = (),
) -> Verdict:
    """Write the report of runs that were read.

    Returns:
        What it says in words.

    Raises:
        UserError: there is no run, or a file cannot be written; what was there before is then still whole.
    """
    if not runs:
        why = f": {skipped[0].folder}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"there is no evaluated run to report{why}")
    command = without_secrets(command)
    pool = Pool(runs)
    judged = verdict(pool)
    title = title or default_title(pool)
    beside = output.parent
    data = tables.json_data(title, pool, judged, skipped, notes, command, beside)
    context = page.context(title, pool, judged, choose(pool), skipped, notes, command, beside)
    _put(output, lambda file: file.writelines(page.render(context)))
    text = tables.markdown(title, pool, judged, skipped, notes, command)
    _put(output.with_suffix(".md"), lambda file: file.write(text))
    _put(output.with_suffix(".json"), lambda file: json.dump(data, file, indent=1, allow_nan=False))
    _put(output.with_suffix(".csv"), lambda file: file.write(tables.csv_text(pool, beside)))
    return judged


def default_title(pool: Pool) -> str:
    """What is compared, on what."""
    on = pool.subjects[0] if len(pool.subjects) == 1 else plural(len(pool.subjects), "subject")
    if len(pool.strategies) == 1:
        return f"{pool.strategies[0]} on {on}"
    return f"{plural(len(pool.strategies), 'strategy', 'strategies')} on {on}"


def _put(path: Path, write_to: Callable[[TextIO], object]) -> None:
    with (
        whole_file(path) as temporary,
        # The name of a run's folder may be no text.
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        write_to(file)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the report {path}: {error.strerror or error}; choose another place with -o"
        ) from error
