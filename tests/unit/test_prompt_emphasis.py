"""Emphasis and BREAK, by hand from webui's rules; and the explanation of whole prompts."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from farm.cli import main
from farm.errors import InvalidInput
from farm.spec.networks import Lora
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.emphasis import is_mild, sections
from farm.spec.prompt.explanation import explain

BRACKETS = st.text(st.sampled_from("()[]:\\ .12-+ab BREAK"), max_size=40)


def weighed(text: str) -> list[list[tuple[str, float]]]:
    return [
        [(segment.text, pytest.approx(segment.weight, abs=1e-12)) for segment in section]
        for section in sections(text)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("((a))", [("a", 1.21)]),
        ("[[a]]", [("a", 1 / 1.21)]),
        ("([a])", [("a", 1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:+2.)", [("a", 2)]),
        ("(a:0)", [("a", 0)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("a (((b:1.3)) c)", [("a ", 1), ("b", 1.3 * 1.21), (" c", 1.1)]),
        ("(a)(b)c", [("ab", 1.1), ("c", 1)]),
        ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
        # Unclosed: to the end. Never opened: text.
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("a ((b) c", [("a ", 1), ("b", 1.21), (" c", 1.1)]),
        ("a [b", [("a ", 1), ("b", 1 / 1.1)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("a:1.5) b", [("a:1.5) b", 1)]),
        # Round and square brackets do not know each other.
        ("([a:1.5) b", [("a", 1.5 / 1.1), (" b", 1 / 1.1)]),
        ("(a[b)c]", [("a", 1.1), ("b", 1), ("c", 1 / 1.1)]),
        # Escapes.
        (r"\(a\)", [("(a)", 1)]),
        (r"\[a\] \\", [("[a] \\", 1)]),
        (r"(a\):2)", [("a)", 2)]),
        (r"\a", [("a", 1)]),
        ("a\\", [("a", 1)]),
        # No numbers, so no weights; webui fails at the first two.
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("(a:1e2)", [("a:1e2", 1.1)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("10:30", [("10:30", 1)]),
    ],
)
def test_emphasis(text: str, expected: list[tuple[str, float]]) -> None:
    assert weighed(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a,BREAK\n\nb", [[("a,", 1)], [("b", 1)]]),
        ("BREAK a", [[], [("a", 1)]]),
        ("a BREAK", [[("a", 1)], []]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [[("a", 1)], [], [("b", 1)]]),
        ("aBREAK BREAKs break", [[("aBREAK BREAKs break", 1)]]),
        # webui reads a BREAK in brackets as a word.
        ("(a BREAK b:2) c", [[("a", 2)], [("b", 2), (" c", 1)]]),
        ("[a BREAK] b", [[("a", 1 / 1.1)], [(" b", 1)]]),
    ],
)
def test_break_ends_a_section(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert weighed(text) == expected


@pytest.mark.parametrize("text", ["(" * 100 + "a", "(a:1001)", "(a:" + "9" * 400 + ")"])
def test_a_weight_beyond_reason_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="multiply to a weight of") as refused:
        sections(text)
    assert refused.value.field == "prompt"
    assert refused.value.remedy


@given(st.text(max_size=60))
def test_text_without_marks_is_itself(text: str) -> None:
    plain = text.translate(dict.fromkeys(map(ord, "()[]\\"))).replace("BREAK", "")
    assert weighed(plain) == [[(plain, 1)] if plain else []]


@given(BRACKETS)
def test_whatever_the_brackets_segments_are_not_empty_and_neighbours_differ(text: str) -> None:
    found = sections(text)
    assert found
    for section in found:
        assert all(segment.text for segment in section)
        assert all(one.weight != two.weight for one, two in pairwise(section))


def character_by_character(text: str) -> list[tuple[str, float]]:
    """Every character with its weight: whatever closes multiplies all since it was opened."""
    found: list[tuple[str, float]] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    place = 0

    def multiply(since: int, factor: float) -> None:
        found[since:] = [(character, weight * factor) for character, weight in found[since:]]

    while place < len(text):
        number = re.match(r":\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)", text[place:])
        character = text[place]
        place += 1
        if character == "\\":
            if text[place : place + 1] in tuple("()[]\\"):
                found.append((text[place], 1.0))
                place += 1
        elif character in open_at:
            open_at[character].append(len(found))
        elif number and open_at["("]:
            multiply(open_at["("].pop(), float(number[1]))
            place += number.end() - 1
        elif character == ")" and open_at["("]:
            multiply(open_at["("].pop(), 1.1)
        elif character == "]" and open_at["["]:
            multiply(open_at["["].pop(), 1 / 1.1)
        else:
            found.append((character, 1.0))
    for since in open_at["("]:
        multiply(since, 1.1)
    for since in open_at["["]:
        multiply(since, 1 / 1.1)
    return found


@given(st.text(st.sampled_from("()[]:\\ 2.5-ab"), max_size=30))
def test_weights_are_those_of_multiplying_ranges(text: str) -> None:
    (found,) = sections(text)
    weighed = [(character, part.weight) for part in found for character in part.text]
    expected = character_by_character(text)
    assert [character for character, _ in weighed] == [character for character, _ in expected]
    assert [weight for _, weight in weighed] == pytest.approx([weight for _, weight in expected])


@given(st.lists(st.floats(0.1, 2).map(lambda weight: round(weight, 2)), max_size=6))
def test_nested_weights_multiply(weights: list[float]) -> None:
    text, product = "a", 1.0
    for weight in weights:
        text, product = f"({text}:{weight})", product * weight
    assert weighed(text) == [[("a", product)]]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "a cat"),
        ("a cat # white\na dog", "a cat \na dog"),
        ("# all\na cat\n  # more\na dog", "a cat\na dog"),
        ("#", ""),
        ("a #1 dad", "a "),
    ],
)
def test_comments_are_cut_out(prompt: str, expected: str) -> None:
    assert without_comments(prompt) == expected


def test_a_prompt_is_explained() -> None:
    found = explain(
        "a [cat:dog:0.5] (red:1.3)<lora:ink:0.5:1> # a note\nAND fog BREAK sky :0.4", "blur"
    )
    first, second = found.parts
    assert (found.calls, first.weight, second.weight) == (20, 1.0, 0.4)
    assert [(say.first, say.last, say.text) for say in first.says] == [
        (1, 10, "a cat (red:1.3)"),
        (11, 20, "a dog (red:1.3)"),
    ]
    assert [[part.text for part in section] for section in second.says[0].sections] == [
        ["fog"],
        ["sky"],
    ]
    assert [(say.first, say.last, say.text) for say in found.negative] == [(1, 20, "blur")]
    assert (found.te_loras, found.unet_loras) == ((Lora("ink", 0.5),), (Lora("ink", 1.0),))
    assert found.notes == ()


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a | b [c:0.5]", "turns all prompt editing off in 'a | b [c:0.5]'"),
        ("a [red:1.2]", "For a weight, write (...:1.2) with round brackets"),
        ("a [red:30] dog", "changes only after the last of 20 steps"),
    ],
)
def test_what_may_be_a_mistake_is_noted(prompt: str, note: str) -> None:
    (found,) = explain(prompt).notes
    assert note in found


def test_tokens_are_counted_chunk_by_chunk() -> None:
    found = explain("red " * 60 + ", " + "a cat " * 10 + "BREAK (masterpiece:1.2)")
    assert found.parts[0].says[0].chunks == (61, 20, 1)
    assert found.negative[0].chunks == (0,)


def test_the_command_line_explains_without_a_farm() -> None:
    run = CliRunner().invoke
    shown = run(main.app, ["prompt", "explain", "a:b:3 [c|d] AND (e) :2", "--steps", "2"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines() == [
        "part 1, weight 1",
        "step 1: a:b:3 c (6 tokens)",
        "step 2: a:b:3 d (6 tokens)",
        "part 2, weight 2",
        "step 1-2: e×1.1 (1 token)",
    ]
    told = json.loads(
        run(main.app, ["prompt", "explain", "(e)", "--sampler", "heun", "--json"]).output
    )
    assert told["calls"] == 40
    assert told["parts"][0]["says"][0]["sections"] == [[{"text": "e", "weight": 1.1}]]
    refused = run(main.app, ["prompt", "explain", "<lora:x:y>"])
    assert refused.exit_code == 2
    assert "not a number" in refused.output


@pytest.mark.parametrize(
    ("text", "mild"),
    [
        ("a (red:1.2) cat, at 10:30", True),
        ("(" * 70, True),
        ("(" * 80, False),
        ("(" * 20_000, False),
        ("(a:999)", False),
        ("(a:1.2.3)", False),
        ("(a:" + "9" * 400 + ")", False),
    ],
)
def test_what_is_mild_needs_no_reading(text: str, mild: bool) -> None:
    assert is_mild(text) == mild


@given(BRACKETS)
def test_what_is_mild_is_never_refused(text: str) -> None:
    if is_mild(text):
        sections(text)
