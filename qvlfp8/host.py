"""The machine that this process runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from qvlfp8.environments import Device
from qvlfp8.results import Host


def this_host() -> Host:
    """What a record says of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Host(
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        memory_gb=round(memory, 1),
    )


def devices() -> frozenset[Device]:
    """What steps of this machine can run on."""
    return frozenset({"cpu", "cuda"}) if Path("/dev/nvidiactl").exists() else frozenset({"cpu"})


def default_jobs(host: Host) -> int:
    """How many workers run at once: one a CPU, as long as each has 3 GB of memory."""
    return max(1, min(host.cpus, int(host.memory_gb // 3)))
