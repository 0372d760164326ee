"""Models that enlarge pictures, such as ESRGAN (Wang et al. 2018, arXiv 1809.00219).

spandrel knows what they look like inside; files are opened by Farm's own readers alone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from farm.errors import CheckpointError, UpscalerError
from farm.spec.measurement import Call
from farm.worker.models.calls import name_of
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.header import file_identity, read_header
from farm.worker.models.kinds import SUFFIX, UPSCALER
from farm.worker.models.library import find
from farm.worker.models.pickled import read_pickled
from farm.worker.models.reader import read_tensors

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

CPU = torch.device("cpu")
MAX_BYTES, MAX_SCALE = 2**30, 8
NUMBER_BYTES = 4
FEW, MORE = 64, 4
"""Layers that the names of weights may speak of, and how many more for each weight: some layers
have none."""
DIGITS = 9


class Upscaler:
    """A model in float32 in host memory.

    Attributes:
        scale: how many times as large pictures become.
        bytes: of its weights.
    """

    def __init__(self, model: ImageModelDescriptor[Any]) -> None:
        self._model = model
        self.scale = model.scale
        self.bytes = sum(weight.nbytes for weight in model.model.state_dict().values())

    def bytes_in(self, dtype: torch.dtype) -> int:
        """What its weights take in a precision."""
        weights = self._model.model.state_dict().values()
        return sum(
            weight.numel() * dtype.itemsize if weight.is_floating_point() else weight.nbytes
            for weight in weights
        )

    def call(self, dtype: torch.dtype) -> Call:
        """How its tiles are measured in a precision; of no pixels."""
        mode, family = f"enlarge x{self.scale}", str(self._model.architecture.id)
        numbers = sum(weight.numel() for weight in self._model.model.parameters())
        return Call("decode", family, numbers, name_of(dtype), mode, pixels=0, rows=1)

    def precision(self, wanted: torch.dtype) -> torch.dtype:
        """That, or float32 where the model does not stand it."""
        stands = {
            torch.float16: self._model.supports_half,
            torch.bfloat16: self._model.supports_bfloat16,
        }
        return wanted if stands.get(wanted) else torch.float32

    def placed(self, dtype: torch.dtype, device: torch.device) -> PlacedUpscaler:
        """What to compute with, a copy unless it is there already."""
        there = (dtype, device.type) == (torch.float32, "cpu")
        model = self._model if there else copy.deepcopy(self._model).to(device=device, dtype=dtype)
        return PlacedUpscaler(self, model, dtype, device)


class PlacedUpscaler:
    """A model where it computes.

    Attributes:
        of: what it is a copy of.
        dtype: what it computes in.
        bytes: of its weights.
    """

    def __init__(
        self,
        of: Upscaler,
        model: ImageModelDescriptor[Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.of = of
        self.dtype = dtype
        self.bytes = of.bytes_in(dtype)
        self._model = model
        self._device = device

    def __call__(self, picture: Tensor) -> Tensor:
        """[h, w, 3] uint8 on the CPU to [3, h * scale, w * scale] from 0 to 1 on the device; NaN
        where the precision does not suffice.

        Raises:
            ValueError: the model makes another size.
        """
        pixels = picture.to(self._device).permute(2, 0, 1)[None].to(self.dtype) / 255
        made: Tensor = self._model(pixels)[0]
        expected = (3, *(self.of.scale * side for side in picture.shape[:2]))
        if made.shape != expected:
            raise ValueError(f"it makes {[*made.shape]} of a tile, not {[*expected]}")
        return made


class UpscalerShelf:
    """Upscalers by name, those used last in host memory. Safe with threads; a file that two ask for
    at the same time is read twice.

    Args:
        files: the assets there are, asked anew for each.
        budget_bytes: of host memory.

    Attributes:
        held: bytes of those in memory by the path of their file, the first to go first. Any thread
            may read it.
    """

    def __init__(self, files: Iterable[AssetFile] = (), budget_bytes: int = 2**29) -> None:
        self._files = files
        self._budget = budget_bytes
        self._lock = Lock()
        self._read: OrderedDict[tuple[str, object], Upscaler] = OrderedDict()
        self.held: Mapping[str, int] = {}

    def get(self, name: str) -> Upscaler:
        """The upscaler called ``name``, read again if its file has changed.

        Raises:
            UpscalerError: there is none (those there are are listed), or it is unusable.
        """
        path = find(tuple(self._files), UPSCALER, name).path
        try:
            key = (str(path), file_identity(path.stat()))
        except OSError as error:
            raise _refused(path, f"cannot be read: {error.strerror}") from error
        with self._lock:
            known = self._read.get(key)
        found = known or read_upscaler(path)
        with self._lock:
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[str, object], found: Upscaler) -> None:
        """What was used last, and as much of the others as there is room for."""
        self._read[key] = found
        self._read.move_to_end(key)
        sizes = {known: upscaler.bytes for known, upscaler in self._read.items()}
        for oldest in list(sizes)[:-1]:
            # What a file held before it changed is of no use to anybody.
            if sum(sizes.values()) > self._budget or (oldest[0] == key[0] and oldest != key):
                del self._read[oldest], sizes[oldest]
        self.held = {known: size for (known, _), size in sizes.items()}


def read_upscaler(path: Path) -> Upscaler:
    """Read a model; of a pickle nothing is run, see :func:`read_pickled`.

    Raises:
        UpscalerError: damaged, not finite, or none that enlarges pictures; names the file.
    """
    # It takes as long to import as a small checkpoint to load, and few jobs need it.
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    weights = _weights(path)
    try:
        model = ModelLoader(CPU).load_from_state_dict(weights)
    except UnsupportedModelError as error:
        raise _refused(path, "is of no architecture that Farm knows an upscaler of") from error
    except Exception as error:  # whatever else the tensors of another model lead to
        told = (str(error).splitlines() or [""])[0][:200]
        raise _refused(path, f"does not make a model: {type(error).__name__}: {told}") from error
    if not isinstance(model, ImageModelDescriptor) or model.purpose == "FaceSR":
        raise _refused(path, f"is a model ({model.architecture.name}) that enlarges no pictures")
    channels = model.input_channels, model.output_channels
    if channels != (3, 3):
        takes = f"takes pictures of {channels[0]} channels and makes such of {channels[1]}"
        raise _refused(path, f"{takes}, not 3 of 3")
    if not 1 <= model.scale <= MAX_SCALE:
        raise _refused(path, f"enlarges {model.scale} times, and {MAX_SCALE} is the most")
    model.eval()
    model.model.requires_grad_(False)
    model.model.register_forward_hook(_overflow_as_nan)
    return Upscaler(model)


def _overflow_as_nan(_: nn.Module, __: object, made: object) -> object:
    # spandrel clamps what a model makes to 0..1, after which infinity is black or white.
    return made + made * 0 if isinstance(made, Tensor) else made


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == SUFFIX:
            if path.stat().st_size > MAX_BYTES:
                raise _too_large(path)
            header = read_header(path)
            content = read_tensors(header, header.tensors, dtype=torch.float32, device=CPU)
        else:
            content = read_pickled(path, max_bytes=MAX_BYTES, refused=_refused)
    except UpscalerError:
        raise
    except CheckpointError as error:
        what = f"cannot be used: {error.message}".rstrip(".")
        raise _refused(path, what, error.remedy) from error
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    return _checked(path, content)


def _checked(path: Path, content: Any) -> dict[str, Tensor]:
    """What a file holds, as float32, if it holds the weights of a model."""
    from spandrel import canonicalize_state_dict

    try:
        found = canonicalize_state_dict(dict(content))
        weights = {name: weight for name, weight in found.items() if isinstance(weight, Tensor)}
    except (AttributeError, TypeError, ValueError):  # no names, or no mapping at all
        weights = {}
    if not weights or not all(isinstance(name, str) for name in weights):
        raise _refused(path, "holds no weights of a model")
    strange = [name for name, weight in weights.items() if not _plain(weight)]
    if strange:
        raise _refused(path, f"holds {len(strange)} tensors of no plain numbers, {strange[0]!r}")
    # Nothing is made of one before: a view may say that it is larger than all memory.
    if sum(weight.numel() for weight in weights.values()) * NUMBER_BYTES > MAX_BYTES:
        raise _too_large(path)
    if names := [name for name in weights if _highest(name) > FEW + MORE * len(weights)]:
        raise _refused(path, f"says {names[0][:80]!r}, and holds {len(weights)} tensors only")
    for name, weight in weights.items():
        weights[name] = weight.detach().float() if weight.is_floating_point() else weight.detach()
    broken = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    if broken:
        raise _refused(path, f"holds NaN or infinity in {len(broken)} weights, first {broken[0]}")
    return weights


def _plain(weight: Tensor) -> bool:
    strided = weight.layout == torch.strided and weight.device == CPU
    return strided and not weight.is_complex() and not weight.is_quantized


def _highest(name: str) -> int:
    """The highest number among the parts of a weight's name: so many layers are made for it."""
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return max((int(number[:DIGITS]) for number in numbers), default=0)


def _too_large(path: Path) -> UpscalerError:
    return _refused(path, f"holds more than {MAX_BYTES >> 20} MB in float32", "Use a smaller one.")


def _refused(path: Path, what: str, remedy: str | None = None) -> UpscalerError:
    return UpscalerError(
        f"The upscaler {path.name} ({path}) {what}.",
        field="hires_upscaler",
        value=path.stem,
        remedy=remedy or "Get it again, or use another one.",
    )
