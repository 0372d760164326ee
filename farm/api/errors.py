"""Every error leaves as problem+json (RFC 9457), naming field, value and remedy where known."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from farm.errors import FarmError, InvalidInput, Unavailable
from farm.spec.problems import explain, unparsed

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5
"""Seconds after which a client may ask again while something Farm needs is out of reach."""

_MAX_SHOWN = 200
_MAX_FINDINGS = 100

_log = logging.getLogger(__name__)


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """A problem+json answer; ``more`` are further members, left out where None.

    ``type`` is ``urn:farm:`` and the title, so that a client can tell kinds apart.
    """
    headers = more.pop("headers", None)
    members = {
        "type": f"urn:farm:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        **{name: _shown(part) for name, part in more.items() if part is not None},
    }
    # ASCII only: a lone surrogate that a client sent must not break the answer about it.
    return Response(
        json.dumps(members, allow_nan=False),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def of_error(error: FarmError, *, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for one of our own errors."""
    members = error.to_dict()
    title, detail = members.pop("title"), members.pop("detail")
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    if isinstance(error, Unavailable):
        headers = {"Retry-After": str(RETRY_AFTER), **(headers or {})}
    return problem(error.status, title, detail, headers=headers, **members)


def of_fault(fault: Exception, method: str, path: str) -> Response:
    """The answer for a fault of ours: the log has the traceback, the client a number to ask by."""
    number = uuid4().hex[:12]
    # Quoted: no address may end a line of the log and begin another.
    _log.error("fault %s in %s %s", number, method, quote(path), exc_info=fault)
    return problem(
        500,
        FarmError.title,
        f"Something went wrong inside Farm; it is logged as {number}.",
        id=number,
        remedy="Try again; if it stays, report it with this number and the API's log.",
    )


def install(app: FastAPI) -> None:
    """Let ``app`` answer every error this way."""
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)


def _farm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FarmError)
    if error.status == 500:
        return of_fault(error, request.method, request.scope["path"])
    return of_error(error)


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    findings = [_explained(finding, request) for finding in error.errors()[:_MAX_FINDINGS]]
    members = findings[0].to_dict()
    title, detail = members.pop("title"), members.pop("detail")
    errors = [_without(finding.to_dict(), "title", "class") for finding in findings]
    return problem(InvalidInput.status, title, detail, **members, errors=errors)


def _explained(finding: Mapping[str, Any], request: Request) -> InvalidInput:
    place = finding["loc"]
    if finding["type"] == "json_invalid":
        reason = finding.get("ctx", {}).get("error", "unreadable")
        where = f" at character {place[1]}" if len(place) > 1 else ""
        return _unreadable(reason, where)
    content_type = request.headers.get("content-type", "")
    if place == ("body",) and finding["type"] != "missing" and "json" not in content_type:
        return InvalidInput(
            f"Content-Type: {content_type or 'none'} is not JSON.",
            field="Content-Type",
            value=content_type,
            remedy="Send the body as JSON, with the header Content-Type: application/json.",
        )
    return explain(finding)


def _unreadable(reason: str, where: str = "") -> InvalidInput:
    told = f"body: not valid JSON{where}: {reason}."
    return InvalidInput(told, field="body", remedy="Send valid JSON.")


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path, cause = error.status_code, request.url.path, error.__cause__
    if isinstance(cause, ValueError | RecursionError):  # met by who parsed the body
        return of_error(_unreadable(unparsed(cause)))
    if status == HTTPStatus.NOT_FOUND:
        return problem(404, "Not found", f"Nothing is at {path}.", remedy="See /docs.")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible on {path}."
        return problem(
            405, "Method not allowed", detail, remedy="See /docs.", headers=error.headers
        )
    title = HTTPStatus(status).phrase
    return problem(status, title, f"{error.detail}.", headers=error.headers)


def _without(members: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: part for name, part in members.items() if name not in names}


def _shown(value: Any) -> Any:
    """``value`` as far as JSON can say it, long texts and numbers cut."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return {str(name): _shown(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_shown(part) for part in value]
    return value
