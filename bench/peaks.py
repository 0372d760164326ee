"""Memory that images take, against what was planned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.contenders import Farm
from bench.failures import told_if_it_fails
from bench.workloads import jobs
from farm.worker.memory import profiles
from farm.worker.memory.planner import peak_bytes
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile

CAPPED = (("sd15", 512), ("sdxl", 512), ("sdxl", 1024))
"""Families and sides that peaks are measured of."""


def memory(files: Sequence[AssetFile], device: torch.device, failed: list[str]) -> None:
    """Peaks under the caps of smaller cards, against what the planner said."""
    total = torch.cuda.get_device_properties(device).total_memory
    print("\nprofile   workload           measured    predicted    ratio")
    for name in ("24gb", "12gb", "8gb", "4gb"):
        profile = profiles.by_name(name)
        torch.cuda.set_per_process_memory_fraction(min(1.0, profile.memory_bytes / total))
        for family, side in CAPPED:
            if name != "4gb" or family != "sdxl":
                with told_if_it_fails(f"{family} {side} in {name}", failed):
                    _peak(files, profile, device, (family, side))
    torch.cuda.set_per_process_memory_fraction(1.0)


def _peak(
    files: Sequence[AssetFile],
    profile: MemoryProfile,
    device: torch.device,
    shape: tuple[str, int],
) -> None:
    family, side = shape
    farm = Farm(files, profile, device)
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        made = farm.render(jobs(family, profile.slots, side, steps=3))
        rows = max(made[-1].stats.buckets)
        free, everything = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device)
        context = everything - free - torch.cuda.memory_reserved(device)
        said = peak_bytes(profile, family, side * side, rows)
        measured = peak + context
        print(
            f"{profile.name:9} {family} {side}, {rows:2} rows   {measured / GIB:7.2f} GiB"
            f"   {said / GIB:7.2f} GiB   {said / measured:.3f}"
        )
    finally:
        farm.engine.stop()
