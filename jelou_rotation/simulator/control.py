"""What another process may ask of the simulator itself, and the receivers."""

from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from jelou_rotation.simulator.faults import Fault
from jelou_rotation.simulator.receivers import AuthType, Receiver
from jelou_rotation.simulator.state import Project, Simulator

SIMULATOR = web.AppKey("simulator", Simulator)
Model = TypeVar("Model", bound=BaseModel)

INDEX = """\
A simulator of Jelou's external-support API. It is not Jelou: its defaults are choices, not knowledge.

The API, under /jelouapi/v1 and /platform/v1 (by default x-api-key: demo-key):
  POST GET PATCH DELETE  /external-support/{projectId}
  POST                   /external-support/{projectId}/secret/regenerate

The customers' receivers:
  POST    /receivers/{projectId}            401 when the credential is not accepted

The simulator itself:
  GET     /simulator/state                  projects, receivers, counters, faults, switches
  POST    /simulator/projects               {"projectId", "webhookUrl"?, "authType"?, "authorization"?}
  POST    /simulator/faults                 {"kind", "status"?, "retryAfter"?, "delaySeconds"?, "acts"?,
                                             "method"?, "projectId"?, "times"?, "rate"?}
  DELETE  /simulator/faults
  PUT     /simulator/receivers/{projectId}  {"accepts": ["credential"], "checks": true}
  POST    /simulator/deliver/{projectId}    sends the webhook an event, as Jelou would
"""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class _NewProject(_Body):
    project_id: str
    webhook_url: str | None = None
    auth_type: AuthType = "bearer"
    authorization: str | None = "old"


class _ReceiverSettings(_Body):
    accepts: set[str]
    checks: bool = True


def routes() -> list[web.RouteDef]:
    return [
        web.get("/", _index),
        web.get("/simulator/state", _state),
        web.post("/simulator/projects", _add_project),
        web.post("/simulator/faults", _add_fault),
        web.delete("/simulator/faults", _clear_faults),
        web.put("/simulator/receivers/{project_id:[^/]+}", _set_receiver),
        web.post("/simulator/deliver/{project_id:[^/]+}", _deliver),
        web.post("/receivers/{project_id:[^/]+}", _receive),
    ]


async def _index(_: web.Request) -> web.Response:
    return web.Response(text=INDEX)


async def _state(request: web.Request) -> web.Response:
    simulator = request.app[SIMULATOR]
    return web.json_response(
        {
            "baseUrl": simulator.base_url,
            "switches": simulator.switches.model_dump(),
            "projects": {key: _project(project) for key, project in simulator.projects.items()},
            "receivers": {key: _receiver(receiver) for key, receiver in simulator.receivers.items()},
            "faults": [fault.model_dump(by_alias=True) for fault in simulator.faults],
            "requestsByMethod": simulator.requests_by_method,
            "answers": simulator.answers,
            "userAgents": sorted(simulator.user_agents),
        }
    )


async def _add_project(request: web.Request) -> web.Response:
    new = await _body(request, _NewProject)
    project = request.app[SIMULATOR].add_project(new.project_id, new.webhook_url, new.auth_type, new.authorization)
    return web.json_response(_project(project))


async def _add_fault(request: web.Request) -> web.Response:
    fault = await _body(request, Fault)
    request.app[SIMULATOR].add_fault(fault)
    return web.json_response(fault.model_dump(by_alias=True))


async def _clear_faults(request: web.Request) -> web.Response:
    request.app[SIMULATOR].faults.clear()
    return web.json_response({})


async def _set_receiver(request: web.Request) -> web.Response:
    settings = await _body(request, _ReceiverSettings)
    receiver = request.app[SIMULATOR].receivers.setdefault(request.match_info["project_id"], Receiver())
    receiver.accepts = settings.accepts
    receiver.checks = settings.checks
    return web.json_response(_receiver(receiver))


async def _deliver(request: web.Request) -> web.Response:
    simulator = request.app[SIMULATOR]
    project_id = request.match_info["project_id"]
    if project_id not in simulator.projects:
        return web.json_response({"error": "no such project"}, status=404)
    return web.json_response({"delivered": await simulator.deliver(project_id)})


async def _receive(request: web.Request) -> web.Response:
    receiver = request.app[SIMULATOR].receivers.get(request.match_info["project_id"])
    if receiver is None:
        return web.Response(status=404)
    return web.Response(status=200 if receiver.takes(request.headers) else 401)


async def _body(request: web.Request, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as invalid:
        text = invalid.json(include_url=False, include_input=False)
        raise web.HTTPBadRequest(text=text, content_type="application/json") from None


def _project(project: Project) -> dict[str, Any]:
    patches = zip(project.patched_at, project.patches, strict=True)
    return {
        "id": project.id,
        "projectId": project.project_id,
        "webhookUrl": project.webhook_url,
        "authType": project.auth_type,
        "authorization": project.authorization,
        "signingSecret": project.signing_secret,
        "createdAt": project.created_at.isoformat(),
        "updatedAt": project.updated_at.isoformat(),
        "received": project.received,
        "patches": [{"at": at.isoformat(), "body": body} for at, body in patches],
    }


def _receiver(receiver: Receiver) -> dict[str, Any]:
    return {
        "accepts": sorted(receiver.accepts),
        "checks": receiver.checks,
        "deliveries": receiver.deliveries,
    }
