"""farm show: a batch or a job, what it took, and why it failed."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Batch, Farm, Job
from farm.spec.job import JobSpec
from farm.spec.output import Output

_FAILURES_SHOWN = 10
_ALWAYS_SHOWN = {"checkpoint", "width", "height", "steps", "sampler", "cfg_scale", "seed"}


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="A batch (12) or one job (12-3).")],
    as_json: AsJson = False,
) -> None:
    """Show a batch or a job: its state, what it took, why it failed.

    Examples: farm show 12 | farm show 12-3
    """
    with Farm() as farm:
        if "-" in id:
            job = farm.job(id)
            if as_json:
                output.print_json(job.data)
            else:
                _show_job(job)
            return
        batch = farm.batch(id)
        summary = batch.summary()
        if as_json:
            output.print_json({**batch.data, "summary": summary})
        else:
            _show_batch(batch, summary)


def outcome(batch: Batch) -> None:
    """Say how a batch ended, and why jobs failed."""
    screen = output.console()
    screen.print(f"batch {batch.id} {batch.state}: {output.counts_line(batch.counts)}")
    show_failures(batch)


def exit_code(batch: Batch) -> int:
    """0 if every image was made."""
    return 0 if batch.counts["succeeded"] == batch.total else output.SOME_FAILED


def show_failures(batch: Batch) -> None:
    """The first failed jobs with their reasons and remedies."""
    if not batch.counts["failed"]:
        return
    screen = output.console()
    for job in islice(batch.jobs("failed"), _FAILURES_SHOWN):
        screen.print(f"  {job.id} failed: {reason(job.data['error'])}", markup=False)
    hidden = batch.counts["failed"] - _FAILURES_SHOWN
    if hidden > 0:
        screen.print(f"  and {hidden} more")


def statistics(summary: dict[str, Any]) -> None:
    """Seconds by stage, speed, memory, images by worker."""
    screen = output.console()
    if not summary.get("images"):
        return
    screen.print(output.stage_table(summary))
    for line in output.statistics_lines(summary):
        screen.print(line)
    rows = [(each["worker"], each["images"]) for each in summary["workers"]]
    screen.print(output.table("", ("worker", ">images"), rows))


def _show_batch(batch: Batch, summary: dict[str, Any]) -> None:
    screen, data = output.console(), batch.data
    name = f" {data['name']!r}" if data["name"] else ""
    head = f"batch {batch.id}{name}: {batch.state}, {output.counts_line(batch.counts)}"
    screen.print(head, markup=False)
    if ends := output.eta_line(data["eta"]):
        screen.print(ends)
    screen.print(f"  output: {Output.model_validate(data['output'])}")
    if data["spec"]:
        varied = {axis["field"] for axis in data["spec"]["axes"]}
        _show_fields({k: v for k, v in data["spec"]["template"].items() if k not in varied})
        for axis in data["spec"]["axes"]:
            values = ", ".join(map(str, axis["values"][:20]))
            more = f" and {len(axis['values']) - 20} more" if len(axis["values"]) > 20 else ""
            screen.print(f"  axis {axis['field']}: {values}{more}", markup=False)
        screen.print(f"  count: {data['spec']['count']}")
    statistics(summary)
    show_failures(batch)


def _show_fields(spec: dict[str, Any]) -> None:
    """Those that people ask for; others only where they are not what they are by default."""
    for field, value in spec.items():
        known = JobSpec.model_fields.get(field)
        if field in _ALWAYS_SHOWN or known is None or value != known.default:
            output.console().print(f"  {field}: {value}", markup=False)


def _show_job(job: Job) -> None:
    screen, data = output.console(), job.data
    worker = f" on {data['worker']}" if data["worker"] else ""
    screen.print(f"job {job.id}: {job.state}{worker}, attempt {data['attempt']}", markup=False)
    _show_fields(job.spec)
    if job.image:
        stored = job.image.data
        kind = stored["mime"].removeprefix("image/")
        what = f"{stored['width']}x{stored['height']} {kind}, {output.size(stored['bytes'])}"
        screen.print(f"image: {what}, sha256 {stored['sha256'][:12]}", markup=False)
    if data["error"]:
        screen.print(f"failed: {reason(data['error'])}", markup=False)
    stats = data["stats"] or {}
    if stats:
        screen.print(output.stage_table(stats))
        for line in output.statistics_lines(stats):
            screen.print(line)
    for attempt in data["attempts"]:
        line = f"attempt {attempt['attempt']} on {attempt['worker']}: {attempt['result']}"
        cause = f": {reason(attempt['error'])}" if attempt["error"] else ""
        screen.print(line + cause, markup=False)
        if (attempt["stats"] or {}).get("memory_snapshot"):
            kept = f"/v1/jobs/{job.id}/attempts/{attempt['attempt']}/memory"
            screen.print(f"  memory ran out: {kept} shows what lay where", markup=False)


def reason(error: dict[str, Any] | None) -> str:
    """Why a job failed, and what to do."""
    told = error or {}
    return " ".join(told[part] for part in ("detail", "remedy") if told.get(part)) or "no reason"
