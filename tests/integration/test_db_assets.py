"""Assets by host: what is registered, forgotten, hashed once, and shown as one."""

from __future__ import annotations

from dataclasses import replace

from farm.db import assets, orders, sessions
from farm.db.assets import Asset
from farm.db.database import Database
from farm.db.sessions import NewSession

FILE = Asset("m", "sdxl", 7, "/models/m.safetensors", {"steps": 20}, None, identity="7:1:1")


def named(name: str, **changes: object) -> Asset:
    return replace(FILE, name=name, path=f"/models/{name}.safetensors", **changes)  # type: ignore[arg-type]


def names(db: Database) -> list[str]:
    return [asset.name for asset in assets.listing(db)]


def hashed(db: Database, host: str, sha256: str) -> None:
    file = assets.take_unhashed(db, host)
    assert file is not None
    assets.record_hashes(db, host, file, sha256=sha256, weights_sha256=None)


def test_what_is_gone_from_its_folder_is_forgotten_and_other_folders_are_not(db: Database) -> None:
    elsewhere = replace(FILE, name="e", path="/nas/e.safetensors")
    assets.register(db, "h", [named("a"), named("b"), elsewhere], folders=["/models", "/nas"])
    assets.register(db, "h", [named("b")], folders=["/models"])
    assert names(db) == ["b", "e"]
    assets.register(db, "other host", [], folders=["/models", "/nas"])
    assert names(db) == ["b", "e"]


def test_a_hash_stays_until_the_file_changes(db: Database) -> None:
    assets.register(db, "h", [FILE])
    hashed(db, "h", "abc")
    assets.register(db, "h", [FILE])
    assert assets.hashes(db, "h") == {FILE.path: "abc"}
    assert assets.take_unhashed(db, "h") is None
    assets.register(db, "h", [replace(FILE, identity="8:2:1")])
    assert assets.hashes(db, "h") == {}
    assert assets.take_unhashed(db, "h") is not None


def test_a_hash_of_a_file_that_was_replaced_meanwhile_is_dropped(db: Database) -> None:
    assets.register(db, "h", [FILE])
    file = assets.take_unhashed(db, "h")
    assert file is not None
    assets.register(db, "h", [replace(FILE, identity="8:2:1")])
    assets.record_hashes(db, "h", file, sha256="old", weights_sha256=None)
    assert assets.hashes(db, "h") == {}


def test_each_file_is_hashed_by_one_worker_the_smallest_first(db: Database) -> None:
    broken = named("broken", error="It is cut short.")
    folder = named("folder", identity=None)
    assets.register(db, "h", [named("big", bytes=9), named("small"), broken, folder])
    taken = [assets.take_unhashed(db, "h") for _ in range(3)]
    paths = [file and file.path for file in taken]
    assert paths == ["/models/small.safetensors", "/models/big.safetensors", None]


def test_a_folder_mounted_by_many_hosts_is_hashed_once(db: Database) -> None:
    assets.register(db, "h1", [FILE])
    hashed(db, "h1", "abc")
    assets.register(db, "h2", [FILE])
    assert assets.hashes(db, "h2") == {FILE.path: "abc"}


def test_one_name_is_one_asset_and_a_usable_file_shows_it(db: Database) -> None:
    assets.register(db, "h1", [replace(FILE, error="It is cut short.", family=None)])
    assets.register(db, "h2", [FILE])
    [known] = assets.listing(db)
    assert (known.error, known.family, known.hosts, known.differs) == (None, "sdxl", 2, None)
    assert assets.defaults(db) == {"m": {"steps": 20}}
    hashed(db, "h2", "abc")
    assets.register(db, "h1", [replace(FILE, identity="7:5:5")])
    hashed(db, "h1", "def")
    [known] = assets.listing(db)
    assert known.differs


def test_kinds_do_not_mix(db: Database) -> None:
    assets.register(db, "h", [FILE, replace(FILE, kind="lora", path="/models/Lora/m")])
    assert [asset.kind for asset in assets.listing(db)] == ["checkpoint", "lora"]
    assert [asset.kind for asset in assets.listing(db, "lora")] == ["lora"]
    assert assets.get(db, "vae", "m") is None


def test_an_order_is_heard_once_and_the_last_one_counts(db: Database) -> None:
    for id, worker in (("s1", "gpu0"), ("s2", "gpu1"), ("s3", "gpu2")):
        sessions.open(db, NewSession(id, worker, "h", 1, {}, "cpu", 2), lease=60)
    sessions.close(db, "s3")
    assert orders.give(db, "warm", "m", worker=None) == ["gpu0", "gpu1"]
    assert orders.give(db, "evict", "m", worker="gpu0") == ["gpu0"]
    assert orders.give(db, "warm", "m", worker="gpu2") == []
    assert orders.take(db, "s1") == [("evict", "m")]
    assert orders.take(db, "s1") == []
    assert orders.take(db, "s2") == [("warm", "m")]


def test_hosts_that_are_gone_for_long_are_forgotten(db: Database) -> None:
    for host in ("gone", "new", "alive"):
        assets.register(db, host, [named(host)])
    sessions.open(db, NewSession("s", "gpu0", "alive", 1, {}, "cpu", 2), lease=60)
    db.one(
        """UPDATE asset_files SET seen_at = now() - interval '8 days'
           WHERE host <> 'new' RETURNING host"""
    )
    assert assets.forget_hosts(db, days=7) == 1
    assert names(db) == ["alive", "new"]
