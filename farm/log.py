"""Logging: one line a record on standard error, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time


class _Line(logging.Formatter):
    """``2026-11-23 10:11:12.345 WARNING dispatcher farm.dispatch: message``."""

    default_msec_format = "%s.%03d"

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s")


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(process: str, *, level: str = "INFO", as_json: bool = False) -> None:
    """Send this process's records to standard error.

    Args:
        process: who speaks: ``api``, ``dispatcher``, ``gpu0``, ...
        level: the lowest level shown.
        as_json: one JSON object a line instead of text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(process) if as_json else _Line(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One INFO line for each HTTP request or connection would bury ours.
    for chatty in ("httpx", "httpcore", "alembic", "botocore", "fsspec"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
