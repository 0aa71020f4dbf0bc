"""One request as it arrived, and the answers in every shape the documentation leaves open."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from jelou_rotation.simulator.faults import Fault
from jelou_rotation.simulator.state import Project, Simulator
from jelou_rotation.simulator.switches import ErrorBody, Shape

HTML = b"<!DOCTYPE html><html><head><title>Gateway</title></head><body><h1>Please try again</h1></body></html>"
JSON_TYPE = "application/json"
HTML_TYPE = "text/html"

# The code of each status; where the general API names none, a name like its others.
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden_bot",
    404: "integration_not_found",
    409: "integration_exists",
    422: "unprocessable_entity",
    500: "internal_server_error",
}

Action = Literal["created", "retrieved", "updated", "regenerated"]

_MESSAGES: dict[Action, str] = {
    "created": "Integration created successfully",
    "retrieved": "Integration retrieved successfully",
    "updated": "Integration updated successfully",
    "regenerated": "Signing secret regenerated successfully",
}
_FLAT: dict[Action, tuple[str, ...]] = {
    "created": ("id", "brainId", "webhookUrl", "authType", "signingSecret", "createdAt"),
    "retrieved": ("id", "brainId", "webhookUrl", "authType", "createdAt", "updatedAt"),
    "updated": ("id", "brainId", "webhookUrl", "authType", "createdAt", "updatedAt"),
    "regenerated": ("signingSecret", "regeneratedAt"),
}
_DATA: dict[Action, tuple[str, ...]] = {
    "created": ("brainId", "webhookUrl", "signingSecret", "createdAt"),
    "retrieved": ("brainId", "webhookUrl", "createdAt", "updatedAt"),
    "updated": ("brainId", "webhookUrl", "createdAt", "updatedAt"),
    "regenerated": ("brainId", "signingSecret"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived; `regenerates` tells the two POSTs apart."""

    method: str
    project_id: str
    headers: Mapping[str, str]
    body: bytes = b""
    regenerates: bool = False

    def parsed(self) -> Any:
        """The JSON body; its text when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return self.body.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)


class RefusalError(Exception):
    """The request is not carried out; `fields` says what is wrong with which one."""

    def __init__(self, status: int, description: str, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.fields = dict(fields or {})


def success(simulator: Simulator, action: Action, project: Project) -> Answer:
    """The documented answer to `action`, flat or in the envelope."""
    shape = simulator.next_shape()
    names = (_FLAT if shape == "flat" else _DATA)[action]
    known = _fields(project, shape)
    fields = {name: known[name] for name in names}
    if action == "retrieved":
        fields |= _authorization(simulator, project)
    return Answer(200, _json(fields if shape == "flat" else {**envelope(_MESSAGES[action]), "data": fields}))


def deleted() -> Answer:
    """Here both shapes are an envelope without data."""
    return Answer(200, _json(envelope("Integration deleted successfully")))


def failure(style: ErrorBody, call: Call, refusal: RefusalError) -> Answer:
    if style == "html":
        return Answer(refusal.status, HTML, HTML_TYPE)
    if style == "empty":
        return Answer(refusal.status)
    return Answer(refusal.status, _json(_error(style, call, refusal)))


def faulty(simulator: Simulator, call: Call, fault: Fault, path: str) -> Answer:
    """The answer to a request hit by `fault`, where it is an answer of HTTP at all."""
    status = fault.answer_status
    headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
    if fault.kind == "status":
        answer = failure(simulator.switches.error_body, call, RefusalError(status, "Simulated fault"))
    elif fault.kind == "html":
        answer = Answer(status, HTML, HTML_TYPE)
    elif fault.kind == "status_zero":
        answer = Answer(status, _json(envelope("Simulated fault", status=0)))
    else:
        answer = Answer(status)
    if fault.kind == "redirect":
        headers["Location"] = f"/moved{path}"
    return Answer(answer.status, answer.body, answer.content_type, headers)


def envelope(message: str, status: int = 1) -> dict[str, Any]:
    return {"message": [message], "statusMessage": "success" if status == 1 else "failed", "status": status}


def _fields(project: Project, shape: Shape) -> dict[str, Any]:
    return {
        "id": project.id,
        "brainId": project.project_id,
        "webhookUrl": project.webhook_url,
        "authType": project.auth_type,
        "signingSecret": project.signing_secret,
        "createdAt": _date(project.created_at, shape),
        "updatedAt": _date(project.updated_at, shape),
        "regeneratedAt": _date(datetime.now(UTC), shape),
    }


def _date(when: datetime, shape: Shape) -> str:
    """The panel's dates have whole seconds, the prose's have milliseconds."""
    text = when.isoformat(timespec="seconds" if shape == "flat" else "milliseconds")
    return text.replace("+00:00", "Z")


def _authorization(simulator: Simulator, project: Project) -> dict[str, str | None]:
    match simulator.switches.authorization_in_get:
        case "absent":
            return {}
        case "null":
            return {"authorization": None}
        case "masked":
            return {"authorization": "********"}
        case "echoed":
            return {"authorization": project.authorization}


def _error(style: ErrorBody, call: Call, refusal: RefusalError) -> dict[str, Any]:
    code = _CODES.get(refusal.status, f"http_{refusal.status}")
    if style == "bare":
        return {"code": code, "description": refusal.description}
    if style == "message_array":
        return envelope(refusal.description, status=0)
    if style == "echo":
        return {"message": refusal.description, "headers": dict(call.headers), "body": call.parsed()}
    error = {
        "code": code,
        "key": code,
        "description": refusal.description,
        "developerMessages": {},
        "clientMessages": {},
    }
    return {
        "message": refusal.description,
        "statusMessage": "failed",
        "status": 0,
        "error": error,
        "validationError": refusal.fields,
    }


def _json(body: dict[str, Any]) -> bytes:
    # "replace": a client may send half a surrogate pair, and an echo of it must still be an answer.
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")
