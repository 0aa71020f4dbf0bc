"""
Rotates in a process of its own and dies where it is told.

The start, and the end of every call to the store, the gateway, the receiver and the hand-over, are moments: what was
asked is done, and this process does not know it yet. It kills itself in the moment `kill_at`; when it lives to the end,
it tells how many moments there were, and the outcomes.
"""

import asyncio
import os
import signal
from pathlib import Path

from jelou_rotation import rotation, work
from jelou_rotation.errors import Passing
from jelou_rotation.gateway import Gateway
from jelou_rotation.probe import Prober
from jelou_rotation.records.store import Store
from jelou_rotation.references import local_handlers
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings

CALLS = {
    Store: ("take", "read", "observe", "stage", "mark_sent", "promote", "release"),
    Gateway: ("get", "patch"),
    Prober: ("try_credential",),
}
LEASE_SECONDS = 2.0


class Reaper:
    def __init__(self, kill_at):
        self.kill_at = kill_at
        self.moments = 0

    def pass_by(self):
        if self.moments == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments += 1

    def watch(self, call):
        async def watched(*arguments, **options):
            result = await call(*arguments, **options)
            self.pass_by()
            return result

        return watched


async def hand_over(target, document):
    """To a file, which the receiver of the test reads."""
    Path(target.replace("/", "-")).write_bytes(document)


def generated(project_id):
    given = {"projectId": project_id, "authType": "bearer", "authorization": "generate"}
    return Row.model_validate(given | {"publishTo": f"block:secret/{project_id}"})


def rotate(project_ids, kill_at, folder, environment, teller):
    """The whole life of the process, in that folder and environment."""
    os.chdir(folder)
    os.environ.update(environment)
    work.LEASE_SECONDS = rotation.LEASE_SECONDS = LEASE_SECONDS
    reaper = Reaper(kill_at)
    for owner, names in CALLS.items():
        for name in names:
            setattr(owner, name, reaper.watch(getattr(owner, name)))
    reaper.pass_by()
    outcomes = asyncio.run(outcomes_of(project_ids, reaper))
    teller.send((reaper.moments, outcomes))


async def outcomes_of(project_ids, reaper):
    opened = rotation.open_rotation(
        Settings.load(),
        [generated(project_id) for project_id in project_ids],
        local_handlers(),
        plan_only=False,
        publish=reaper.watch(hand_over),
        # Two processes are two runs.
        run_id=f"{reaper.kill_at}-{os.getpid()}",
    )
    async with opened as run:
        for step in (run.plan, run.apply):
            await until_settled(step, project_ids)
    return [result.outcome for result in run.results()]


async def until_settled(step, project_ids):
    while True:
        try:
            return await step(project_ids)
        except Passing:
            await asyncio.sleep(0.1)
