"""An upgrade under load: the schema moves on while the processes of the version before go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine

from farm.db import migrate, schema
from farm.db.database import Database
from farm.embedded import sockets
from tests.conftest import eventually
from tests.crew import Crew
from tests.saboteur import Saboteur

NEXT = '''
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    op.execute("""
        ALTER TABLE leases ADD COLUMN later text NOT NULL DEFAULT 'x';
        ALTER TABLE attempts ADD COLUMN later text;
        ALTER TABLE batches ADD COLUMN later integer NOT NULL DEFAULT 1;
        ALTER TABLE outcomes ADD CONSTRAINT later CHECK (attempt >= 0) NOT VALID;
        CREATE TABLE later (id bigint PRIMARY KEY);
        CREATE INDEX later_attempts ON attempts (worker);
    """)


def downgrade():
    op.execute("""
        ALTER TABLE leases DROP COLUMN later;
        ALTER TABLE attempts DROP COLUMN later;
        ALTER TABLE batches DROP COLUMN later;
        ALTER TABLE outcomes DROP CONSTRAINT later;
        DROP INDEX later_attempts;
        DROP TABLE later;
    """)
'''


@pytest.fixture
def next_version(
    saboteur: Saboteur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """For this process alone there is one more migration; afterwards it is undone."""
    config = migrate._config()
    head = schema.NEEDED
    (tmp_path / "9999_later.py").write_text(NEXT.format(head=head))
    own = Path(str(config.get_main_option("script_location"))) / "versions"
    config.set_main_option("version_locations", f"{own};{tmp_path}")
    config.set_main_option("path_separator", ";")
    monkeypatch.setattr(migrate, "_config", lambda: config)
    yield
    url = sockets.urls(saboteur.farm.home)[0]
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, head)
        connection.commit()
    engine.dispose()
    eventually(saboteur.farm.answers)


@pytest.mark.usefixtures("next_version")
def test_a_migration_under_load(saboteur: Saboteur) -> None:
    """Somebody reads all tables in one long transaction, as a backup does: nobody waits for it
    but the migration."""
    url = sockets.urls(saboteur.farm.home)[0]
    batch = saboteur.begin(150)
    wasted = saboteur.wasted()
    migration = threading.Thread(target=migrate.upgrade, args=(url,))
    with Database(url) as db:
        with db.connection() as backup:
            backup.execute("LOCK TABLE leases, attempts, batches, outcomes IN ACCESS SHARE MODE")
            migration.start()
            waits = """SELECT FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND query LIKE '%%later%%'"""
            eventually(lambda: db.all(waits))
            done = batch.refresh().counts["succeeded"]
            eventually(lambda: batch.refresh().counts["succeeded"] > done)
            assert migration.is_alive()
        migration.join(timeout=60)
        assert not migration.is_alive()
        assert db.one("SELECT version_num FROM alembic_version") == {"version_num": "9999"}
        saboteur.finish(batch)
        assert saboteur.wasted() == wasted
        assert not saboteur.farm.answers(), "an older API on a newer database is not ready"


WRITTEN = """
SELECT DISTINCT worker, later FROM attempts WHERE batch_id >= %(first)s AND result = 'succeeded'
"""
LOST = "SELECT FROM attempts WHERE batch_id >= %(first)s AND result = 'lost'"


@pytest.mark.usefixtures("next_version")
def test_a_worker_of_the_next_version_joins_under_load(saboteur: Saboteur) -> None:
    """Beside those of this one, which go on; one of them is replaced while it works."""
    migrate.upgrade(sockets.urls(saboteur.farm.home)[0])
    batch = saboteur.begin(150)
    newer = Crew(saboteur.farm, ["next"], module="tests.next_worker")
    try:
        newer.start()
        more = saboteur.begin(150)  # however long that took
        saboteur.stop("cpu0")
        saboteur.finish(batch, more)
        with saboteur.farm.database() as db:
            written = db.all(WRITTEN, {"first": int(batch.id)})
            lost = db.all(LOST, {"first": int(batch.id)})
    finally:
        newer.stop()
    assert {(row["worker"], row["later"]) for row in written} == {
        ("cpu0", None),
        ("cpu1", None),
        ("next", "new"),
    }
    assert batch.counts["succeeded"] == more.counts["succeeded"] == 150
    assert lost == []
