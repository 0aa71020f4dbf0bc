"""The five external-support endpoints: what a request does to the state."""

from copy import copy
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlsplit

from jelou_rotation.simulator.answers import Answer, Call, RefusalError, deleted, failure, success
from jelou_rotation.simulator.receivers import AuthType, decoded_basic
from jelou_rotation.simulator.state import Project, Simulator

_FIELDS = {"webhookUrl": "webhook_url", "authType": "auth_type", "authorization": "authorization"}


def arrived(simulator: Simulator, call: Call) -> None:
    """Take note of a request, whatever becomes of it."""
    simulator.requests_by_method[call.method] += 1
    simulator.user_agents.add(call.headers.get("User-Agent", ""))
    project = simulator.projects.get(call.project_id)
    if project and call.method == "PATCH":
        project.received.append(call.parsed())


def act(simulator: Simulator, call: Call) -> Answer:
    """Carry a request out, or refuse it."""
    try:
        _admit(simulator, call)
        if call.regenerates:
            return _regenerate(simulator, call)
        return _ACTIONS[call.method](simulator, call)
    except RefusalError as refusal:
        return failure(simulator.switches.error_body, call, refusal)


def _admit(simulator: Simulator, call: Call) -> None:
    if not _is_authenticated(simulator, call):
        raise RefusalError(401, "The credentials are missing or wrong")
    if call.project_id in simulator.forbidden:
        raise RefusalError(403, "These credentials may not touch this project")


def _is_authenticated(simulator: Simulator, call: Call) -> bool:
    accepted = simulator.switches.auth
    if accepted != "basic" and call.headers.get("x-api-key") in simulator.api_keys:
        return True
    client_id, _, secret = (decoded_basic(call.headers.get("Authorization", "")) or "").partition(":")
    return accepted != "api_key" and simulator.clients.get(client_id) == secret


def _create(simulator: Simulator, call: Call) -> Answer:
    body = _valid_body(simulator, call)
    if "webhookUrl" not in body:
        raise _invalid(simulator, {"webhookUrl": "is required"})
    second_create = simulator.switches.second_create
    if call.project_id in simulator.projects and second_create != "overwrite":
        raise RefusalError(int(second_create), "This project has an integration already")
    project = simulator.create(
        call.project_id, body["webhookUrl"], body.get("authType", "no_auth"), body.get("authorization")
    )
    return success(simulator, "created", project)


def _read(simulator: Simulator, call: Call) -> Answer:
    project = _found(simulator, call)
    if project.former and project.stale_gets:
        project.stale_gets -= 1
        project = project.former
    return success(simulator, "retrieved", project)


def _update(simulator: Simulator, call: Call) -> Answer:
    project = _found(simulator, call)
    body = _valid_body(simulator, call)
    now = datetime.now(UTC)
    before = copy(project)
    if not project.stale_gets:
        project.former = before
    project.stale_gets = simulator.switches.visible_after
    _apply(simulator, project, body)
    if simulator.switches.updated_at_moves_on_noop or _settings(project) != _settings(before):
        project.updated_at = now
    project.patches.append(body)
    project.patched_at.append(now)
    return success(simulator, "updated", project)


def _apply(simulator: Simulator, project: Project, body: dict[str, Any]) -> None:
    """Only the fields sent are changed."""
    for name, attribute in _FIELDS.items():
        if name in body:
            setattr(project, attribute, body[name])
    if project.auth_type == "no_auth" and not simulator.switches.no_auth_keeps_credential:
        project.authorization = None


def _settings(project: Project) -> tuple[str, str, str | None]:
    return project.webhook_url, project.auth_type, project.authorization


def _delete(simulator: Simulator, call: Call) -> Answer:
    _found(simulator, call)
    del simulator.projects[call.project_id]
    return deleted()


def _regenerate(simulator: Simulator, call: Call) -> Answer:
    project = _found(simulator, call)
    project.signing_secret = simulator.new_secret()
    return success(simulator, "regenerated", project)


_ACTIONS = {"POST": _create, "GET": _read, "PATCH": _update, "DELETE": _delete}


def _found(simulator: Simulator, call: Call) -> Project:
    project = simulator.projects.get(call.project_id)
    if project is None:
        raise RefusalError(404, "No integration for this project")
    return project


def _valid_body(simulator: Simulator, call: Call) -> dict[str, Any]:
    body = call.parsed()
    if not isinstance(body, dict):
        raise _invalid(simulator, {"body": "must be a JSON object"})
    if body.keys().isdisjoint(_FIELDS):
        raise _invalid(simulator, {"body": "must name a field to set"})
    wrong = _wrong_fields(body)
    if wrong:
        raise _invalid(simulator, wrong)
    return body


def _wrong_fields(body: dict[str, Any]) -> dict[str, str]:
    wrong = {name: "must be a string" for name in _FIELDS if not isinstance(body.get(name, ""), str)}
    if "authType" in body and body["authType"] not in get_args(AuthType):
        wrong["authType"] = f"must be one of {', '.join(get_args(AuthType))}"
    if "webhookUrl" in body and not _is_url(body["webhookUrl"]):
        wrong["webhookUrl"] = "must be an http or https URL"
    return wrong


def _is_url(value: Any) -> bool:
    try:
        parts = urlsplit(value)
    except (TypeError, ValueError, AttributeError):
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _invalid(simulator: Simulator, wrong: dict[str, str]) -> RefusalError:
    return RefusalError(simulator.switches.validation_status, "A field is invalid", wrong)
