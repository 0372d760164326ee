"""A training course planned in minutes: learning rate, averaged weights, log, save and resume."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVE_SECONDS, LOG_STEPS = 180, 50
COLUMNS = ("step", "seconds", "loss", "error", "plain", "recoloured", "pair", "small")
"""Of the log; a stage leaves some empty."""


def together(work: Callable[[int], None], workers: int = 1) -> None:
    """Run ``work(0)`` to its end, and beside it ``work(1)`` and so on, each in its own process.

    Forked from here, so that they share what is in shared memory. Torch's gradients do not work in
    a process forked from one that has used them, so this one never should.

    Raises:
        RuntimeError: the first process failed.
    """
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(n,), daemon=True) for n in range(workers)]
    for process in processes:
        process.start()
    processes[0].join()
    for process in processes[1:]:
        process.terminate()
        process.join()
    if processes[0].exitcode:
        raise RuntimeError("Training failed; what it wrote above says why.")


class Course:
    """Trains ``modules`` until the minutes are spent.

    Killed and started again with the same folder and name, it goes on from the last save. Started
    with other ``minutes`` it plans the rest anew.

    Several processes may train modules in shared memory at once, each at its own pace and without
    locks (https://arxiv.org/abs/1106.5730): small networks use one core well and two badly.

    Args:
        modules: what learns, by name.
        folder: where ``<name>.pt`` and ``<name>.csv`` are kept.
        minutes: how long, in all. On a CPU in processor time of this process: on a busy machine
            the course takes longer and teaches the same. On a GPU, which has no such clock, by
            the one on the wall.
        rate: the learning rate after warming up; falls as a cosine to a thirtieth.
        slowness: share of the averaged weights that a step keeps, at most.
        leads: whether this process is the one that averages, logs and saves.
    """

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        folder: Path,
        *,
        minutes: float,
        rate: float,
        slowness: float,
        leads: bool = True,
    ) -> None:
        self.leads, self._parent = leads, multiprocessing.parent_process()
        self.name, self.folder, self.modules = name, folder, modules
        self._minutes, self._rate, self._slowness = minutes, rate, slowness
        self.weights = {
            f"{part}.{key}": weight
            for part, module in modules.items()
            for key, weight in module.named_parameters()
        }
        self._averages = {key: weight.detach().clone() for key, weight in self.weights.items()}
        self._optimiser = torch.optim.AdamW(
            self.weights.values(), lr=rate, betas=(0.9, 0.99), weight_decay=0, fused=True
        )
        self.step, self._spent, self._logged = 0, 0.0, []
        self._resume()
        on_cpu = all(weight.device.type == "cpu" for weight in self.weights.values())
        self._clock = time.process_time if on_cpu else time.monotonic
        self._since, self._saved = self._clock() - self._spent, self._spent

    @property
    def progress(self) -> float:
        """Spent part of the minutes, from 0 to 1."""
        return min(1.0, self._spent / (60 * self._minutes))

    def run(
        self, losses: Callable[[], dict[str, Tensor]], after_save: Callable[[], None] | None = None
    ) -> None:
        """Take steps. ``losses`` returns ``loss``, which is followed, and others, to be logged."""
        while self.progress < 1:
            self._set_rate()
            found = losses()
            self._optimiser.zero_grad(set_to_none=True)
            found["loss"].backward()
            nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
            self._optimiser.step()
            self.step += 1
            self._spent = self._clock() - self._since
            if self._parent is not None and not self._parent.is_alive():
                return  # whoever waits for this process was killed
            if not self.leads:
                continue
            self._average()
            self._log({key: value.item() for key, value in found.items()})
            if self._spent - self._saved > SAVE_SECONDS:
                self._saved = self._spent
                self.save()
                if after_save:
                    after_save()
        if self.leads:
            self.save()

    def save(self) -> None:
        """Write everything that is needed to go on."""
        state = {
            "weights": {key: weight.detach() for key, weight in self.weights.items()},
            "averages": self._averages,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "spent": self._spent,
            "noise": torch.get_rng_state(),
        }
        unfinished = self._file.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, self._file)

    def put_averages(self, modules: dict[str, nn.Module]) -> None:
        """Put the averaged weights into ``modules``, named as those that are trained."""
        with torch.no_grad():
            for part, module in modules.items():
                for key, weight in module.named_parameters():
                    weight.copy_(self._averages[f"{part}.{key}"])

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def _resume(self) -> None:
        if not self._file.exists():
            return
        state: Any = torch.load(self._file, weights_only=True, map_location="cpu")
        with torch.no_grad():
            for key, weight in self.weights.items():
                if self.leads:
                    weight.copy_(state["weights"][key])
                self._averages[key].copy_(state["averages"][key])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self._spent = state["step"], state["spent"]
        torch.set_rng_state(state["noise"])

    def _set_rate(self) -> None:
        falling = 0.03 + 0.97 * (1 + math.cos(math.pi * self.progress)) / 2
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * min(1, (self.step + 1) / 100) * falling

    def _average(self) -> None:
        kept = min(self._slowness, 1 - 1 / (self.step / 10 + 1))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._averages.values()), list(self.weights.values()), 1 - kept
            )

    def _log(self, values: dict[str, float]) -> None:
        self._logged.append(values)
        if self.step % LOG_STEPS:
            return
        row: dict[str, Any] = {"step": self.step, "seconds": round(self._spent)}
        for key in COLUMNS[2:]:
            found = [values[key] for values in self._logged if key in values]
            row[key] = f"{sum(found) / len(found):.5f}" if found else ""
        path = self.folder / f"{self.name}.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(self.name, row, flush=True)
        self._logged = []
