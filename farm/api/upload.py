"""A batch of explicit jobs, one JSON object a line, taken in as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from farm.api.submission import refuse_idle, refuse_unstorable
from farm.db import assets, loading
from farm.db.batches import Accepted, NewBatch
from farm.db.database import Database
from farm.db.users import User
from farm.dispatch.prospects import Gate
from farm.errors import InvalidInput
from farm.spec.batch import MAX_JOBS, BatchRequest
from farm.spec.job import JobSpec
from farm.spec.kinship import check_job
from farm.spec.listing import OPTIONS, Listing, options, parsed
from farm.spec.output import PNG, Output


class Upload:
    """Checks lines and stores them; nobody sees the batch before :meth:`complete`.

    Args:
        key: the idempotency key; where it was used before, lines are only compared.
        output: of a batch whose first line names none.
        quota: see :func:`farm.db.batches.accept`.

    Raises:
        Forbidden: the user may have no job in flight.
    """

    def __init__(
        self,
        db: Database,
        user: User,
        key: str | None,
        *,
        output: Output = PNG,
        quota: int | None = None,
    ) -> None:
        self._db = db
        self._user = user
        self._key = key
        self._output = output
        self._quota = quota
        self._digest = hashlib.sha256()
        self._request = BatchRequest()
        self._listing: Listing | None = None
        self._gate: Gate | None = None
        self._family = assets.families(db)
        self._line = 0
        self._jobs = 0
        self._batch_id: int | None = None
        if key is None or not loading.used(db, user.id, key):
            refuse_idle(user)
            self._batch_id = loading.begin(db, user.id)

    def add(self, lines: Iterable[bytes]) -> None:
        """The next whole lines; empty ones are passed over.

        Raises:
            InvalidInput: names the line and the field at fault.
            DoesNotFit: no worker could make one of the jobs.
            QuotaExceeded: too many of the user's jobs would wait.
        """
        jobs = [job for line in lines if (job := self._read(line)) is not None]
        if self._jobs + len(jobs) > MAX_JOBS:
            raise InvalidInput(
                f"More than {MAX_JOBS} jobs in one batch.",
                field=f"line {self._line}",
                remedy=f"Split it into batches of at most {MAX_JOBS} jobs.",
            )
        if jobs and self._batch_id is not None:
            loading.append(self._db, self._batch_id, self._jobs, jobs, quota=self._quota)
        self._jobs += len(jobs)

    def complete(self) -> Accepted:
        """Let the batch be seen.

        Raises:
            InvalidInput: it has no job, or says in vain how a second pass is to be made.
            Conflict: the idempotency key was used with other lines.
        """
        new = NewBatch(
            user_id=self._user.id,
            name=self._request.name,
            priority=self._request.priority,
            tags=self._request.tags,
            output=self._request.output or self._output,
            idempotency_key=self._key,
            request_hash=self._digest.digest(),
        )
        if self._batch_id is None:
            return loading.repeated(self._db, new)
        if not self._jobs:
            remedy = 'Write one JSON object a line, such as {"prompt": "a red apple"}.'
            raise InvalidInput("body: it lists no job.", field="body", remedy=remedy)
        if self._listing:
            self._listing.check()
        return loading.complete(self._db, self._batch_id, new, total=self._jobs)

    @property
    def notices(self) -> list[str]:
        """What some of its jobs will have to wait for, in sentences."""
        return [self._gate.notice] if self._gate and self._gate.notice else []

    def discard(self) -> None:
        """Leave nothing of it to be seen."""
        if self._batch_id is not None:
            loading.discard(self._db, self._batch_id)

    def _read(self, line: bytes) -> JobSpec | None:
        self._line += 1
        line = line.strip()
        if not line:
            return None
        self._digest.update(line + b"\n")
        if self._batch_id is None:
            return None
        where = f"line {self._line}"
        found = parsed(line, where)
        if b"\\u" in line:  # the one way in which JSON can say what Postgres cannot store
            refuse_unstorable(found, where)
        if self._listing is None:
            first = OPTIONS in found
            if first:
                self._request = options(found, where)
                self._line = _numbered(found.get("line", self._line), where)
            self._listing = Listing(self._request, assets.defaults(self._db))
            if first:
                return None
        return self._reachable(self._listing.job(found, where), where)

    def _reachable(self, job: JobSpec, where: str) -> JobSpec:
        if self._gate is None:
            waits = self._request.wait_for_worker
            self._gate = Gate(self._db, self._request.tags, waits=waits)
        self._gate.admit(job, where)
        check_job(job, self._family, where=f"{where}.")
        return job


def _numbered(line: Any, where: str) -> int:
    if not isinstance(line, int) or not 0 <= line <= 1:
        remedy = "Use 1, or 0 if the line is not part of a file."
        raise InvalidInput(f"{where}.line: not 0 or 1.", field=f"{where}.line", remedy=remedy)
    return line
