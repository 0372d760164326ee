"""Spans: the jobs of a batch that nobody has claimed yet, as ranges of their numbers.

They are those from the batch's cursor on, without what was claimed ahead of others: a batch may
have jobs for a session that is free behind some that wait for another. Spans are few, however many
jobs they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""The first job, and the one after the last."""

UNCLAIMED = "(int8multirange(int8range(b.cursor, b.total)) - b.ahead)"
"""The jobs of batch ``b`` that nobody has claimed; ``b.cursor < b.total`` where there are any."""

COUNT = """(b.total - b.cursor - (SELECT coalesce(sum(upper(a) - lower(a)), 0)::bigint
                                  FROM unnest(b.ahead) AS a))"""
"""How many these are."""

SPANS = f"""ARRAY(SELECT ARRAY[lower(s), upper(s)]
                  FROM unnest({UNCLAIMED}) AS s ORDER BY s)"""
"""The same as spans, in order; for :func:`spans`."""


def spans(found: Iterable[Sequence[int]]) -> tuple[Span, ...]:
    """Spans as Postgres gives them."""
    return tuple((first, end) for first, end in found)


def count(spans: Iterable[Span]) -> int:
    """How many jobs they have."""
    return sum(end - first for first, end in spans)


def without(spans: Iterable[Span], gone: Span) -> tuple[Span, ...]:
    """What is left of spans when some jobs, which follow each other, are claimed."""
    begin, stop = gone
    parts = [
        part for first, end in spans for part in ((first, min(end, begin)), (max(first, stop), end))
    ]
    return tuple((first, end) for first, end in parts if first < end)
