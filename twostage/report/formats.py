"""Numbers as people read them."""

from __future__ import annotations

from twostage.report.pooling import MANY, Estimate

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Three decimals, as in the tables of the field's papers: 0.668; a dash for None."""
    if value is None:
        return DASH
    # Less than 5e-6 is what float32 leaves of a 0.
    if 5e-6 < abs(value) < 0.0005:
        return f"{value:.0e}".replace("-", MINUS)
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}").replace("-0.000", "0.000").replace("-", MINUS)


def signed(value: float) -> str:
    """With its sign always: +0.05."""
    return ("+" if value > 0 else "") + number(value)


def interval(found: Estimate, sign: bool = False) -> str:
    """`0.66 to 0.75`, or nothing where there is none."""
    if found.low is None or found.high is None:
        return ""
    show = signed if sign else number
    return f"{show(found.low)} to {show(found.high)}"


def seconds(value: float) -> str:
    """8.2 s, 55 s, 3 min 20 s, 2 h 5 min."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: float) -> str:
    """3 kB, 43.8 MB, 3.4 GB; powers of ten."""
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def cost(name: str, value: float) -> str:
    """A cost in its unit."""
    return seconds(value) if name == "train_seconds" else size(value)


def listed(names: list[str], last: str = "and") -> str:
    """a, b and c; of very many the first ones, and how many more."""
    if len(names) > MANY:
        names = [*names[:MANY], f"{len(names) - MANY} more"]
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def plural(count: int, noun: str, many: str = "") -> str:
    """1 run, 2 runs."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"
