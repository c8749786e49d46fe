"""Recipes x settings x subjects x seeds: each trained and evaluated, shared work done once, and a report of it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twostage.comparing.plan import plan_cells, plan_variants
from twostage.comparing.request import Budget, ComparedSubject, Machine, Request
from twostage.display import Display

__all__ = ["Budget", "ComparedSubject", "Comparison", "Machine", "Request", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """One strategy in short: cells of a table by their headings, and of how many runs they are."""

    strategy: str
    cells: dict[str, str]
    runs: int


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        root: its folder or address.
        runs: names of its runs, below runs/.
        report: the HTML file; None where nothing could be evaluated.
        rows: of the table to show at the end, best first.
        failed: jobs that failed, or waited for one that did, and why.
    """

    root: str
    runs: tuple[str, ...]
    report: str | None
    rows: tuple[Row, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


def compare(
    request: Request,
    output: str | Path,
    *,
    machine: Machine | None = None,
    command: str = "",
    display: Display | None = None,
) -> Comparison:
    """Train and evaluate every recipe, setting, subject and seed of a request, or go on with that.

    Workers are processes of their own, spawned: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        request: what is compared.
        output: folder, or an address that fsspec knows. One that holds part of the same comparison is gone on with:
            what is finished stays, and the result is that of an unbroken one.
        machine: where it runs.
        command: what repeats it, for the report.
        display: where progress is shown; the terminal when not given.

    Raises:
        UserError: something is wrong with the request, its photos, the output or the engine; nothing has been begun.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; what is finished is kept.
    """
    cells = plan_cells(request, plan_variants(request))  # Before torch is imported: most mistakes are found here.
    from twostage.comparing import comparison

    return comparison.run(request, cells, str(output), machine or Machine(), command, display)
