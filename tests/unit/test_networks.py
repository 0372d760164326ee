"""``<lora:...>`` in prompts: what is cut out, what it asks for, and what is refused."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec.job import JobSpec
from farm.spec.networks import Lora, hashes, parse
from farm.spec.problems import validated

NAMES = st.text(
    st.characters(blacklist_characters="<>:#", blacklist_categories=("Cs", "Zs", "Zl", "Zp", "Cc")),
    min_size=1,
    max_size=20,
)
STRENGTHS = st.floats(-4, 4).filter(bool)


@pytest.mark.parametrize(
    ("prompt", "text", "te", "unet"),
    [
        ("a cat", "a cat", {}, {}),
        ("a cat <lora:fur>", "a cat ", {"fur": 1.0}, {"fur": 1.0}),
        ("<lora:fur:0.5>a cat", "a cat", {"fur": 0.5}, {"fur": 0.5}),
        ("a <lora:fur:0.5:0.8>cat", "a cat", {"fur": 0.5}, {"fur": 0.8}),
        ("<lora:fur:te=0.5:unet=0.8>", "", {"fur": 0.5}, {"fur": 0.8}),
        ("<lora:fur:unet=0.8>", "", {"fur": 1.0}, {"fur": 0.8}),
        ("<lora:fur:0.5:unet=0.8>", "", {"fur": 0.5}, {"fur": 0.8}),
        ("<lora:fur:0:1>", "", {}, {"fur": 1.0}),
        ("<lora:fur:-1>", "", {"fur": -1.0}, {"fur": -1.0}),
        ("<lyco:fur: 0.5 >", "", {"fur": 0.5}, {"fur": 0.5}),
        ("<LoRA:styles/fur v1.2:.5>", "", {"styles/fur v1.2": 0.5}, {"styles/fur v1.2": 0.5}),
        ("<lora:b> and <lora:a:2:1>", " and ", {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}),
        ("<lora:a:0.5><lora:a:0.25:1>", "", {"a": 0.75}, {"a": 1.5}),
        ("<lora:a:1><lora:a:-1:0>", "", {}, {"a": 1.0}),
        ("[<lora:a:1>:cat:0.5]", "[:cat:0.5]", {"a": 1.0}, {"a": 1.0}),
        ("a <3 b, 1 < 2 > 0, <->", "a <3 b, 1 < 2 > 0, <->", {}, {}),
    ],
)
def test_tags_are_read_and_cut_out(
    prompt: str, text: str, te: dict[str, float], unet: dict[str, float]
) -> None:
    parsed = parse(prompt)
    assert parsed.text == text
    assert {lora.name: lora.strength for lora in parsed.te} == te
    assert {lora.name: lora.strength for lora in parsed.unet} == unet


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("<lora:>", "names no network"),
        ("<lora: :1>", "names no network"),
        ("<lora:fur:much>", "'much', which is not a number"),
        ("<lora:fur:>", "'', which is not a number"),
        ("<lora:fur:nan>", "'nan', which is not a number"),
        ("<lora:fur:te=inf>", "'inf', which is not a number"),
        ("<lora:fur:1:1:64>", "more than two strengths: '64'"),
        ("<lora:fur:dyn=64>", "an argument 'dyn'"),
        ("<lora:fur:0.5:te=1>", "gives te twice"),
        ("<lora:fur:te=1:0.5:unet=1>", "gives unet twice"),
        ("<lora:fur<lora:b>", "a < in its name"),
        ("<lora:fur:0.5", "is not closed"),
        ("<hypernet:fur:1>", "kind 'hypernet', which Farm has not"),
    ],
)
def test_a_malformed_tag_names_field_value_and_remedy(tag: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(problem)) as raised:
        parse(f"a cat, {tag}")
    assert (raised.value.field, raised.value.value) == ("prompt", tag)
    assert raised.value.remedy


def test_a_job_with_a_malformed_tag_is_refused_before_it_is_accepted() -> None:
    values = {"checkpoint": "a", "width": 64, "height": 64, "seed": 1, "prompt": "<lora:x:y>"}
    with pytest.raises(InvalidInput, match="strength 'y'") as raised:
        validated(JobSpec, values, prefix="jobs[3]")
    assert raised.value.field == "jobs[3].prompt"
    assert raised.value.remedy is not None
    assert raised.value.remedy.startswith("Write <lora:NAME>")


def test_in_a_negative_prompt_a_tag_is_text() -> None:
    values = {"checkpoint": "a", "width": 64, "height": 64, "seed": 1}
    job = validated(JobSpec, {**values, "negative_prompt": "<lora:x:y>"})
    assert job.negative_prompt == "<lora:x:y>"


def test_hashes_name_what_is_known_as_webui_does() -> None:
    prompt = parse("<lora:b:0:1><lora:a><lora:c:1:0><lora:none:0>")
    known = {"a": "aaa", "b": "bbb", "none": "nnn"}
    assert hashes(prompt, known.get) == "a: aaa, b: bbb"
    assert hashes(prompt, {}.get) is None
    assert hashes(parse("a cat"), known.get) is None


@given(st.dictionaries(NAMES, st.tuples(STRENGTHS, STRENGTHS), max_size=4), st.randoms())
def test_whatever_the_order_the_set_is_the_same(loras: dict, random) -> None:
    tags = [f"<lora:{name}:{te!r}:{unet!r}>" for name, (te, unet) in loras.items()]
    random.shuffle(tags)
    parsed = parse("cat".join(["", *tags]))
    assert parsed.text == "cat" * len(tags)
    assert parsed.te == tuple(Lora(name, loras[name][0]) for name in sorted(loras))
    assert parsed.unet == tuple(Lora(name, loras[name][1]) for name in sorted(loras))
    assert hash(parsed) == hash(parse("cat".join(["", *reversed(tags)])))


@given(st.text(st.sampled_from("<>:=lora tey1.5,\n"), max_size=60))
def test_any_text_is_read_or_refused_as_invalid_input(prompt: str) -> None:
    with suppress(InvalidInput):
        parsed = parse(prompt)
        assert parsed.text == prompt or len(parsed.text) < len(prompt)
        assert all(lora.strength for lora in parsed.te + parsed.unet)
