"""Checkpoint files into memory, with no network and no pickle.

Two stages: :func:`prepare` reads the index, builds the models without memory and checks every
name and shape, so that a bad file is known before anything resident is given up for it;
:meth:`Prepared.load` then reads the weights.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from farm.errors import CheckpointError
from farm.worker.memory.pictures import vae_dtype
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.architecture import Architecture, read_config
from farm.worker.models.betas import alphas_cumprod
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.offload import window_bytes
from farm.worker.models.origin import origin_of
from farm.worker.models.parts import Part, parts_of
from farm.worker.models.plan import PartPlan
from farm.worker.models.prediction import PREDICTIONS, measured_prediction
from farm.worker.models.preview import read_decoder
from farm.worker.models.reader import Readers, Turn, check_unchanged
from farm.worker.models.sharing import shared
from farm.worker.models.vae import external_vae

Fetched: TypeAlias = Mapping[str, nn.Module]
"""A checkpoint's models in host memory, by part."""


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that was checked and can be loaded.

    Attributes:
        prediction: ``epsilon`` or ``v_prediction``; None where only the weights can tell.
        seconds: what the checks took.
        streams: whether its UNet and text encoders stay in host memory.
        tiny: the file of a TAESD decoder that makes its pictures.
        saved: see :class:`farm.worker.models.decoder.Decoder`.
    """

    file: AssetFile
    architecture: Architecture
    prediction: str | None
    alphas_cumprod: list[float]
    plans: tuple[PartPlan, ...]
    profile: MemoryProfile
    device: torch.device
    seconds: float
    streams: bool = False
    tiny: Path | None = None
    saved: Counter[torch.dtype] = field(default_factory=Counter)

    @property
    def vae_marks(self) -> object:
        """What its VAE was read from; another one has others."""
        plan = next(plan for plan in self.plans if plan.part.name == "vae")
        return tuple((each.header.path, each.header.identity) for each in plan.sources)

    @property
    def bytes(self) -> int:
        """Memory it will take on the device."""
        return sum(map(self._held, self.plans))

    @property
    def weights(self) -> Mapping[str, int]:
        """Bytes of all its weights by part, wherever they will be."""
        return {plan.part.name: plan.bytes for plan in self.plans}

    @property
    def may_stream(self) -> bool:
        """Whether :meth:`streamed` would take less of the device."""
        return not self.streams and self.device.type != "cpu"

    def streamed(self) -> Prepared:
        """The same, with its UNet and text encoders in host memory."""
        return replace(self, plans=tuple(_at_home(plan) for plan in self.plans), streams=True)

    def _held(self, plan: PartPlan) -> int:
        if not self.streams or plan.part.name == "vae":
            return plan.bytes if plan.device == self.device else 0
        if plan.part.name != "unet":
            return 0
        return window_bytes(plan.module, plan.dtype.itemsize)

    def fetch(self, turn: Turn = nullcontext) -> Fetched:
        """Read the weights into host memory; raises as :func:`load` does.

        Args:
            turn: see :class:`farm.worker.models.reader.Readers`.
        """
        plans = [replace(plan, device=torch.device("cpu")) for plan in self.plans]
        with torch.inference_mode(mode=False), Readers(turn) as readers:
            modules = {name: built() for name, built in _begun(plans, readers)}
        self._check_unchanged()
        return modules

    def load(
        self,
        held: Sequence[nn.Module] = (),
        *,
        fetched: Fetched | None = None,
        turn: Turn = nullcontext,
    ) -> Checkpoint:
        """Have the weights on the device; raises as :func:`load` does.

        Args:
            held: models already on the device; one that proves equal is used instead.
            fetched: the weights, if they are in host memory; otherwise they are read.
            turn: see :class:`farm.worker.models.reader.Readers`; what it raises ends the load.
        """
        started = time.perf_counter()
        with torch.inference_mode(mode=False):
            if fetched is None:
                modules = self.modules(held, turn)
            else:
                modules = self._moved(fetched, held, turn)
        checkpoint = Checkpoint(
            self.file.name,
            modules,
            family=self.architecture.family,
            prediction=self.prediction or "epsilon",
            alphas_cumprod=self.alphas_cumprod,
            profile=self.profile,
            device=self.device,
            load_seconds=self.seconds + time.perf_counter() - started,
            streams=self.streams,
            tiny=read_decoder(self.tiny, self.device) if self.tiny else None,
            marks=self.file.marks,
            saved=self.saved,
        )
        if self.prediction is None:
            checkpoint.prediction = measured_prediction(checkpoint)
        return checkpoint

    def modules(
        self, held: Sequence[nn.Module] = (), turn: Turn = nullcontext
    ) -> dict[str, nn.Module]:
        """The weights from disk, on the device, by part."""
        with Readers(turn) as readers:
            modules = {name: shared(built(), held) for name, built in _begun(self.plans, readers)}
        self._check_unchanged()
        return modules

    def _moved(
        self, fetched: Fetched, held: Sequence[nn.Module], turn: Turn
    ) -> dict[str, nn.Module]:
        homes = {plan.part.name: plan.device for plan in self.plans}
        modules = {}
        for name, module in fetched.items():
            with turn():
                modules[name] = shared(nn.Module.to(module, homes[name]), held)
        return modules

    def _check_unchanged(self) -> None:
        for plan in self.plans:
            for source in plan.sources:
                check_unchanged(source.header)


def _begun(
    plans: Sequence[PartPlan], readers: Readers
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Each is built while the next is read, the largest first, so that little is left to do when
    all is read."""
    order = sorted(plans, key=lambda plan: plan.bytes, reverse=True)
    return [(plan.part.name, plan.begin(readers)) for plan in order]


def load(file: AssetFile, profile: MemoryProfile, device: torch.device) -> Checkpoint:
    """Read ``file`` onto ``device`` in the profile's precision.

    Raises:
        CheckpointError: the file is damaged, incomplete, of an unsupported kind, or changed
            while it was read.
    """
    return prepare(file, profile, device).load()


def prepare(
    file: AssetFile,
    profile: MemoryProfile,
    device: torch.device,
    *,
    vae: Path | None = None,
    tiny: Path | None = None,
) -> Prepared:
    """Check ``file`` from its index and configs alone; raises :class:`CheckpointError`.

    Args:
        vae: the VAE file to load instead of the checkpoint's own; by default the one that lies
            beside it, see :func:`external_vae`.
        tiny: the file of a TAESD decoder to make pictures by, as the profile may want.
    """
    started = time.perf_counter()
    if file.error is not None:
        raise CheckpointError(file.error, field="checkpoint", value=file.name)
    origin = origin_of(file.path, vae or external_vae(file.path))
    scheduler = read_config(origin.configs / "scheduler" / "scheduler_config.json")
    plans = tuple(
        origin.plan(part, *_placement(part, profile, device))
        for part in parts_of(origin.architecture.family)
    )
    for plan in plans:
        plan.check()
    prepared = Prepared(
        file=file,
        architecture=origin.architecture,
        prediction=_prediction(origin.architecture, scheduler),
        alphas_cumprod=alphas_cumprod(scheduler, zero_snr=origin.architecture.zero_snr),
        plans=plans,
        profile=profile,
        device=device,
        seconds=time.perf_counter() - started,
        tiny=tiny,
    )
    too_large = profile.offload == "streamed" and prepared.bytes > profile.weights_bytes
    return prepared.streamed() if too_large else prepared


def _prediction(architecture: Architecture, scheduler: Mapping[str, Any]) -> str | None:
    """What the file says, then what its config says. SD2's own says nothing: there were both."""
    said = architecture.prediction or scheduler.get("prediction_type")
    if said is None and architecture.family != "sd2":
        return "epsilon"
    if said not in (*PREDICTIONS, None):
        raise CheckpointError(
            f"The scheduler config says that the model predicts {said!r}.",
            field="checkpoint",
            value=said,
            remedy=f"This version knows {' and '.join(PREDICTIONS)}.",
        )
    return said


def _placement(
    part: Part, profile: MemoryProfile, device: torch.device
) -> tuple[torch.dtype, torch.device]:
    """Where the part's weights live; offloaded text encoders wait in host memory."""
    own = vae_dtype(profile) if part.name == "vae" else profile.dtype
    offloaded = profile.offload != "none" and part.name.startswith("text_encoder")
    return getattr(torch, own), torch.device("cpu") if offloaded else device


def _at_home(plan: PartPlan) -> PartPlan:
    """All but the VAE of a streamed checkpoint is read into host memory."""
    return plan if plan.part.name == "vae" else replace(plan, device=torch.device("cpu"))
