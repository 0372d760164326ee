"""The timeline: what it remembers, and how it is shown."""

from __future__ import annotations

from farm.worker.engine import timeline
from farm.worker.engine.timeline import Span, Timeline, chrome_trace
from tests.engine_bench import Bench
from tests.fake_models import spec


def test_it_remembers_the_last_ones() -> None:
    line = Timeline()
    for number in range(timeline.KEPT + 3):
        line.add("engine", "denoise", number, number + 0.5, job=number)
    spans = line.spans()
    assert len(spans) == timeline.KEPT
    assert (spans[0].began, spans[-1].detail) == (3, {"job": timeline.KEPT + 2})


def test_everything_the_engine_does_is_on_it() -> None:
    bench = Bench()
    bench.render(spec(steps=3))
    names = [span.name for span in bench.core.pulse.timeline.spans()]
    assert names == ["load", "encode", "encode", *["denoise"] * 3, "decode"]
    denoise = bench.core.pulse.timeline.spans()[3]
    assert denoise.detail == {
        "checkpoint": "fake",
        "size": "64x64",
        "bucket": 2,
        "jobs": ["job-0"],
    }
    assert denoise.began <= denoise.ended


def test_a_trace_has_tracks_and_microseconds_from_the_first_span() -> None:
    spans = [
        Span("store", "store", 12.0, 12.5, {"job": "1-0.1"}),
        Span("engine", "load", 10.0, 11.0, {}),
    ]
    events = chrome_trace(spans, process="gpu0")["traceEvents"]
    named = {event["args"]["name"]: event.get("tid") for event in events if event["ph"] == "M"}
    assert named == {"gpu0": None, "engine": 1, "store": 2}
    done = [(e["name"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert done == [("store", 2, 2e6, 5e5), ("load", 1, 0.0, 1e6)]


def test_an_empty_trace_is_one_too() -> None:
    assert chrome_trace([], process="gpu0")["traceEvents"][0]["args"] == {"name": "gpu0"}
