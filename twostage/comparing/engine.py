"""What carries jobs out: on this machine, or on a cluster. It takes what can begin, and tells what has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Work:
    """A job as a worker gets it. Its task is loaded there, and torch with it.

    Attributes:
        name: of the job.
        task: has a `run` that returns what there is to tell.
        threads: of the CPU. Sums in another order have other bits, so they are the same wherever it runs.
    """

    name: str
    task: Any
    threads: int

    def run(self) -> dict[str, Any]:
        """Do it, in the process that calls this."""
        import torch

        torch.set_num_threads(self.threads)
        done: dict[str, Any] = self.task.run()
        return done


@dataclass(frozen=True)
class Ended:
    """A job that is over: what it told, or why it failed."""

    name: str
    told: dict[str, Any] | None
    error: BaseException | None


class Engine(Protocol):
    """Carries out jobs."""

    @property
    def free(self) -> int:
        """Jobs that it would take now."""
        ...

    def submit(self, work: Work) -> None:
        """Begin a job."""
        ...

    def ended(self, timeout: float) -> list[Ended]:
        """Jobs that have ended since it was last asked; waits some seconds at most for one."""
        ...

    def stop(self) -> None:
        """Ask what runs to save itself and end."""
        ...

    def close(self) -> None:
        """End everything."""
        ...
