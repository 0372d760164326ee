"""What the API answers of assets, as it stands in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from farm.db import sessions
from farm.db.assets import CHECKPOINT, Known


class Holder(BaseModel):
    """A worker that has a checkpoint in memory."""

    worker: str
    where: str = Field(description="device, or host: memory it returns from quickly")


class Asset(BaseModel):
    """A model file that a worker has seen; ``error`` says why it cannot be used."""

    kind: str = Field(description="checkpoint, lora, embedding, vae, preview, upscaler, ...")
    name: str
    family: str | None
    dtype: str | None = Field(description="what most weights are stored in, such as F16")
    bytes: int
    defaults: dict[str, Any]
    error: str | None
    sha256: str | None = Field(description="null until a worker has found time to hash it")
    short_hash: str | None = Field(description="as webui shows it: 10 digits, of a LoRA 12")
    hosts: int = Field(description="how many have it")
    differs: bool = Field(description="whether two hosts have different files of this name")
    held_by: list[Holder]

    @classmethod
    def seen(cls, asset: Known, live: Sequence[sessions.Session], **more: Any) -> Self:
        values = {name: part for name, part in vars(asset).items() if name in cls.model_fields}
        values["differs"] = bool(asset.differs)
        short = asset.weights_sha256[:12] if asset.weights_sha256 else (asset.sha256 or "")[:10]
        return cls(**values, short_hash=short or None, held_by=list(_holders(asset, live)), **more)


class AssetOnHost(BaseModel):
    host: str
    bytes: int
    sha256: str | None
    error: str | None
    seen_at: datetime


class WholeAsset(Asset):
    """An asset with what its maker wrote into it, and its files host by host."""

    metadata: dict[str, str]
    files: list[AssetOnHost]

    @classmethod
    def whole(
        cls, asset: Known, live: Sequence[sessions.Session], files: Sequence[dict[str, Any]]
    ) -> Self:
        return cls.seen(asset, live, files=[AssetOnHost(**file) for file in files])


class Assets(BaseModel):
    assets: list[Asset]


class Told(BaseModel):
    """Workers that will hear of an order with their next heartbeat."""

    checkpoint: str
    action: str
    workers: list[str]


def _holders(asset: Known, live: Sequence[sessions.Session]) -> Iterator[Holder]:
    if asset.kind != CHECKPOINT:
        return
    for session in live:
        if asset.name in session.resident:
            yield Holder(worker=session.worker, where="device")
        elif asset.name in session.stats.get("models", {}).get("in_host", ()):
            yield Holder(worker=session.worker, where="host")
