"""Prompt editing: texts that change from step to step.

``[from:to:when]`` is ``from`` up to and including the step ``when``, and ``to`` after it;
``[to:when]`` and ``[from::when]`` leave one of them empty. ``[a|b|c]`` is ``a`` in the first step,
``b`` in the second, and so on, again and again. Both nest.

``when`` is a step, or with a decimal point a fraction of the steps. The two passes of a hires fix
share one scale: fractions from 1 to 2, and steps past the first pass's, lie in the second pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

_TOKEN = re.compile(r"(?P<mark>[\[\]():|])|(?:[^\\\[\]():|]|\\[^\n])+|(?P<odd>\\)")
_NUMBER = re.compile(r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Timeline:
    """The steps that ``when`` is about.

    Attributes:
        steps: of this pass.
        before: of the first pass, if this is the second.
    """

    steps: int
    before: int | None = None

    def last(self, when: str) -> int:
        """The last step of this pass, from 1, that has not passed ``when``; 0 for none."""
        value = float(when)
        if self.before is not None:
            value -= 1 if "." in when else self.before
        if "." in when:
            value *= self.steps
        return int(max(0.0, min(value, float(self.steps))))


@dataclass(frozen=True, slots=True)
class Edit:
    """``[from:to:when]``, ``when`` as it was written."""

    before: Text
    after: Text
    when: str


@dataclass(frozen=True, slots=True)
class Alternation:
    """``[a|b|...]``, at least two of them."""

    options: tuple[Text, ...]


Piece: TypeAlias = "str | Edit | Alternation | Text"
Text: TypeAlias = tuple[Piece, ...]
"""Pieces in a row: text with its emphasis and escapes as they were written, what changes, and
brackets that have something in them that changes."""


def parse(prompt: str) -> Text:
    """Find what changes in a prompt, or in a part of one.

    Brackets that are not well-formed are text. A ``|`` that stands in no alternation, or a
    backslash before nothing, makes all of it text, editing included, as in webui.
    """
    try:
        return _read(prompt)
    except _NotReadable:
        return (prompt,)


def is_plain(prompt: str) -> bool:
    """Whether a ``|`` or a backslash makes all of it text."""
    try:
        _read(prompt)
    except _NotReadable:
        return True
    return False


def text_at(text: Text, step: int, timeline: Timeline) -> str:
    """What the prompt says at a step, counted from 1."""
    found: list[str] = []
    # Without recursion: a prompt may nest thousands of brackets.
    pending: list[Piece] = list(reversed(text))
    while pending:
        piece = pending.pop()
        if isinstance(piece, str):
            found.append(piece)
        elif isinstance(piece, tuple):
            pending.extend(reversed(piece))
        elif isinstance(piece, Edit):
            chosen = piece.before if step <= timeline.last(piece.when) else piece.after
            pending.extend(reversed(chosen))
        else:
            options = piece.options
            pending.extend(reversed(options[(step - 1) % len(options)]))
    return "".join(found)


def changes(text: Text, timeline: Timeline) -> list[int]:
    """The steps, counted from 1, at which the text may be another than before; 1 is the first."""
    found = {1}
    for change in all_changes(text):
        if isinstance(change, Alternation):
            return list(range(1, timeline.steps + 1))
        found.add(timeline.last(change.when) + 1)
    return sorted(step for step in found if step <= timeline.steps)


def all_changes(text: Text) -> Iterator[Edit | Alternation]:
    """Every edit and alternation in a text, inside of others too."""
    pending: list[Piece] = list(text)
    while pending:
        piece = pending.pop()
        if isinstance(piece, tuple):
            pending += piece
        elif isinstance(piece, Edit):
            yield piece
            pending += [*piece.before, *piece.after]
        elif isinstance(piece, Alternation):
            yield piece
            pending += piece.options


def _read(prompt: str) -> Text:
    reader = _Reader()
    for token in _TOKEN.finditer(prompt):
        reader.read(token)
    return reader.end()


class _NotReadable(Exception):
    """The prompt is text from end to end."""


@dataclass(slots=True)
class _Bracket:
    """A bracket that is still open: what stands between its marks so far."""

    opener: str
    fields: list[list[Piece]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        own = self.fields[-1]
        if isinstance(piece, str) and own and isinstance(own[-1], str):
            own[-1] += piece
        else:
            own.append(piece)

    def as_written(self) -> Iterator[Piece]:
        """Its pieces with its opener and marks, but no closer."""
        yield self.opener
        for mark, pieces in zip(["", *self.marks], self.fields, strict=True):
            if mark == "|":
                raise _NotReadable
            yield mark
            yield from pieces

    def closed(self) -> Piece | None:
        """What it is, closed; None if it is nothing."""
        colons, bars = self.marks.count(":"), self.marks.count("|")
        if self.opener == "(":
            return self._plain(")") if not bars and colons <= 1 else None
        if not self.marks:
            return self._plain("]")
        if bars:
            return None if colons else Alternation(tuple(map(tuple, self.fields)))
        when = self._when() if colons <= 2 else None
        if when is None:
            return None
        before = self.fields[0] if colons == 2 else []
        return Edit(tuple(before), tuple(self.fields[-2]), when)

    def _plain(self, closer: str) -> Piece:
        whole = _Bracket("")
        for piece in (*self.as_written(), closer):
            whole.add(piece)
        pieces = whole.fields[0]
        # As one piece, so that deep brackets are not copied into each other again and again.
        return pieces[0] if len(pieces) == 1 else tuple(pieces)

    def _when(self) -> str | None:
        last = self.fields[-1]
        if len(last) != 1 or not isinstance(last[0], str):
            return None
        number = _NUMBER.fullmatch(last[0])
        return number[1] if number else None


class _Reader:
    """One pass over the prompt. A bracket holds well-formed brackets only, so what cannot be
    closed turns into text together with everything that is open around it."""

    def __init__(self) -> None:
        self._open = [_Bracket("")]

    def read(self, token: re.Match[str]) -> None:
        if token["odd"]:
            raise _NotReadable
        mark, innermost = token["mark"], self._open[-1]
        if mark in ("(", "["):
            self._open.append(_Bracket(mark))
        elif mark in (")", "]"):
            self._close(mark)
        elif mark and innermost.opener:
            innermost.marks.append(mark)
            innermost.fields.append([])
        elif mark == "|":
            raise _NotReadable
        else:
            innermost.add(token[0])

    def end(self) -> Text:
        self._give_up()
        return tuple(piece for piece in self._open[0].fields[0] if piece)

    def _close(self, closer: str) -> None:
        innermost = self._open[-1]
        found = innermost.closed() if innermost.opener + closer in ("()", "[]") else None
        if found is None:
            self._give_up()
            self._open[0].add(closer)
        else:
            self._open.pop()
            self._open[-1].add(found)

    def _give_up(self) -> None:
        top, *others = self._open
        for bracket in others:
            for piece in bracket.as_written():
                top.add(piece)
        self._open = [top]
