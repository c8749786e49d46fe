"""The process in which things are tried: `python -m twostage.doctor.child KEY ...`, a line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from twostage.doctor.attempts import Absent, Told, Untried, Wrong
from twostage.doctor.trials import TRIALS, Trial
from twostage.errors import UserError

# What libraries raise where they do not go with each other. Anything else ends the process, which is told as well.
_RAISED = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    MemoryError,
)


def main(keys: Sequence[str]) -> None:
    """Try them one after the other."""
    # Libraries print what they like, to stdout too; the answers go where nobody else writes.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    by_key = {trial.key: trial for trial in TRIALS}
    for key in keys:
        started = time.perf_counter()
        outcome, told = _try(by_key[key])
        _tell(answers, key=key, outcome=outcome, seconds=time.perf_counter() - started, told=told)


def _try(trial: Trial) -> tuple[str, Told]:
    try:
        return "works", trial.run()
    except Absent as error:
        return "absent", {"says": _line(error)}
    except Untried as error:
        return "not tried", {"says": _line(error)}
    except (Wrong, UserError) as error:
        return "fails", {"says": _line(error)}
    except _RAISED as error:
        return "fails", {"says": f"{type(error).__name__}: {_line(error)}"}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _tell(answers: TextIO, **what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
