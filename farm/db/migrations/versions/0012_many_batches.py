"""Indexes for many open batches: what a user has that may be begun, and what is to be closed."""

from farm.db.migrations import online

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEXES = {
    # Without the cursor, which moves in place because no index has it, nor the condition of one.
    "batches_of_each": "batches (user_id, priority DESC, id) "
    "WHERE ended_at IS NULL AND state = 'open'",
    "batches_unwanted": "batches (id) WHERE ended_at IS NULL AND state = 'cancelled'",
}


def upgrade() -> None:
    for name, definition in INDEXES.items():
        online.index(name, definition)


def downgrade() -> None:
    raise RuntimeError("Farm's schema only moves forward; restore a backup instead.")
