"""What can be known of a machine without importing torch: versions, driver, memory, places, settings."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.filesize import decimal

from twostage import __version__
from twostage.cache import cache_folder

# Environment variables that change what is computed, where files go, or whether there is a network. No other is read
# for a report, least of all printed.
SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "CC",
    "CXX",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "TWOSTAGE_CACHE",
    "XDG_CACHE_HOME",
    "TMPDIR",
)
_NETWORK = {"nfs", "nfs4", "cifs", "smbfs", "smb3", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs"}
_MEMORY = {"tmpfs", "ramfs"}
# Files of a hub cache that are looked at, at most, on a file system that may be slow.
_MOST_FILES = 100_000


@dataclass(frozen=True)
class Place:
    """A folder that is written to.

    Attributes:
        name: what it is for.
        path: where it is, or will be made.
        used: bytes that lie in it; None where they were not counted.
        free: bytes that its file system has left; None where that is not known.
        kind: of file system, as the system calls it; "" where it does not say.
        fault: why nothing can be written there; "" where it can.
    """

    name: str
    path: Path
    used: int | None
    free: int | None
    kind: str
    fault: str

    @property
    def over_network(self) -> bool:
        """Whether what is written there goes to another machine."""
        return self.kind.lower() in _NETWORK

    @property
    def in_memory(self) -> bool:
        """Whether what is written there takes memory, and is gone after the next start."""
        return self.kind.lower() in _MEMORY


def find_places() -> list[Place]:
    """The caches, the folder for temporary files, and the one that runs are written to unless told otherwise."""
    cache = cache_folder()
    places = [_look_for_place("working folder", Path.cwd), look_at_place("twostage cache", cache, _size(cache))]
    with suppress(ImportError):  # Trials tell of it.
        from huggingface_hub.constants import HF_HUB_CACHE

        places.append(look_at_place("hub cache", Path(HF_HUB_CACHE), _size(Path(HF_HUB_CACHE))))
    return [*places, _look_for_place("temporary files", lambda: Path(tempfile.gettempdir()))]


def _look_for_place(name: str, find: Callable[[], Path]) -> Place:
    try:
        return look_at_place(name, find())
    except OSError as error:  # Deleted meanwhile; or Python has found none that it can write to.
        return Place(name, Path("?"), None, None, "", error.strerror or str(error))


def look_at_place(name: str, path: Path, used: int | None = None) -> Place:
    """What can be known of a folder, whether or not it is there; a file that is made to try it is gone again."""
    there = next((one for one in (path, *path.absolute().parents) if os.path.lexists(one)), path)
    fault, free = "", None
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        fault = error.strerror or str(error)
    with suppress(OSError):
        free = shutil.disk_usage(there).free
    return Place(name, path, used, free, _file_system(there), fault)


def _file_system(path: Path) -> str:
    real = Path(os.path.realpath(path))
    mounts = {Path(partition.mountpoint): partition.fstype for partition in psutil.disk_partitions(all=True)}
    return next((mounts[one] for one in (real, *real.parents) if one in mounts), "")


def _size(folder: Path) -> int | None:
    """Bytes of the files in it, links not followed; None where they are too many to count."""
    total = count = 0
    for where, _, names in os.walk(folder):
        count += len(names)
        if count > _MOST_FILES:
            return None
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # Gone meanwhile.
                continue
    return total


def find_versions() -> dict[str, str]:
    """Of Python, of this package and of what it depends on or may use, as pyproject names it."""
    found = {"twostage": __version__, "python": platform.python_version()}
    for requirement in _requirements():
        try:
            found[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            found[requirement.name] = "not installed"
    return found


def find_unmet() -> dict[str, str]:
    """What is needed and not there, as pip takes it, and the version that is."""
    unmet = {}
    for requirement in _requirements():
        if requirement.marker:
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            there = ""
        if not there or not requirement.specifier.contains(there, prereleases=True):
            unmet[f"{requirement.name}{requirement.specifier}"] = there or "none"
    return unmet


def _requirements() -> list[Requirement]:
    """Without those that only developers need."""
    try:
        lines = distribution("twostage").requires or []
    except PackageNotFoundError:  # Run from its sources.
        return []
    return [found for found in map(Requirement, lines) if 'extra == "dev"' not in str(found.marker)]


def find_driver() -> str:
    """NVIDIA's, and the cards that it sees; "" where there is none."""
    query = ("--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader")
    if command := shutil.which("nvidia-smi"):
        try:
            done = subprocess.run([command, *query], capture_output=True, text=True, timeout=20)
            told = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
            # Some of its complaints go to standard output.
            return told if done.returncode == 0 and told else f"nvidia-smi fails: {_first_line(told or done.stderr)}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"nvidia-smi fails: {_first_line(str(error))}"
    try:
        return _first_line(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return ""


def _first_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[0].split())[:300]


def find_machine() -> dict[str, str]:
    """System, processor, memory and Python, for people. No name of the machine or of its user."""
    memory, limit = psutil.virtual_memory(), memory_limit()
    shown = f"{decimal(memory.available)} free of {decimal(memory.total)}"
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": f"{sys.executable} ({platform.python_implementation()})",
        "twostage": str(Path(__file__).parents[1]),
        "processor": f"{usable_cores()} cores to use of {os.cpu_count()}",
        "memory": shown + (f"; this process may take {decimal(limit)}" if limit and limit < memory.total else ""),
    }


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that a container, a batch system or a service lets this process take, of memory; None where nobody says.

    Args:
        root: where proc and sys are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for _, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        # Within a container, its own group is the top one, by whatever name it goes outside.
        inner = root / "sys/fs/cgroup" / top
        for folder in {inner, *_between(inner, inner / path.strip("/"))}:
            try:
                said = (folder / file).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if re.fullmatch(r"\d+", said) and int(said) < 1 << 60:
                limits.append(int(said))
    return min(limits, default=None)


def _between(top: Path, folder: Path) -> list[Path]:
    return [one for one in (folder, *folder.parents) if one.is_relative_to(top)]


def find_settings() -> dict[str, str]:
    """What `SETTINGS` are set to, those that are."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}
