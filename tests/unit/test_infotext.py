from __future__ import annotations

from farm.spec.infotext import infotext
from farm.spec.job import JobSpec

JOB = JobSpec(checkpoint="demo", prompt="a red apple", width=128, height=64, seed=5, cfg_scale=3)


def test_the_layout_is_webuis() -> None:
    assert infotext(JOB) == (
        "a red apple\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 128x64, Model: demo, RNG: CPU"
    )


def test_a_negative_prompt_has_its_line() -> None:
    text = infotext(JOB.model_copy(update={"negative_prompt": "blurry"}))
    assert text.splitlines()[1] == "Negative prompt: blurry"


def test_values_with_commas_or_colons_are_quoted() -> None:
    assert infotext(JOB, {"Note": 'a, "b": c', "None": None}).endswith(r'Note: "a, \"b\": c"')
