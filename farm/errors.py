"""Every error that Farm raises on purpose.

FarmError
├── InvalidInput          422  a value in a request is wrong; names the field
├── Unauthorized          401  no key, or a key nobody issued
├── Forbidden             403  it belongs to somebody else
├── NotFound              404  no such batch, job, image, worker or page
├── Conflict              409  the request contradicts something already stored
├── QuotaExceeded         429  the user has as much waiting as they may
├── Unavailable           503  Postgres, the broker or the disk is out of reach
│   └── TooManyStreams    429  as many batches are followed at once as may be
├── CheckpointError       422  a checkpoint is missing, damaged or refused
│   ├── LoraError         422  so is a LoRA
│   ├── EmbeddingError    422  so is an embedding
│   └── UpscalerError     422  so is an upscaler
├── DoesNotFit            422  a job needs more memory than the card has
├── NumericFailure        500  NaN or Inf that no precision rung could cure
├── Cancelled             409  the owner cancelled the job
└── SetupError            500  this machine is not ready: port in use, no driver, disk full

``status`` is the HTTP status, ``failure_class`` what a failed job is filed under, which
decides its retry budget.
"""

from __future__ import annotations

from typing import Any


class FarmError(Exception):
    """Base of every deliberate error.

    Args:
        message: one sentence saying what is wrong, with the value.
        field: the request field at fault, dotted for nested ones.
        value: the offending value; long ones are cut when shown.
        remedy: one sentence saying what to do about it.
    """

    status = 500
    title = "Farm failed"
    failure_class = "infrastructure"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    def to_dict(self) -> dict[str, Any]:
        """The error as it is stored with a failed job and sent to clients."""
        shown = self.value
        if isinstance(shown, str) and len(shown) > 200:
            shown = shown[:200] + "…"
        parts = {
            "class": self.failure_class,
            "title": self.title,
            "detail": self.message,
            "field": self.field,
            "value": shown,
            "remedy": self.remedy,
        }
        return {key: part for key, part in parts.items() if part is not None}


class InvalidInput(FarmError):
    status = 422
    title = "Invalid input"
    failure_class = "input"


class Unauthorized(FarmError):
    status = 401
    title = "Not authorised"
    failure_class = "input"


class Forbidden(FarmError):
    status = 403
    title = "Not yours"
    failure_class = "input"


class NotFound(FarmError):
    status = 404
    title = "Not found"
    failure_class = "input"


class Conflict(FarmError):
    status = 409
    title = "Conflict"
    failure_class = "input"


class QuotaExceeded(FarmError):
    status = 429
    title = "Quota exceeded"
    failure_class = "input"


class Unavailable(FarmError):
    status = 503
    title = "Unavailable"


class TooManyStreams(Unavailable):
    status = 429
    title = "Too many streams"


class CheckpointError(FarmError):
    status = 422
    title = "Unusable checkpoint"
    failure_class = "missing asset"


class LoraError(CheckpointError):
    title = "Unusable LoRA"


class EmbeddingError(CheckpointError):
    title = "Unusable embedding"


class UpscalerError(CheckpointError):
    title = "Unusable upscaler"


class DoesNotFit(FarmError):
    status = 422
    title = "Does not fit"
    failure_class = "does not fit"


class NumericFailure(FarmError):
    title = "Not a number"
    failure_class = "numeric"


class Cancelled(FarmError):
    status = 409
    title = "Cancelled"
    failure_class = "input"


class SetupError(FarmError):
    title = "This machine is not ready"
