"""A stand-in for workers: ends jobs in the database and store without making images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from farm.db import assets, batches, jobs, leases, sessions
from farm.db.assets import Asset
from farm.db.database import Database
from farm.db.leases import Claim, Ending, Lease
from farm.db.sessions import NewSession
from farm.spec.imagefile import encoded
from farm.spec.infotext import infotext
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from farm.spec.output import Output
from farm.storage import ImageStore, image_path

DEFAULTS = {"width": 128, "height": 128, "steps": 20, "cfg_scale": 3.0, "sampler": "Euler a"}
STATS = {
    "queue_seconds": 0.5,
    "load_seconds": 0.0,
    "encode_seconds": 0.1,
    "denoise_seconds": 2.0,
    "decode_seconds": 0.2,
    "store_seconds": 0.1,
    "gpu_seconds": 1.5,
    "steps": 20,
    "iterations_per_second": 10.0,
    "mean_rows": 4.0,
    "vram_active": 3 * 2**30,
    "vram_reserved": 4 * 2**30,
    "system_used": 5 * 2**30,
    "system_total": 24 * 2**30,
}
ERROR = {
    "class": "numeric",
    "title": "Not a number",
    "detail": "The UNet gave NaN.",
    "remedy": "Lower the guidance.",
}
SMALL = Output(format="webp")
_serial = itertools.count(1)


@dataclass
class StandIn:
    """One session on ``db`` that stores flat pictures in ``store``."""

    db: Database
    store: ImageStore
    name: str = "cpu0"
    session: str = field(default_factory=lambda: f"session-{next(_serial)}")

    def __post_init__(self) -> None:
        device = {"name": "a processor"}
        row = NewSession(self.session, self.name, "here", 1, device, "cpu", 8)
        sessions.open(self.db, row, lease=600)

    def claim(self, batch: int, count: int, *, start: bool = True) -> list[Lease]:
        found = self.db.one("SELECT cursor FROM batches WHERE id = %(id)s", {"id": batch})
        assert found
        claim = Claim(batch, self.session, count=count, first=found["cursor"])
        held = leases.claim(self.db, [claim])
        for lease in held if start else ():
            leases.start(self.db, lease)
        return held

    def finish(self, held: Sequence[Lease], *, failing: Sequence[int] = ()) -> None:
        """End these attempts; those numbered in ``failing`` fail."""
        endings = [
            Ending(*lease[:3], Move.FAIL, error=ERROR, stats={"queue_seconds": 0.5})
            if lease.ord in failing
            else self._succeeded(lease)
            for lease in held
        ]
        leases.end(self.db, self.session, self.name, endings)

    def render(self, batch: int, *, failing: Sequence[int] = ()) -> None:
        """Take every pending job of a batch and end it."""
        while held := self.claim(batch, 100):
            self.finish(held, failing=failing)

    def _succeeded(self, lease: Lease) -> Ending:
        found = jobs.fetch(self.db, lease.batch_id, lease.ord)
        assert found is not None
        spec = found.job.spec
        output, text = batches.output(self.db, lease.batch_id), infotext(spec)
        path = image_path(*lease[:3], suffix=output.suffix)
        small = image_path(*lease[:3], suffix=".thumb.webp")
        data = encoded(picture(spec, spec.width), text, output)
        self.store.put(path, data)
        self.store.put(small, encoded(picture(spec, spec.width // 2), "", SMALL))
        image = {
            "path": path,
            "thumb_path": small,
            "mime": output.mime,
            "sha256": hashlib.sha256(data).hexdigest(),
            "width": spec.width,
            "height": spec.height,
            "bytes": len(data),
            "infotext": text,
        }
        return Ending(*lease[:3], Move.SUCCEED, stats=STATS, image=image)


def picture(spec: JobSpec, width: int) -> Image.Image:
    """A flat picture whose colour is the job's own."""
    colour = tuple(hashlib.sha256(spec.model_dump_json().encode()).digest()[:3])
    return Image.new("RGB", (width, width * spec.height // spec.width), colour)


def register_demo(db: Database) -> None:
    """Make the checkpoint ``demo`` known, and ``broken`` as one that cannot be used."""
    assets.register(
        db,
        "here",
        [
            Asset("demo", "sdxl", 24_000_000, "/models/demo.safetensors", DEFAULTS, None),
            Asset("broken", None, 10, "/models/broken.safetensors", {}, "It is truncated."),
        ],
    )
