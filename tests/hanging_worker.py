"""A worker whose next step never ends: ``python -m tests.hanging_worker``.

It is the real thing, but while the file that ``HANG`` names is there, a forward takes it away and
does not come back. The process goes on living: its heartbeats, messages and watchdog do.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from farm.worker.main import main
from farm.worker.models.checkpoint import Checkpoint

_FILE = Path(os.environ["HANG"])
_predict = Checkpoint.predict


def _hangs(self: Checkpoint, *args: Any, **options: Any) -> Any:
    with suppress(FileNotFoundError):
        _FILE.unlink()
        threading.Event().wait()
    return _predict(self, *args, **options)


if __name__ == "__main__":
    Checkpoint.predict = _hangs  # type: ignore[method-assign]
    main()
