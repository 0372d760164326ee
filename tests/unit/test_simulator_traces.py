"""Traces on disk, and the command that reads them: what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farm.cli.main import app
from farm.dispatch.simulator.generator import mixed
from farm.dispatch.simulator.policies import ours
from farm.dispatch.simulator.results import result
from farm.dispatch.simulator.trace import MOST_CARDS, lines, read
from farm.dispatch.simulator.world import World
from farm.errors import InvalidInput

SMALL = mixed(cards=8, jobs=300, users=6, checkpoints=5, seed=3)
PART = {"checkpoint": "a", "jobs": 2, "seconds": 1.0}
GOOD: dict[str, dict[str, Any]] = {
    "card": {"name": "gpu0", "kind": "k", "speed": 1.0, "weights_bytes": 9, "places": 4},
    "checkpoint": {"name": "a", "bytes": 5, "load_seconds": 1.0},
    "user": {"id": 1},
    "batch": {"at": 0, "user": 1, "priority": 50, "parts": [PART]},
}


def written(**changes: dict[str, Any]) -> list[str]:
    """A trace of one of each, with other values for some fields."""
    return [json.dumps({kind: {**GOOD[kind], **changes.get(kind, {})}}) for kind in GOOD]


def test_a_trace_is_read_as_it_was_written() -> None:
    assert read(lines(SMALL)) == SMALL
    assert read(written()).jobs == 2


def test_a_trace_that_was_read_runs_as_the_one_that_was_written() -> None:
    turned = read([*lines(SMALL)][::-1])  # the order of lines, of users say, is no matter
    same = SMALL.__class__(SMALL.cards, turned.checkpoints, turned.users, SMALL.batches)
    assert list(same.users) != list(SMALL.users)
    assert result(World(same, ours).run()) == result(World(SMALL, ours).run())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x", "Line 5 of the trace is none of a trace: 'x'"),
        ("[]", "Line 5"),
        ("{}", "Line 5"),
        ('{"node": {"name": "x"}}', "Line 5"),
        ('{"card": {}}', "line 5, card.name: Field required"),
        ('{"card": 3}', "line 5, card: "),
        (json.dumps({"card": GOOD["card"]}), "The trace has 'gpu0' 2 times"),
        (json.dumps({"checkpoint": GOOD["checkpoint"]}), "The trace has 'a' 2 times"),
        (json.dumps({"user": GOOD["user"]}), "The trace has 1 2 times"),
    ],
)
def test_a_broken_line_is_refused(line: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read([*written(), line])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"card": {"speed": 0.0}}, "line 1, card.speed: .* greater than 0"),
        ({"card": {"speed": float("nan")}}, "card.speed"),
        ({"card": {"places": 0}}, "card.places"),
        ({"card": {"weights_bytes": -1}}, "card.weights_bytes"),
        ({"card": {"colour": "red"}}, "card.colour"),
        ({"checkpoint": {"load_seconds": -1.0}}, "line 2, checkpoint.load_seconds"),
        ({"user": {"weight": 0}}, "line 3, user.weight"),
        ({"user": {"max_in_flight": -1}}, "user.max_in_flight"),
        ({"batch": {"at": -1.0}}, "line 4, batch.at"),
        ({"batch": {"priority": 101}}, "batch.priority"),
        ({"batch": {"parts": []}}, "batch.parts"),
        ({"batch": {"parts": [{**PART, "jobs": -1}]}}, "batch.parts.0.jobs"),
        ({"batch": {"parts": [{**PART, "seconds": 0}]}}, "batch.parts.0.seconds"),
        ({"batch": {"parts": [{**PART, "checkpoint": "b"}]}}, "no checkpoint 'b'"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(
    changes: dict[str, dict[str, Any]], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        read(written(**changes))


def test_a_trace_without_cards_or_batches_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no cards or no batches"):
        read([])


def test_cards_more_or_fewer() -> None:
    assert len(SMALL.with_cards(2).cards) == 10
    assert len({card.name for card in SMALL.with_cards(20).with_cards(20).cards}) == 48
    assert SMALL.with_cards(-7).cards == SMALL.cards[:1]
    for change in (-8, MOST_CARDS):
        with pytest.raises(InvalidInput, match="to 8 cards makes"):
            SMALL.with_cards(change)


def simulate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "best"], "There is no policy 'best'."),
        (["--workers", "2"], "no number of cards"),
        (["--workers", ""], "no number of cards"),
        (["--workers", "-2"], "makes 0"),
        (["--save", "/nowhere/trace"], "cannot be written: No such file"),
        (["--trace", "/nowhere"], "--cards says nothing"),
    ],
)
def test_the_command_refuses(arguments: list[str], says: str) -> None:
    answer = simulate("--cards", "2", "--jobs", "10", *arguments)
    assert answer.exit_code
    assert says in answer.stderr


def test_who_is_refused_has_nothing_written(tmp_path: Path) -> None:
    target = tmp_path / "trace.jsonl"
    assert simulate(
        "--cards", "2", "--jobs", "10", "--save", str(target), "--policy", "x"
    ).exit_code
    assert not target.exists()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    answer = simulate("--trace", str(tmp_path / "none.jsonl"))
    assert "none.jsonl cannot be read: No such file or directory." in answer.stderr
    (tmp_path / "empty.jsonl").touch()
    assert "no cards or no batches" in simulate("--trace", str(tmp_path / "empty.jsonl")).stderr


def test_the_command_answers_what_if() -> None:
    answer = simulate("--cards", "4", "--jobs", "300", "--users", "4", "--workers", "+2")
    assert answer.exit_code == 0, answer.output
    assert "farm +2" in answer.stdout


def test_a_trace_is_saved_and_run_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    made = simulate("--cards", "3", "--jobs", "50", "--users", "4", "--save", str(path), "--json")
    again = simulate("--trace", str(path), "--json")
    assert json.loads(again.stdout) == json.loads(made.stdout)


def test_jobs_that_never_ran_are_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(written(checkpoint={"bytes": 10})))
    answer = simulate("--trace", str(path), "--policy", "farm")
    assert answer.exit_code == 0
    assert "farm: 2 jobs never ran" in answer.stderr
