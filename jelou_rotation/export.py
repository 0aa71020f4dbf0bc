"""A manifest of what Jelou has."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from jelou_rotation import manifest_yaml
from jelou_rotation.errors import NotFound, RowTrouble
from jelou_rotation.gateway import Gateway, Integration
from jelou_rotation.row import AuthType

_HEAD = """\
# What Jelou has, as jelou-rotation export read it. Jelou tells no credential: where an authType stands behind a #,
# give it back together with an authorization (env:NAME, file:PATH, block:TYPE/NAME or generate) to rotate it from here.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """The manifest's text, and a sentence for each project that could not be read."""

    text: str
    troubles: tuple[str, ...]


async def export(gateway: Gateway, project_ids: Sequence[str], concurrency: int) -> Exported:
    """Read these projects, in this order, each once."""
    slots = asyncio.Semaphore(concurrency)

    async def read(project_id: str) -> Integration | RowTrouble:
        async with slots:
            try:
                return await gateway.get(project_id)
            except RowTrouble as trouble:
                return trouble

    wanted = list(dict.fromkeys(project_ids))
    found = dict(zip(wanted, await asyncio.gather(*map(read, wanted)), strict=True))
    integrations = {key: told for key, told in found.items() if isinstance(told, Integration)}
    rows = "".join(_row(key, told) for key, told in integrations.items())
    troubles = tuple(f"{key}: {_why(told)}" for key, told in found.items() if isinstance(told, RowTrouble))
    return Exported(f"{_HEAD}projects:\n{rows}" if rows else f"{_HEAD}projects: {{}}\n", troubles)


def _row(project_id: str, told: Integration) -> str:
    settings = {"webhookUrl": told.webhook_url} if told.webhook_url else {}
    if told.auth_type == AuthType.NO_AUTH:
        settings["authType"] = told.auth_type
    lines = manifest_yaml.write({project_id: settings}).splitlines()[1:]
    if not settings:
        lines = [f"  # {lines[0].strip()} Jelou tells neither its address nor its authType"]
    elif told.auth_type in set(AuthType) - {AuthType.NO_AUTH}:
        lines.append(f"    # authType: {told.auth_type}")
    return "\n".join(lines) + "\n"


def _why(trouble: RowTrouble) -> str:
    return "there is no integration" if isinstance(trouble, NotFound) else str(trouble)
