"""How many CPU cores this process may really use."""

import os
from collections.abc import Iterable
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def thread_count() -> int:
    """Threads for compute: physical cores among those allowed, within a container's quota. At least 1.

    Two hyper-threads of a core share its arithmetic units, so a second thread there only adds waiting.
    """
    allowed = _allowed_cpus()
    cores = _physical_cores(allowed)
    quota = _quota()
    return max(1, cores if quota is None else min(cores, quota))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> int:
    """Distinct cores among ``cpus``; where the system does not tell, every CPU counts."""

    def core_of(cpu: int) -> str:
        try:
            return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            return str(cpu)

    return len({core_of(cpu) for cpu in cpus})


def _quota(file: Path = _CGROUP_QUOTA) -> int | None:
    """Whole CPUs that the control group grants (``cpu.max`` holds quota and period); None without a limit."""
    try:
        quota, period = file.read_text(encoding="ascii").split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
