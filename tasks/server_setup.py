"""The set-up of a Prefect server: the work pool, the lock and the alarms. Doing it again changes only what differs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.events import Event, Resource
from prefect.events.actions import SendNotification
from prefect.events.clients import get_events_client
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel

from jelou_rotation.errors import Fault, SettingsError
from tasks.lock import LOCK, ensure_lock, keeps_others_out

WORK_POOL = "jelou-rotation"
SCHEDULED = "jelou-rotation.deployment.rotate-scheduled"
NOT_SENT = (
    "alarms: seen on the event feed only. To have them sent, make a notification block in the UI (Blocks), such as a"
    " Slack Webhook named ops, and do this again with --notify slack-webhook/ops"
)


class Message(BaseModel):
    """What is sent, as Prefect's templates."""

    subject: str
    body: str


class Alarm(AutomationCore):
    """An automation of automations.yaml, and what it sends when there is a block to send it with."""

    message: Message | None = None


async def set_up_server(automations: Path, notify: str | None, pool_template: Path) -> list[str]:
    """
    Make what is missing and put back what was changed; a line for each thing says which.

    `notify` is a Prefect notification block, TYPE/NAME, that alarms are sent with; None leaves that as it is.
    Raises SettingsError when there is no such block.
    """
    template, wanted = read_template(pool_template), read_alarms(automations)
    async with get_client() as client:
        block = await _notification_block(client, notify) if notify else None
        lines = [await _set_up_pool(client, template), await _set_up_lock(client)]
        alarms = [await _set_up_alarm(client, alarm, block) for alarm in wanted]
    # Starts the clock of the alarm that no rotation finished. A clock that is running goes on.
    async with get_events_client() as events:
        await events.emit(Event(event="jelou-rotation.set-up", resource=Resource({"prefect.resource.id": SCHEDULED})))
    sent = any(_block_of(automation) for automation, _line in alarms)
    return [*lines, *(line for _automation, line in alarms), *([] if sent else [NOT_SENT])]


def read_template(path: Path) -> dict[str, Any]:
    """The base job template in a file like deployments/work-pool.json."""
    template: dict[str, Any] = json.loads(path.read_text())
    return template


def read_alarms(path: Path) -> list[Alarm]:
    """The alarms of a file like deployments/automations.yaml."""
    return [Alarm.model_validate(each) for each in yaml.safe_load(path.read_text())["automations"]]


async def _set_up_pool(client: PrefectClient, template: dict[str, Any]) -> str:
    try:
        pool = await client.read_work_pool(WORK_POOL)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process", base_job_template=template))
        return f"work pool {WORK_POOL}: created"
    wanted = _with_environment_of(template, pool.base_job_template)
    if wanted == pool.base_job_template:
        return f"work pool {WORK_POOL}: already so"
    await client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=wanted))
    return f"work pool {WORK_POOL}: changed, its runs get the environment of the template"


def _with_environment_of(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Whatever else somebody chose for the pool is theirs."""
    if not theirs.get("variables"):
        return ours
    merged = copy.deepcopy(theirs)
    environment = merged["variables"].setdefault("properties", {}).setdefault("env", {})
    added = ours["variables"]["properties"]["env"]["default"]
    environment["default"] = {**(environment.get("default") or {}), **added}
    return merged


async def _set_up_lock(client: PrefectClient) -> str:
    if await ensure_lock(client):
        return f"lock {LOCK}: created"
    if keeps_others_out(await client.read_global_concurrency_limit_by_name(LOCK)):
        return f"lock {LOCK}: already so"
    whole = GlobalConcurrencyLimitUpdate(limit=1, active=True, slot_decay_per_second=0)
    await client.update_global_concurrency_limit(LOCK, whole)
    return f"lock {LOCK}: changed, it keeps others out again"


async def _set_up_alarm(client: PrefectClient, alarm: Alarm, block: UUID | None) -> tuple[AutomationCore, str]:
    existing = next(iter(await client.read_automations_by_name(alarm.name)), None)
    if existing is None:
        wanted = _automation(alarm, block, enabled=True)
        await client.create_automation(wanted)
        return wanted, f"alarm {alarm.name!r}: created"
    wanted = _automation(alarm, block or _block_of(existing), enabled=existing.enabled)
    switched_off = "" if existing.enabled else "; somebody switched it off, and so it stays"
    if AutomationCore(**dict(_fields(existing))) == wanted:
        return wanted, f"alarm {alarm.name!r}: already so{switched_off}"
    await client.update_automation(existing.id, wanted)
    return wanted, f"alarm {alarm.name!r}: changed{switched_off}"


def _automation(alarm: Alarm, block: UUID | None, *, enabled: bool) -> AutomationCore:
    sends = [SendNotification(block_document_id=block, **alarm.message.model_dump())] if block and alarm.message else []
    return AutomationCore(**dict(_fields(alarm)) | {"enabled": enabled, "actions": [*alarm.actions, *sends]})


def _fields(automation: AutomationCore) -> Iterator[tuple[str, Any]]:
    """What can be changed: neither the id nor the owner."""
    return ((name, getattr(automation, name)) for name in AutomationCore.model_fields if name != "owner_resource")


def _block_of(automation: AutomationCore | Automation) -> UUID | None:
    sends = (action.block_document_id for action in automation.actions if isinstance(action, SendNotification))
    return next(sends, None)


async def _notification_block(client: PrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        document = await client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise SettingsError([Fault("notify", f"Prefect knows no block {notify!r}; expected TYPE/NAME")]) from None
    if "notify" not in (document.block_schema.capabilities if document.block_schema else ()):
        raise SettingsError([Fault("notify", f"the block {notify!r} is none that sends notifications")])
    return document.id
