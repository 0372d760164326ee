"""What a prompt says at each step: editing, alternation, composition. Answers worked out by hand
from webui's rules; where we differ from it on purpose, the test says so."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec.prompt.composition import parts
from farm.spec.prompt.editing import Alternation, Edit, Timeline, is_plain, parse, text_at
from farm.spec.prompt.table import Course, compile_prompt, schedule, timeline

TEN = Timeline(10)
SYNTAX = st.text(st.sampled_from("[]():|\\ab .15-AND\n"), max_size=40)


def said(prompt: str, line: Timeline = TEN) -> list[tuple[int, str]]:
    """(calls of the model that say it, text), in order."""
    entries = schedule(prompt, line)
    ends = [entry.first for entry in entries[1:]] + [line.steps]
    return [(end - entry.first, entry.text) for entry, end in zip(entries, ends, strict=True)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [(10, "")]),
        ("test", [(10, "test")]),
        ("[a:b:3]", [(3, "a"), (7, "b")]),
        ("x [a:b:3] y", [(3, "x a y"), (7, "x b y")]),
        ("x [b:3]", [(3, "x "), (7, "x b")]),
        ("x [b: 3 ]", [(3, "x "), (7, "x b")]),
        ("x [a::3]", [(3, "x a"), (7, "x ")]),
        ("[:b:3]", [(3, ""), (7, "b")]),
        ("x [b:.5]", [(5, "x "), (5, "x b")]),
        ("x [b:0.25]", [(2, "x "), (8, "x b")]),
        ("[a:b:1]", [(1, "a"), (9, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1e1]", [(10, "a")]),
        ("[a:b:1e-1]", [(10, "b")]),
        ("[a:b:25]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-2]", [(10, "b")]),
        ("[a:b:+2]", [(2, "a"), (8, "b")]),
        ("[a:b:2.]", [(10, "a")]),
        ("x [a : b : 1] y", [(1, "x a  y"), (9, "x  b  y")]),
        ("[(a:2):3]", [(3, ""), (7, "(a:2)")]),
        ("x [[[b]]:2]", [(2, "x "), (8, "x [[b]]")]),
        ("x[b:[c:d:2]:1]e", [(1, "xbe"), (1, "xce"), (8, "xde")]),
        ("[[a:b:2]:c:5]", [(2, "a"), (3, "b"), (5, "c")]),
        ("[[a:b:7]:c:5]", [(5, "a"), (5, "c")]),
        ("([a:b:3]:1.2)", [(3, "(a:1.2)"), (7, "(b:1.2)")]),
        (r"[a\:b:c:3]", [(3, r"a\:b"), (7, "c")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
        ("[1:2]", [(2, ""), (8, "1")]),
        # Not editing: text, brackets and all.
        ("x [b", [(10, "x [b")]),
        ("[a]", [(10, "[a]")]),
        ("[3]", [(10, "[3]")]),
        ("[a:b:c]", [(10, "[a:b:c]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b:3 4]", [(10, "[a:b:3 4]")]),
        ("[a:b:]", [(10, "[a:b:]")]),
        ("[x (y:b:3]", [(10, "[x (y:b:3]")]),
        ("10:30", [(10, "10:30")]),
        # An unclosed bracket does not spoil what is whole inside of it, or after it.
        ("((x][:b:c [d:3]", [(3, "((x][:b:c "), (7, "((x][:b:c d")]),
        ("[x [a:b:3]", [(3, "[x a"), (7, "[x b")]),
        ("[[x:y]:[p:q:2]:3]", [(2, "[[x:y]:p:3]"), (8, "[[x:y]:q:3]")]),
        # A bar out of place, or a backslash before nothing, turns editing off altogether.
        ("x | [a:b:3]", [(10, "x | [a:b:3]")]),
        ("x [{b|d{:.5] c", [(10, "x [{b|d{:.5] c")]),
        ("(a|b) [c:3]", [(10, "(a|b) [c:3]")]),
        ("[a|b [c:3]", [(10, "[a|b [c:3]")]),
        ("[c:3] \\", [(10, "[c:3] \\")]),
    ],
)
def test_editing(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert said(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a|b]", ["a", "b", "a", "b", "a", "b"]),
        ("x[a|b|c]", ["xa", "xb", "xc", "xa", "xb", "xc"]),
        ("[fe|]male", ["female", "male", "female", "male", "female", "male"]),
        ("[fe|||]male", ["female", "male", "male", "male", "female", "male"]),
        ("[|a]", ["", "a", "", "a", "", "a"]),
        ("[a|(b:1.1)]", ["a", "(b:1.1)"] * 3),
        ("[a|b][c|d|e]", ["ac", "bd", "ae", "bc", "ad", "be"]),
        ("[a|[b|c]]", ["a", "c", "a", "c", "a", "c"]),
        ("[[a|b]:c:3]", ["a", "b", "a", "c", "c", "c"]),
        ("[a|[b:c:3]]", ["a", "b", "a", "c", "a", "c"]),
    ],
)
def test_alternation(prompt: str, expected: list[str]) -> None:
    parsed = parse(prompt)
    assert [text_at(parsed, step, Timeline(6)) for step in range(1, 7)] == expected


@pytest.mark.parametrize(
    ("when", "first_pass", "second_pass"),
    [
        ("0.5", [(5, "a"), (5, "b")], [(4, "b")]),
        ("1.0", [(10, "a")], [(4, "b")]),
        ("1.5", [(10, "a")], [(2, "a"), (2, "b")]),
        ("2.0", [(10, "a")], [(4, "a")]),
        ("3", [(3, "a"), (7, "b")], [(4, "b")]),
        ("10", [(10, "a")], [(4, "b")]),
        ("13", [(10, "a")], [(3, "a"), (1, "b")]),
        ("20", [(10, "a")], [(4, "a")]),
    ],
)
def test_the_passes_of_a_hires_fix_share_one_scale(
    when: str, first_pass: list[tuple[int, str]], second_pass: list[tuple[int, str]]
) -> None:
    assert said(f"[a:b:{when}]", Timeline(10)) == first_pass
    assert said(f"[a:b:{when}]", Timeline(4, before=10)) == second_pass


def test_a_second_order_sampler_has_two_calls_a_step() -> None:
    assert said("[a:b:4]", timeline("Heun", 5)) == [(4, "a"), (6, "b")]
    assert said("[a:b:0.5]", timeline("DPM++ SDE Karras", 5)) == [(5, "a"), (5, "b")]
    assert said("[a:b:4]", timeline("DPM++ 2M Karras", 5)) == [(4, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", [("", 1)]),
        # webui takes the end of these for weights of 30 and 1.2.
        ("at 10:30", [("at 10:30", 1)]),
        ("a cat :1.2", [("a cat :1.2", 1)]),
        ("a cat AND a dog", [("a cat", 1), ("a dog", 1)]),
        ("a :1.2 AND b :-0.5", [("a", 1.2), ("b", -0.5)]),
        ("a:2AND b", [("a:2AND b", 1)]),
        ("a: 2 AND b :.5 AND c:1. ", [("a", 2), ("b", 0.5), ("c", 1)]),
        ("a :1e2 AND b :x AND c :", [("a :1e2", 1), ("b :x", 1), ("c :", 1)]),
        ("a:1:2 AND b", [("a:1", 2), ("b", 1)]),
        ("a\nAND\nb", [("a", 1), ("b", 1)]),
        ("AND", [("", 1), ("", 1)]),
        ("SAND AND band", [("SAND", 1), ("band", 1)]),
        ("a and b", [("a and b", 1)]),
        ("[a AND b:c:0.5]", [("[a", 1), ("b:c:0.5]", 1)]),
    ],
)
def test_composition(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert [tuple(part) for part in parts(prompt)] == expected


def test_a_weight_beyond_reason_is_refused() -> None:
    with pytest.raises(InvalidInput, match="weight 5000") as refused:
        parts("a cat :5000 AND a dog")
    assert (refused.value.field, refused.value.value) == ("prompt", "5000")
    assert refused.value.remedy


def test_more_parts_than_anybody_means_are_refused() -> None:
    assert len(parts(" AND ".join("a" * 32))) == 32
    with pytest.raises(InvalidInput, match="33 parts joined by AND") as refused:
        parts(" AND ".join("a" * 33))
    assert (refused.value.field, refused.value.value) == ("prompt", 33)
    assert refused.value.remedy


def test_each_part_changes_by_itself() -> None:
    assert compile_prompt("[a:b:3] AND [c:d:5] :0.5", TEN) == (
        Course(1.0, ((0, "a"), (3, "b"))),
        Course(0.5, ((0, "c"), (5, "d"))),
    )


@given(st.text(max_size=60), st.integers(1, 30))
def test_text_without_marks_is_itself(text: str, steps: int) -> None:
    plain = text.translate(dict.fromkeys(map(ord, "[]|\\")))
    assert schedule(plain, Timeline(steps)) == ((0, plain),)


@given(SYNTAX, st.integers(1, 12), st.none() | st.integers(1, 12))
def test_every_step_has_one_text_and_no_entry_repeats_the_last(
    prompt: str, steps: int, before: int | None
) -> None:
    line = Timeline(steps, before)
    for course in compile_prompt(prompt, line):
        firsts = [entry.first for entry in course.schedule]
        assert firsts[0] == 0
        assert firsts == sorted(set(firsts))
        assert firsts[-1] < steps
        texts = [entry.text for entry in course.schedule]
        assert all(one != two for one, two in pairwise(texts))


@given(SYNTAX, st.integers(1, 12))
def test_the_table_says_what_the_tree_says(prompt: str, steps: int) -> None:
    line, parsed = Timeline(steps), parse(prompt)
    entries = schedule(prompt, line)
    for step in range(1, steps + 1):
        current = [entry.text for entry in entries if entry.first < step][-1]
        assert current == text_at(parsed, step, line)


@given(SYNTAX)
def test_what_does_not_change_is_kept_to_the_letter(prompt: str) -> None:
    parsed = parse(prompt)
    if is_plain(prompt):
        assert parsed == (prompt,)
    elif not any(isinstance(piece, Edit | Alternation | tuple) for piece in parsed):
        assert "".join(piece for piece in parsed if isinstance(piece, str)) == prompt


EDITABLE = st.recursive(
    st.text("abc ,", max_size=4),
    lambda inner: st.one_of(
        st.tuples(inner, inner, st.integers(0, 9)).map(lambda t: f"[{t[0]}:{t[1]}:{t[2]}]"),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"[{'|'.join(options)}]"),
        st.tuples(inner, inner).map("".join),
        inner.map(lambda text: f"({text}:1.2)"),
    ),
    max_leaves=6,
)


@given(EDITABLE, st.integers(1, 9))
def test_what_a_step_says_has_nothing_left_to_edit(prompt: str, step: int) -> None:
    settled = text_at(parse(prompt), step, TEN)
    assert "|" not in settled
    assert text_at(parse(settled), step, TEN) == settled


@pytest.mark.parametrize(
    "prompt",
    ["[" * 20_000, "(" * 10_000 + ")" * 10_000, "[a:" * 5_000 + ":1]" * 5_000, "[[a:1]" * 3_000],
    ids=lambda prompt: prompt[:6],
)
def test_deep_brackets_are_only_brackets(prompt: str) -> None:
    assert len(schedule(prompt, TEN)) <= 2
