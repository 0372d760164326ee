"""The image store of a farm: a folder that is not mounted looks empty, and is not the store.

Who opens it first writes a mark into its root, and Postgres remembers which.
"""

from __future__ import annotations

from farm.db import stores
from farm.db.database import Database
from farm.storage import ImageStore


def opened(db: Database, url: str) -> ImageStore:
    """The farm's store; every write to its folder makes sure that the mark is there.

    Raises:
        Unavailable: nobody has opened it before, and it cannot be written to.
    """
    return ImageStore(url, id=stores.first(db, ImageStore(url).mark))


def verify(db: Database, store: ImageStore) -> None:
    """Raise Unavailable if the mark of this farm's store is not in the root of ``store``."""
    if id := stores.known(db):
        store.check(id)
