"""Models that enlarge pictures, such as ESRGAN (Wang et al. 2018, arXiv 1809.00219).

spandrel knows what they look like inside; files are opened by Farm's own readers alone.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farm.errors import CheckpointError, UpscalerError
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
        self._model = model
        self._device = device

    def __call__(self, picture: Tensor) -> Tensor:
        """[h, w, 3] uint8 on the CPU to [3, h * scale, w * scale] from 0 to 1 on the device; not
        finite where the precision does not suffice."""
        pixels = picture.to(self._device).permute(2, 0, 1)[None].to(self.dtype) / 255
        made: Tensor = self._model(pixels)[0]
        return made


class UpscalerShelf:
    """Upscalers by name, those used last in host memory. Call it from one thread at a time.

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
        if key not in self._read:
            self._read[key] = read_upscaler(path)
        self._read.move_to_end(key)
        sizes = {known: upscaler.bytes for known, upscaler in self._read.items()}
        for oldest in list(sizes)[:-1]:
            # What a file held before it changed is of no use to anybody.
            if sum(sizes.values()) > self._budget or (oldest[0] == key[0] and oldest != key):
                del self._read[oldest], sizes[oldest]
        self.held = {known: size for (known, _), size in sizes.items()}
        return self._read[key]


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
    if (model.input_channels, model.output_channels) != (3, 3):
        raise _refused(path, f"takes pictures of {model.input_channels} channels, not of 3")
    if model.scale > MAX_SCALE:
        raise _refused(path, f"enlarges {model.scale} times, and {MAX_SCALE} is the most")
    model.eval()
    model.model.requires_grad_(False)
    return Upscaler(model)


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == SUFFIX:
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

    if not isinstance(content, Mapping):
        raise _refused(path, "holds no weights of a model")
    found = canonicalize_state_dict(dict(content))
    weights = {
        name: weight.detach().float() if weight.is_floating_point() else weight.detach()
        for name, weight in found.items()
        if isinstance(name, str) and isinstance(weight, Tensor)
    }
    if not weights:
        raise _refused(path, "holds no weights of a model")
    broken = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
    if broken:
        raise _refused(path, f"holds NaN or infinity in {len(broken)} weights, first {broken[0]}")
    return weights


def _refused(path: Path, what: str, remedy: str | None = None) -> UpscalerError:
    return UpscalerError(
        f"The upscaler {path.name} ({path}) {what}.",
        field="hires_upscaler",
        value=path.stem,
        remedy=remedy or "Get it again, or use another one.",
    )
