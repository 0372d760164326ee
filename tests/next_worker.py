"""A stand-in worker of the version after this one: ``python -m tests.next_worker``.

Its schema is that of ``tests/faults/test_faults_upgrade.py``, and it writes a column of it.
"""

from __future__ import annotations

from farm.db import queries
from tests import standin_worker

_NEXT = (
    ("INSERT INTO attempts (batch_id,", "INSERT INTO attempts (later, batch_id,"),
    (
        "SELECT batch_id, ord, attempt, session_id, %(worker)s,",
        "SELECT 'new', batch_id, ord, attempt, session_id, %(worker)s,",
    ),
)

if __name__ == "__main__":
    for old, new in _NEXT:
        assert queries.END.count(old) == 1
        queries.END = queries.END.replace(old, new)
    standin_worker.main()
