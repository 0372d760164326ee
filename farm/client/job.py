"""A job and its image, as a client holds them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm.client.transport import Transport
from farm.errors import SetupError, Unavailable

ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Image:
    """A stored image; ``data`` is the API's answer about it."""

    job: str
    ord: int
    seed: int
    data: dict[str, Any]
    _transport: Transport = field(repr=False)

    @property
    def infotext(self) -> str:
        return str(self.data["infotext"])

    @property
    def mime(self) -> str:
        """Such as ``image/png``."""
        return str(self.data["mime"])

    def read(self) -> bytes:
        """The file, checked against its sha256."""
        found = self._transport.content(self.data["url"])
        if hashlib.sha256(found).hexdigest() != self.data["sha256"]:
            raise Unavailable(
                f"The image of job {self.job} arrived damaged.", remedy="Fetch it again."
            )
        return found

    def save(self, path: str | Path) -> bool:
        """Write the file, whole or not at all; False if it was there already."""
        path = Path(path)
        try:
            if path.is_file() and _digest(path) == self.data["sha256"]:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            try:
                partial.write_bytes(self.read())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(
                f"{path} could not be written: {error.strerror}.",
                field="folder",
                value=str(path.parent),
                remedy="Choose another folder, or free some space, and download again.",
            ) from error
        return True


@dataclass(frozen=True)
class Job:
    """One job; ``data`` is the API's answer about it."""

    data: dict[str, Any]
    _transport: Transport = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def ord(self) -> int:
        return int(self.data["ord"])

    @property
    def state(self) -> str:
        return str(self.data["state"])

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.data["spec"])

    @property
    def image(self) -> Image | None:
        stored = self.data["image"]
        # A number: it becomes part of a file's name.
        return stored and Image(self.id, self.ord, int(self.spec["seed"]), stored, self._transport)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
