"""/v1/prompts: what a prompt means."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from farm.spec.fields import MAX_PROMPT, MAX_STEPS
from farm.spec.prompt.explanation import Explanation, explain

router = APIRouter(prefix="/v1", tags=["farm"])

Prompt = Annotated[str, Query(max_length=MAX_PROMPT)]


@router.get("/prompts:explain", summary="Parts, weights, editing and LoRAs of a prompt")
def explained(
    prompt: Prompt = "",
    negative_prompt: Prompt = "",
    steps: Annotated[int, Query(ge=1, le=MAX_STEPS)] = 20,
    sampler: str = "Euler a",
) -> Explanation:
    """What the prompt says at each step of a job with these steps of this sampler."""
    return explain(prompt, negative_prompt, steps=steps, sampler=sampler)
