"""Files of jobs, one JSON object a line, of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from farm.errors import InvalidInput
from farm.spec.listing import OPTIONS, Listing, options, parsed

SUFFIXES = (".ndjson", ".jsonl")


_STAND_IN = {"width": 512, "height": 512}


class LineFile:
    """A file of jobs, and fields that go before those that its own first line gives.

    Raises:
        InvalidInput: the file cannot be read, or its first line is wrong.
    """

    def __init__(self, path: str | Path, fields: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._fields = dict(fields)
        try:
            with self._path.open("rb") as file:
                first = file.readline(1 << 20)
        except OSError as error:
            raise InvalidInput(
                f"{path}: it cannot be read: {error.strerror}.",
                field="file",
                value=str(path),
                remedy="Give the path of a file with one JSON object a line.",
            ) from None
        found = parsed(first.strip(), "line 1") if first.strip() else {}
        self._begins_with_options = OPTIONS in found
        if self._begins_with_options:
            options(found, "line 1")
            self._fields = {**found[OPTIONS], **fields}

    def __iter__(self) -> Iterator[bytes]:
        """Its lines, as they are to be sent."""
        with self._path.open("rb") as file:
            if self._begins_with_options:
                file.readline()
            if self._begins_with_options or self._fields:
                yield self._head()
            yield from file

    def count(self) -> int:
        """Its jobs, each checked but for the names of checkpoints; InvalidInput names the first
        line that is wrong."""
        known: dict[str, dict[str, Any]] = {}
        listing = Listing(options({OPTIONS: self._fields}, "line 1"), known)
        jobs = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(map(bytes.strip, file), start=1):
                if not line or (number == 1 and self._begins_with_options):
                    continue
                found = parsed(line, f"line {number}")
                name = found.get("checkpoint") or self._fields.get("checkpoint") or "any"
                second = found.get("hires_checkpoint") or self._fields.get("hires_checkpoint")
                known |= dict.fromkeys({str(name), str(second or name)}, _STAND_IN)
                listing.job({**found, "checkpoint": name}, f"line {number}")
                jobs += 1
        listing.check()
        return jobs

    def _head(self) -> bytes:
        # Where the file has none, the line before its first is line 0.
        number = 1 if self._begins_with_options else 0
        return json.dumps({OPTIONS: self._fields, "line": number}).encode() + b"\n"
