"""The engine for many machines: Ray (the extra "cluster") finds a place for each job, and retries dead workers."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from twostage.comparing.engine import Ended, Work
from twostage.comparing.local import RETRIES
from twostage.errors import UserError

try:
    import ray
except ImportError:
    ray = None


class RayEngine:
    """Jobs as Ray tasks.

    Args:
        address: of the cluster: "auto" or "ray://host:port"; None starts one on this machine.
        workers: tasks at once, where one is started.
        threads: of the CPU that a task asks for; and one GPU, where there are any.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """

    free = 10_000  # What has no place yet waits in Ray.

    def __init__(self, address: str | None, workers: int, threads: int) -> None:
        if ray is None:
            raise UserError(
                "--engine ray needs Ray, which is not installed: pip install 'twostage[cluster]', or leave --engine out"
            )
        # Ray would tell its makers of each start.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **own)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"there is no Ray cluster at {address or 'this machine'}: {reason}") from error
        # A GPU for each task where the cluster has some.
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._do = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_do)
        self._running: dict[Any, str] = {}

    def submit(self, work: Work) -> None:
        """Hand a job over."""
        self._running[self._do.options(name=work.name).remote(work)] = work.name

    def ended(self, timeout: float) -> list[Ended]:
        """Jobs that have ended, within some seconds at most."""
        done, _ = ray.wait(list(self._running), timeout=timeout)
        found = []
        for reference in done:
            name = self._running.pop(reference)
            try:
                found.append(Ended(name, ray.get(reference), None))
            except ray.exceptions.RayTaskError as error:
                found.append(Ended(name, None, error.cause or error))
            except ray.exceptions.TaskCancelledError:
                found.append(Ended(name, None, KeyboardInterrupt()))
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                found.append(Ended(name, None, RuntimeError(f"its worker died too often: {reason}")))
        return found

    def stop(self) -> None:
        """Send a Ctrl-C to each task: those that train save and end at their next step."""
        for reference in self._running:
            ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        with suppress(KeyboardInterrupt):
            ray.shutdown()


def _do(work: Work) -> dict[str, Any]:
    return work.run()
