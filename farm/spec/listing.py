"""Jobs listed one by one, each overriding the fields that they share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest, completed
from farm.spec.checkpoints import Defaults, known_checkpoint, own_checkpoint
from farm.spec.hires import SECOND_PASS, in_vain
from farm.spec.job import JobSpec
from farm.spec.problems import unparsed, validated

MAX_LINE = 256 * 1024
"""Bytes of a line; the longest prompts take 160 000 where every character is escaped."""

OPTIONS = "batch"
"""The name under which the first line may give the fields that all jobs share."""


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


class Listing:
    """Freezes listed jobs, quickly where there are a million of them.

    Args:
        request: what they share; no axes, and each once.
        defaults: of the checkpoints that there are.
    """

    def __init__(self, request: BatchRequest, defaults: Defaults) -> None:
        if request.axes or request.count != 1:
            raise InvalidInput(
                "jobs: a batch lists its jobs or spans axes, not both.",
                field="jobs",
                remedy="Leave out axes and count, or leave out jobs.",
            )
        self._defaults = defaults
        fields = set(JobSpec.model_fields)
        self._shared = request.model_dump(include=fields, exclude_unset=True)
        self._names: dict[tuple[str, str | None], str] = {}
        self._in_vain: InvalidInput | None = None
        self._second_pass = False

    def job(self, overrides: Mapping[str, Any], where: str) -> JobSpec:
        """One job; InvalidInput names the field in it that is wrong, behind ``where``."""
        given = {**self._shared, **overrides}
        given["checkpoint"] = self._named("checkpoint", given.get("checkpoint"), where)
        if own := given.get("hires_checkpoint"):
            given["hires_checkpoint"] = self._named("hires_checkpoint", own, where)
        job = validated(JobSpec, completed(given, self._defaults), prefix=where)
        self._note(job, overrides, where)
        return job

    def check(self) -> None:
        """Raise InvalidInput if what was said of second passes was heeded in none of the jobs."""
        if self._in_vain and not self._second_pass:
            raise self._in_vain

    def _note(self, job: JobSpec, overrides: Mapping[str, Any], where: str) -> None:
        self._second_pass = self._second_pass or job.target is not None
        if self._second_pass or self._in_vain:
            return
        for field in sorted(SECOND_PASS & job.model_fields_set):
            value = getattr(job, field)
            if value != JobSpec.model_fields[field].default:
                self._in_vain = in_vain(f"{where}.{field}" if field in overrides else field, value)
                return

    def _named(self, field: str, name: Any, where: str) -> str:
        if not isinstance(name, str | None):
            validated(BatchRequest, {field: name}, prefix=where)
        if (field, name) not in self._names:
            find = known_checkpoint if field == "checkpoint" else own_checkpoint
            self._names[field, name] = find(name, self._defaults, f"{where}.{field}")
        return self._names[field, name]


def freeze_listed(request: BatchRequest, defaults: Defaults) -> list[JobSpec]:
    """The explicit ``jobs`` of a request, each validated; the first wrong one is named."""
    listing = Listing(request, defaults)
    jobs = [listing.job(job, f"jobs[{index}]") for index, job in enumerate(request.jobs or [])]
    listing.check()
    return jobs


def parsed(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object on a line; InvalidInput says what is wrong with line ``where``."""
    if len(line) > MAX_LINE:
        remedy = "Put each job on a line of its own."
        raise InvalidInput(f"{where}: over {MAX_LINE} bytes.", field=where, remedy=remedy)
    try:
        found = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        reason = unparsed(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at {error.pos}"
        raise InvalidInput(
            f"{where}: not valid JSON: {reason}.",
            field=where,
            remedy='Write one JSON object a line, such as {"prompt": "a red apple"}.',
        ) from None
    if not isinstance(found, dict):
        raise InvalidInput(
            f"{where}: not a JSON object.",
            field=where,
            remedy='Write one JSON object a line, such as {"prompt": "a red apple"}.',
        )
    return found


def options(given: Mapping[str, Any], where: str) -> BatchRequest:
    """What the first line says of the batch: ``{"batch": {"name": ..., "steps": ...}}``.

    Beside it ``"line"`` may say which number that line has in errors, where it is not the first of
    somebody's file.
    """
    for name in given:
        if name not in (OPTIONS, "line"):
            raise InvalidInput(
                f"{where}.{name}: not beside {OPTIONS!r}.",
                field=f"{where}.{name}",
                remedy=f"Move it into {OPTIONS!r}, or into a line of its own.",
            )
    shared = given[OPTIONS]
    if not isinstance(shared, dict):
        told = f"{where}.{OPTIONS}"
        raise InvalidInput(f"{told}: not an object.", field=told, remedy="Write fields in braces.")
    for name in ("axes", "count", "jobs"):
        if name in shared:
            field = f"{where}.{OPTIONS}.{name}"
            remedy = "Remove it: each line is one job."
            raise InvalidInput(f"{field}: not possible here.", field=field, remedy=remedy)
    return validated(BatchRequest, shared, prefix=f"{where}.{OPTIONS}")
