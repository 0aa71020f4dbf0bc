"""What the simulated Jelou holds."""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, cycle
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import aiohttp

from jelou_rotation.simulator.faults import Fault
from jelou_rotation.simulator.receivers import (
    AuthType,
    Receiver,
    credential_header,
    message_event,
    signature,
)
from jelou_rotation.simulator.switches import Shape, Switches

DEMO_CLIENTS: Mapping[str, str] = MappingProxyType({"demo-client": "demo-secret"})


@dataclass(slots=True)
class Project:
    """
    The integration of one project, and the PATCHes it was sent.

    `received` holds every PATCH body that arrived (as text when it is not JSON); `patches` those that were acted upon
    and `patched_at` when; `former` is what GET still shows for `stale_gets` more times.
    """

    id: str
    project_id: str
    webhook_url: str
    auth_type: AuthType
    authorization: str | None
    signing_secret: str
    created_at: datetime
    updated_at: datetime
    received: list[Any] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    patched_at: list[datetime] = field(default_factory=list)
    former: "Project | None" = None
    stale_gets: int = 0


class Simulator:
    """
    The state of the simulated Jelou; everything may be read and changed while it runs.

    `answers` counts by status ("200") and by kind of fault ("reset_after"); `forbidden` holds projectIds answered with
    403; `base_url` is where it listens, also after it stopped.
    """

    def __init__(
        self,
        switches: Switches | None = None,
        *,
        api_keys: Collection[str] = ("demo-key",),
        clients: Mapping[str, str] = DEMO_CLIENTS,
        seed: int = 0,
    ) -> None:
        self.switches = switches or Switches()
        self.api_keys = set(api_keys)
        self.clients = dict(clients)
        self.forbidden: set[str] = set()
        self.projects: dict[str, Project] = {}
        self.receivers: dict[str, Receiver] = {}
        self.faults: list[Fault] = []
        self.requests_by_method: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.base_url = "http://127.0.0.1:0"
        self._random = random.Random(seed)  # noqa: S311 - faults must repeat from one run to the next
        self._numbers = count(1)
        self._shapes: Iterator[Shape] = cycle(("flat", "envelope"))

    def add_fault(self, fault: Fault) -> None:
        self.faults.append(fault)

    def add_project(
        self,
        project_id: str,
        webhook_url: str | None = None,
        auth_type: AuthType = "bearer",
        authorization: str | None = "old",
    ) -> Project:
        """An integration, and a receiver that accepts its credential; by default that receiver is the webhook."""
        url = webhook_url or self.receiver_url(project_id)
        accepts = {authorization} if authorization else set()
        self.receivers[project_id] = Receiver(accepts, checks=auth_type != "no_auth")
        return self.create(project_id, url, auth_type, authorization)

    def create(self, project_id: str, webhook_url: str, auth_type: AuthType, authorization: str | None) -> Project:
        """An integration as Jelou's POST makes it; an existing one is replaced."""
        now = datetime.now(UTC)
        project = Project(
            id=f"int_{next(self._numbers)}",
            project_id=project_id,
            webhook_url=webhook_url,
            auth_type=auth_type,
            authorization=authorization,
            signing_secret=self.new_secret(),
            created_at=now,
            updated_at=now,
        )
        self.projects[project_id] = project
        return project

    def new_secret(self) -> str:
        return self._random.randbytes(32).hex()

    def receiver_url(self, project_id: str) -> str:
        return f"{self.base_url}/receivers/{quote(project_id, safe='')}"

    def move_to(self, base_url: str) -> None:
        """Listen at `base_url`; webhooks that are the simulator's own receivers move along."""
        for project in self.projects.values():
            if project.webhook_url.startswith(f"{self.base_url}/receivers/"):
                project.webhook_url = base_url + project.webhook_url.removeprefix(self.base_url)
        self.base_url = base_url

    def next_shape(self) -> Shape:
        return next(self._shapes) if self.switches.shape == "mixed" else self.switches.shape

    def next_fault(self, method: str, project_id: str) -> Fault | None:
        """The fault this request gets, used up by one."""
        for index, fault in enumerate(self.faults):
            if fault.matches(method, project_id) and self._random.random() < fault.rate:
                self._use_up(index, fault)
                return fault
        return None

    def _use_up(self, index: int, fault: Fault) -> None:
        if fault.times == 1:
            del self.faults[index]
        elif fault.times is not None:
            self.faults[index] = fault.model_copy(update={"times": fault.times - 1})

    async def deliver(self, project_id: str) -> bool:
        """
        Post an event to the project's webhook as Jelou would; True when the receiver answered 2xx.

        It goes wherever the webhook points. Raises KeyError when there is no integration.
        """
        project = self.projects[project_id]
        body = message_event(project_id, next(self._numbers))
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
                session.post(
                    project.webhook_url, data=body, headers=self._headers(project, body), allow_redirects=False
                ) as answer,
            ):
                return 200 <= answer.status < 300
        except (aiohttp.ClientError, TimeoutError, ValueError):
            # ValueError: a stored credential that no header can hold.
            return False

    def _headers(self, project: Project, body: bytes) -> dict[str, str]:
        return {
            "Content-Type": "application/json",
            "X-Jelou-Signature": signature(body, project.signing_secret),
            **credential_header(project.auth_type, project.authorization, self.switches.basic_encoded_by),
        }
