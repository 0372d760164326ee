"""What an attempt took: a column of ``attempts`` for each number, as the names of numbers in JSON
take more room than the numbers."""

from __future__ import annotations

COLUMNS = {
    "vram_active": "bigint",
    "vram_reserved": "bigint",
    "system_used": "bigint",
    "system_total": "bigint",
    "units": "real",
    "gpu_seconds": "real",
    "queue_seconds": "real",
    "load_seconds": "real",
    "encode_seconds": "real",
    "denoise_seconds": "real",
    "decode_seconds": "real",
    "store_seconds": "real",
    "mean_rows": "real",
    "steps": "integer",
    "forwards": "integer",
    "checkpoint": "text",
    "precision": "text",
    "remark": "text",
    "buckets": "smallint[]",
}
"""Those that every image has, with their types; what else there is goes into ``stats``, as JSON."""

NAMES = ", ".join(COLUMNS)

_SPEED = "iterations_per_second"


def columns(json: str) -> str:
    """The columns' values in a JSON object, as a row."""
    return f"jsonb_to_record({json}) AS s ({', '.join(map(' '.join, COLUMNS.items()))})"


def rest(json: str) -> str:
    """What a JSON object has beside the columns; null for nothing."""
    known = ", ".join(f"'{name}'" for name in (*COLUMNS, _SPEED))
    return f"nullif(jsonb_strip_nulls({json}) - ARRAY[{known}], '{{}}')"


def speed(row: str) -> str:
    """Steps a second of an attempt."""
    return f"{row}.steps / nullif({row}.denoise_seconds, 0)"


def told(row: str) -> str:
    """All that is known of an attempt, as a JSON object."""
    pairs = [f"'{name}', {row}.{name}" for name in COLUMNS]
    pairs.append(f"'{_SPEED}', {speed(row)}")
    known = f"jsonb_strip_nulls(jsonb_build_object({', '.join(pairs)}))"
    return f"{known} || coalesce({row}.stats, jsonb_build_object())"
