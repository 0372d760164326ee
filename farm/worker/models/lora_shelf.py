"""LoRA files that were read, kept by a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from farm.worker.models.catalogue import AssetFile
from farm.worker.models.header import file_identity
from farm.worker.models.kinds import LORA
from farm.worker.models.library import find
from farm.worker.models.lora import LoraFile, read_lora, refused


class LoraShelf:
    """LoRAs by name, those used last in host memory. Call it from one thread at a time.

    Args:
        files: the assets there are, asked anew for each LoRA.
        budget_bytes: of host memory.
    """

    def __init__(self, files: Iterable[AssetFile] = (), budget_bytes: int = 2 * 2**30) -> None:
        self._files = files
        self._budget = budget_bytes
        self._read: OrderedDict[tuple[str, tuple[int, int, int]], LoraFile] = OrderedDict()

    def get(self, name: str) -> LoraFile:
        """The LoRA called ``name``, read again if its file has changed.

        Raises:
            CheckpointError: there is none (its near names are listed), or it is unusable.
        """
        path = find(tuple(self._files), LORA, name).path
        try:
            key = (str(path), file_identity(path.stat()))
        except OSError as error:
            raise refused(name, "cannot be read any more", "Look for its file.") from error
        if key not in self._read:
            self._read[key] = read_lora(name, path)
        self._read.move_to_end(key)
        while (
            sum(file.bytes for file in self._read.values()) > self._budget and len(self._read) > 1
        ):
            self._read.popitem(last=False)
        return self._read[key]
