"""LoRAs that weights wear."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from farm.errors import FarmError
from farm.spec.networks import Loras
from farm.worker.engine.relief import relieved
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.kinds import EMBEDDING, LORA
from farm.worker.models.library import version_of
from farm.worker.models.lora_shelf import LoraShelf
from farm.worker.models.patches import SIDES, Side


class Wardrobe:
    """Puts LoRAs on checkpoints, and takes them off that may no longer be what they were.

    Args:
        assets: LoRAs and embeddings that prompts may name.
    """

    def __init__(
        self, models: ModelCache, profile: MemoryProfile, assets: Iterable[AssetFile]
    ) -> None:
        self._models = models
        self._profile = profile
        self._assets = assets
        self._loras = LoraShelf(assets)
        self._version: object = None
        self._known: tuple[AssetFile, ...] = ()
        self.changed()

    def put_on(self, checkpoint: Checkpoint, side: Side, loras: Loras) -> None:
        """These, and no others; raises as :meth:`Checkpoint.wear` does."""
        spare = self._profile.weights_bytes - self._models.bytes
        checkpoint.wear(side, loras, self._loras.get, spare=spare)

    def changed(self) -> bool:
        """Whether there are other LoRAs or embeddings than when this was asked last."""
        version = version_of(self._assets)
        if version == self._version:
            return False
        self._version = version
        before = self._known
        self._known = tuple(file for file in self._assets if file.kind in (LORA, EMBEDDING))
        return self._known != before

    def clear(self) -> None:
        """Have no checkpoint wear any; nothing may be under way on the device. One that there is no
        memory to take them off leaves: read anew it wears none."""
        for name in self._models.resident:
            # It may have been let go of meanwhile, and its file be gone.
            with suppress(FarmError):
                try:
                    relieved(self._models, partial(self._undress, name))
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    traceback.clear_frames(error.__traceback__)
                    self._models.evict(name)

    def _undress(self, name: str) -> None:
        with self._models.use(name) as checkpoint:
            for side in SIDES:
                checkpoint.wear(side, (), self._loras.get, spare=0)
