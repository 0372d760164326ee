"""Finds this machine's devices and runs one worker process for each. Never imports torch."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from farm.errors import InvalidInput, SetupError
from farm.supervisor import Process, Supervisor

_MIB = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What one worker holds.

    Attributes:
        name: the worker's name: ``gpu0``, ``cpu0``; ``gpu0-1`` for an instance of a divided card.
        uuid: ``GPU-...``, ``MIG-...`` or ``cpu``.
        index: the driver's number for it, as in nvidia-smi.
        total_bytes: its memory; for the CPU the machine's.
        model: what the maker calls it.
    """

    name: str
    uuid: str
    index: int
    total_bytes: int
    model: str


def discover(selection: str = "auto") -> list[Device]:
    """The devices that ``selection`` names.

    Args:
        selection: ``all`` GPUs, some by number (``0,2``), ``cpu``, or ``auto``: all GPUs, and
            the CPU where there is none. CUDA_VISIBLE_DEVICES limits ``all`` and ``auto``.
    Raises:
        InvalidInput: a number that no GPU has, or not a selection at all.
        SetupError: GPUs were asked for, and there is none or no driver.
    """
    if selection == "cpu":
        return [cpu()]
    if selection == "auto":
        try:
            return visible(gpus(), os.environ) or [cpu()]
        except SetupError as error:
            _log.info("no GPU will be used: %s", error.message)
            return [cpu()]
    if selection == "all":
        if found := visible(gpus(), os.environ):
            return found
        raise SetupError(
            "CUDA_VISIBLE_DEVICES hides every GPU.",
            field="CUDA_VISIBLE_DEVICES",
            value=os.environ.get("CUDA_VISIBLE_DEVICES"),
            remedy="Unset it, or use --gpus cpu.",
        )
    return _numbered(selection)


def cpu(index: int = 0) -> Device:
    """The CPU; several workers may share it under different numbers."""
    return Device(f"cpu{index}", "cpu", index, psutil.virtual_memory().total, "CPU")


def gpus() -> list[Device]:
    """Every NVIDIA GPU, in the driver's order.

    Raises:
        SetupError: there is none, or no driver.
    """
    try:
        found = _ask_nvml(importlib.import_module("pynvml"))
    except ImportError:
        found = _ask_nvidia_smi()
    if not found:
        raise _no_gpu("The driver knows no GPU")
    return found


def visible(found: Sequence[Device], environment: Mapping[str, str]) -> list[Device]:
    """Those of ``found`` that CUDA_VISIBLE_DEVICES shows, in its order."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(found)
    chosen = []
    for entry in (part.strip() for part in listed.split(",")):
        match = [
            device
            for device in found
            if entry == str(device.index)
            or (entry.startswith(("GPU-", "MIG-")) and device.uuid.startswith(entry))
        ]
        if not match:  # CUDA ignores what follows an unknown entry, "-1" for one
            break
        chosen += match[:1]
    return chosen


def process(device: Device, *, grace: float, env: Mapping[str, str] | None = None) -> Process:
    """The worker process of a device.

    Args:
        grace: seconds it has to end after SIGTERM.
        env: added to its environment.
    """
    told = {
        "FARM_WORKER_NAME": device.name,
        "FARM_DEVICE": device.uuid,
        # By UUID: a number may mean another card to CUDA than to the driver.
        "CUDA_VISIBLE_DEVICES": "" if device.uuid == "cpu" else device.uuid,
    }
    argv = [sys.executable, "-m", "farm.worker"]
    return Process(device.name, argv, {**(env or {}), **told}, grace=grace)


def launch(devices: Sequence[Device], *, grace: float) -> None:
    """Run one worker for each device, restarting what dies, until SIGTERM or Ctrl-C."""
    supervisor = Supervisor(None)
    with supervisor.signals():
        try:
            supervisor.start(*(process(device, grace=grace) for device in devices))
            supervisor.run()
        finally:
            supervisor.stop()


def _numbered(selection: str) -> list[Device]:
    numbers = [part.strip() for part in selection.split(",")]
    if not all(part.isdecimal() for part in numbers):
        raise InvalidInput(
            f"gpus: {selection!r} is not a selection of GPUs.",
            field="gpus",
            value=selection,
            remedy="Use all, auto, cpu, or numbers such as 0,2.",
        )
    found = gpus()
    there = dict.fromkeys(str(device.index) for device in found)
    for number in numbers:
        if number not in there:
            raise InvalidInput(
                f"gpus: there is no GPU {number}; this machine has {', '.join(there)}.",
                field="gpus",
                value=selection,
                remedy="Choose among those, as nvidia-smi numbers them.",
            )
    wanted = dict.fromkeys(numbers)
    return [device for number in wanted for device in found if str(device.index) == number]


def _ask_nvml(nvml: Any) -> list[Device]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _no_gpu(f"The NVIDIA driver does not answer ({error})") from None
    try:
        return [
            device for index in range(nvml.nvmlDeviceGetCount()) for device in _devices(nvml, index)
        ]
    except nvml.NVMLError as error:
        raise _no_gpu(f"The NVIDIA driver failed ({error})") from None
    finally:
        nvml.nvmlShutdown()


def _devices(nvml: Any, index: int) -> list[Device]:
    """A card, or the instances that it is divided into (MIG): CUDA shows a process one of them."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        divided = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:  # most cards cannot be
        divided = False
    if not divided:
        return [_device(nvml, handle, f"gpu{index}", index)]
    found = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # places may be empty
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            found.append(_device(nvml, part, f"gpu{index}-{place}", index))
    return found


def _device(nvml: Any, handle: Any, name: str, index: int) -> Device:
    try:
        total = nvml.nvmlDeviceGetMemoryInfo(handle).total
    except nvml.NVMLError_NotSupported:  # it shares the machine's memory
        total = psutil.virtual_memory().total
    return Device(
        name,
        nvml.nvmlDeviceGetUUID(handle),
        index,
        total,
        nvml.nvmlDeviceGetName(handle),
    )


def _ask_nvidia_smi() -> list[Device]:
    query = [
        "nvidia-smi",
        "--query-gpu=index,uuid,memory.total,name",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except FileNotFoundError:
        raise _no_gpu("There is no NVIDIA driver (nvidia-smi is not installed)") from None
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stdout", None) or str(error)).strip()
        raise _no_gpu(f"nvidia-smi failed ({why})") from None
    rows = [[part.strip() for part in line.split(",", 3)] for line in answer.stdout.splitlines()]
    return [
        Device(f"gpu{index}", uuid, int(index), _bytes(mib), model)
        for index, uuid, mib, model in rows
    ]


def _bytes(mib: str) -> int:
    # "[N/A]" where the card shares the machine's memory
    return int(mib) * _MIB if mib.isdecimal() else psutil.virtual_memory().total


def _no_gpu(why: str) -> SetupError:
    return SetupError(
        f"{why}.",
        field="gpus",
        remedy="Install or repair the driver until nvidia-smi lists the card, or use --gpus cpu.",
    )
