"""Whatever jobs come, the batcher keeps its promises: checked by playing them to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.spec.networks import Lora
from farm.worker.engine.batcher import MAX_BLOCKS, Batcher
from farm.worker.engine.decisions import Decode, Encode, Forward, Load, Waiting

BUCKETS = (1, 2, 4, 8)
PATIENCE = 10.0
ALLOWED = {64: 8, 128: 5, 256: 1}
"""Rows by width."""
SETS = [(), (), (Lora("ink", 1.0),), (Lora("fur", 0.5), Lora("ink", 1.0))]


@dataclass
class Player:
    """A job that does what the batcher says: texts, steps, decode, gone."""

    view: Waiting
    texts: int
    steps: int

    def encoded(self) -> None:
        assert self.view.stage == "encode"
        self.texts -= 1
        if not self.texts:
            self.view = replace(self.view, stage="denoise")

    def stepped(self) -> None:
        assert self.view.stage == "denoise"
        self.steps -= 1
        if not self.steps:
            self.view = replace(self.view, stage="decode")


@st.composite
def players(
    draw: st.DrawFn,
    checkpoints: str = "abc",
    widths: tuple[int, ...] = (64, 128, 256),
    ranks: tuple[int, ...] = (1,),
):
    rows = draw(st.sampled_from([1, 2, 2]))
    view = Waiting(
        order=-1,
        stage="encode",
        checkpoint=draw(st.sampled_from(checkpoints)),
        width=draw(st.sampled_from(widths)),
        height=64,
        rows=rows,
        blocks=draw(st.sampled_from([1, 1, 1, 2, 3, 5])),
        alone=draw(st.sampled_from([False] * 5 + [True])),
        strict=draw(st.sampled_from([False, False, True])),
        loras=draw(st.sampled_from(SETS)),
        rank=draw(st.sampled_from(ranks)),
    )
    return Player(view, texts=rows, steps=draw(st.integers(1, 6)))


class Card:
    """Room for some checkpoints; every action takes a second."""

    def __init__(self, capacity: int) -> None:
        self.batcher = Batcher(
            lambda _, width, __: ALLOWED[width],
            BUCKETS,
            seconds=lambda *_: 1.0,
            patience=PATIENCE,
        )
        self.capacity = capacity
        self.resident: list[str] = []
        self.players: dict[int, Player] = {}
        self.now = 0.0
        self.joined = 0

    def join(self, player: Player) -> None:
        player.view = replace(player.view, order=self.joined)
        self.players[self.joined] = player
        self.joined += 1

    def play(self) -> None:
        views = [player.view for player in self.players.values()]
        decision = self.batcher.decide(views, self.resident, self.now)
        self.now += 1
        match decision:
            case Load(checkpoint):
                assert checkpoint not in self.resident
                self.resident = [*self.resident, checkpoint][-self.capacity :]
            case Encode(order):
                assert self.players[order].view.checkpoint in self.resident
                self.players[order].encoded()
            case Decode(order):
                assert self.players.pop(order).view.stage == "decode"
            case Forward():
                self.check(decision)
                for order in decision.orders:
                    self.players[order].stepped()
            case None:
                assert not self.players

    def check(self, forward: Forward) -> None:
        """What holds for every forward."""
        riding = [self.players[order].view for order in forward.orders]
        shape = (forward.checkpoint, forward.loras, forward.width, forward.height)
        most = max(bucket for bucket in BUCKETS if bucket <= ALLOWED[forward.width])
        rows = sum(view.rows for view in riding)
        assert riding
        assert forward.checkpoint in self.resident
        assert len({view.group for view in riding}) == 1
        assert (*riding[0].group.weights, riding[0].width, riding[0].height) == shape
        assert forward.bucket in BUCKETS
        assert forward.bucket <= most
        assert rows <= forward.bucket or len(riding) == 1
        assert forward.blocks == lcm(*(view.blocks for view in riding))
        if any(view.alone for view in riding):
            assert (len(riding), forward.bucket) == (1, 1)
        elif any(view.strict for view in riding):
            assert forward.bucket == most
        if len(riding) > 1:
            assert rows * forward.blocks <= most * MAX_BLOCKS
        for view in riding:
            assert not view.strict or forward.blocks == view.blocks


def most_actions(player: Player, others: Sequence[Player]) -> int:
    """An upper bound of actions until the oldest job is done.

    Before a forward every row may get a rider that needs two texts, and after it every rider may
    be decoded. Before each of its own steps it waits for a turn of all other weights, and for a
    forward of all groups of its own.
    """
    between = 1 + 3 * max(BUCKETS)
    groups = {other.view.group for other in others} | {player.view.group}
    weights = {group.weights for group in groups}
    wait = len(weights) * (int(PATIENCE) + 1 + between) + len(groups) * between
    return wait * (player.texts + player.steps + 1)


@settings(max_examples=70)
@given(st.lists(players(), max_size=25), st.integers(1, 3))
def test_every_job_ends(jobs: list[Player], capacity: int) -> None:
    card = Card(capacity)
    for player in jobs:
        card.join(player)
    for _ in range(sum(most_actions(player, jobs) for player in jobs)):
        if not card.players:
            break
        card.play()
    assert not card.players


@settings(max_examples=70)
@given(players(), st.lists(players(), min_size=1, max_size=12), st.integers(1, 2))
def test_an_endless_stream_of_younger_jobs_starves_nobody(
    oldest: Player, stream: list[Player], capacity: int
) -> None:
    card = Card(capacity)
    card.join(replace(stream[0]))
    card.play()
    card.play()
    card.players.clear()
    card.join(oldest)
    order = oldest.view.order
    for turn in range(most_actions(oldest, stream)):
        if len(card.players) < 2 * max(BUCKETS):
            card.join(replace(stream[turn % len(stream)]))
        card.play()
        if order not in card.players:
            return
    raise AssertionError("the oldest job is still waiting")


@settings(max_examples=50)
@given(players(ranks=(2,)), st.lists(players(ranks=(0, 1)), max_size=12), st.integers(1, 2))
def test_an_urgent_job_waits_for_none_of_the_others(
    urgent: Player, others: list[Player], capacity: int
) -> None:
    card = Card(capacity)
    for player in others:
        card.join(player)
        card.play()
    card.join(urgent)
    order = urgent.view.order
    # At most what is decoded already, a load, and the texts of riders come in between.
    rides = len(card.players)
    for _ in range(rides + 1 + 3 * rides + urgent.texts + urgent.steps + 1 + rides):
        card.play()
    assert order not in card.players
