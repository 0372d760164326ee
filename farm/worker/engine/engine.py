"""The engine as others see it: jobs go in, images come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from threading import Lock
from time import monotonic
from typing import Self
from weakref import WeakValueDictionary

import torch

from farm.errors import Conflict, Unavailable
from farm.spec.job import JobSpec
from farm.worker.accountant import Accountant
from farm.worker.engine.calibration import Calibrated, Size
from farm.worker.engine.core import Core
from farm.worker.engine.job import Job
from farm.worker.engine.loop import Loop
from farm.worker.engine.pulse import Activity, Counters, Heartbeat
from farm.worker.engine.reports import OnPreview, Progress
from farm.worker.engine.stats import Rendered
from farm.worker.engine.timeline import Timeline
from farm.worker.memory.experience import Experience
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile

STOP_GRACE_SECONDS = 10.0


class Engine:
    """Renders jobs; they join and leave between any two steps of the others.

    Every method may be called from any thread. ``with Engine(...) as engine:`` starts and stops
    it.

    Args:
        models: the checkpoints of this device.
        profile: how many rows share a forward, and in what shapes.
        device: where everything runs.
        assets: LoRAs and embeddings that prompts may name.
        on_progress: called on the engine's thread with (key, steps done, steps) a few times a
            second for each job; it must be quick.
        watched: whether anybody looks at the job of a key; asked on the engine's thread.
        on_preview: then called with (key, steps done, steps, picture), the picture a small
            [h, w, 3] uint8 tensor on the CPU; it must be quick.
        on_lost: called on the engine's thread when the device is of no more use to this process.
            Jobs get no answer before it returns; a worker ends its process instead.
        accountant: told where the device's time goes.
        experience: what calls were measured to take on this kind of device, and where to tell it.
    """

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        device: torch.device,
        *,
        assets: Iterable[AssetFile] = (),
        on_progress: Progress | None = None,
        watched: Callable[[str], bool] = lambda _: False,
        on_preview: OnPreview | None = None,
        on_lost: Callable[[BaseException], None] = lambda _: None,
        accountant: Accountant | None = None,
        experience: Experience | None = None,
    ) -> None:
        self._core = Core(
            models,
            profile,
            device,
            assets=assets,
            on_progress=on_progress,
            watched=watched,
            on_preview=on_preview,
            accountant=accountant,
            experience=experience,
        )
        self._loop = Loop(self._core, device, on_lost=on_lost, closed=self._close)
        self._futures: WeakValueDictionary[str, Future[Rendered]] = WeakValueDictionary()
        self._orders = count()
        self._lock = Lock()
        self._closed = False

    def start(self) -> None:
        """Begin work, on jobs submitted before too."""
        self._loop.start()

    def stop(self, timeout: float = 0.0) -> bool:
        """Take no more jobs, go on for at most ``timeout`` seconds, and end.

        Jobs that are not done by then end with :class:`farm.errors.Unavailable`.

        Returns:
            Whether the thread has ended; False if one call on the device does not return.
        """
        with self._lock:
            self._closed = True
            self._loop.end(monotonic() + timeout)
        if not self._loop.begun:
            self._loop.start()
        self._loop.join(timeout + STOP_GRACE_SECONDS)
        return not self._loop.alive

    def submit(self, key: str, spec: JobSpec, *, rank: int = 1) -> Future[Rendered]:
        """Queue a job behind those that are here.

        Args:
            rank: a job of a higher rank goes before all lower ones, from the next step on; they
                stand where they are until it is done.

        Returns:
            A future of its image. It raises :class:`farm.errors.CheckpointError`,
            ``DoesNotFit``, ``NumericFailure``, ``Cancelled`` or ``Unavailable``. Its own
            ``cancel`` does nothing: use :meth:`cancel`.

        Raises:
            Conflict: a job of this key is still running.
            Unavailable: the engine was stopped.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("The engine was stopped.", remedy="Send the job elsewhere.")
            known = self._futures.get(key)
            if known is not None and not known.done():
                raise Conflict(
                    f"Job {key!r} is already running here.",
                    field="key",
                    value=key,
                    remedy="Wait for it, or cancel it first.",
                )
            job = Job(key, spec, next(self._orders), rank)
            self._futures[key] = job.future
            self._loop.ask(partial(self._core.jobs.add, job))
        return job.future

    def cancel(self, key: str) -> None:
        """End a job before its next step; one that is not here is not missed."""
        self._loop.ask(partial(self._core.jobs.cancel, key))

    def calibrate(self, checkpoint: str, sizes: Sequence[Size] = ()) -> list[Calibrated]:
        """Measure what calls of a checkpoint take, each between two steps of the jobs under way.

        Blocks until all is measured. On a CPU only seconds can be.

        Args:
            sizes: see :meth:`farm.worker.engine.calibration.Calibration.moments`, which also says
                what this raises.

        Raises:
            Unavailable: the engine was stopped.
        """
        calibration = self._core.calibration
        moments = self._loop.between(partial(calibration.moments, checkpoint, sizes))
        return [self._loop.between(moment) for moment in moments]

    def heartbeat(self) -> Heartbeat:
        """What the engine is doing and since when, for a watchdog."""
        return self._core.pulse.heartbeat

    @property
    def died(self) -> bool:
        """Whether its thread has ended though nobody stopped it: no job will ever end."""
        return self._loop.begun and not (self._loop.alive or self._closed)

    @property
    def timeline(self) -> Timeline:
        """What was done when; others may add what they do beside it."""
        return self._core.pulse.timeline

    @property
    def upscalers(self) -> Mapping[str, int]:
        """Host memory of models that enlarge pictures, in bytes by the path of their file."""
        return self._core.upscales.held

    @property
    def longest(self) -> Mapping[Activity, float]:
        """Seconds that the longest of each activity took so far."""
        return self._core.pulse.longest

    @property
    def counters(self) -> Counters:
        """What it has done in all."""
        return self._core.pulse.counters

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _close(self) -> None:
        """Take no more jobs."""
        with self._lock:
            self._closed = True
