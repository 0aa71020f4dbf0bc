"""
The command `jelou-rotation`, several times in one process and without pauses: `python command.py FOLDER...`.

Each folder holds a `run.json` with the `arguments`, the `environment` and `how` to run them, and gets the exit `code`:

    really   as it is
    worker   without the early look at the input, as a worker runs the flow
    crash    something breaks while a credential is in the hand
    unstored the record store can be written no more once a credential is about to be sent
    leak     what the environment names LEAK_... is given away, each in its own way
"""

import base64
import html
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from prefect import tags, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.variables import Variable
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from flows import __main__ as command
from jelou_rotation.outcomes import RowResult
from jelou_rotation.plan import RowPlan
from jelou_rotation.records import Step, writer
from jelou_rotation.records.transitions import Batch
from jelou_rotation.rotation import Rotation
from tasks import projects


def main(folders: Sequence[str]) -> None:
    # A shell's background job starts deaf to the interrupt that one of the runs gets.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for work in (projects.plan_projects, projects.rotate_projects):
        work.retries = 1
        work.retry_delay_seconds = 0
    # A task run costs more than what it does here.
    projects.MOST_ALONE = projects.MAX_BATCHES = 8
    for folder in map(Path, folders):
        os.chdir(folder)
        run = json.loads(Path("run.json").read_bytes())
        with patch.dict(os.environ, run["environment"]), HOW[run["how"]]():
            Path("code").write_text(str(code_of(run["arguments"])))


def code_of(arguments: Sequence[str]) -> int:
    """As the interpreter ends with it."""
    try:
        return command.main(arguments)
    except Exception:  # noqa: BLE001 - what a crash prints is to be seen
        traceback.print_exc()
        return 1


def as_a_worker() -> AbstractContextManager[Any]:
    return patch.object(command, "_refuse_early", lambda *_: None)


def with_a_crash() -> AbstractContextManager[Any]:
    make = RowPlan.body

    def body(plan: RowPlan, credential: SecretStr | None) -> dict[str, str]:
        fields = make(plan, credential)
        raise RuntimeError(f"broken on purpose with {len(fields)} fields in hand")

    return patch.object(RowPlan, "body", body)


def with_a_failing_store() -> AbstractContextManager[Any]:
    write = writer.write

    async def failing_write(connection: AsyncConnection, batch: Batch) -> None:
        if any(batch.rows[project_id]["step"] == Step.SENT for project_id in batch.changed):
            await connection.exec_driver_sql("PRAGMA query_only = ON")
        await write(connection, batch)

    return patch.object(writer, "write", failing_write)


@task(persist_result=True)
def kept() -> dict[str, str]:
    return {"integration": os.environ["LEAK_RESULT"]}


def keep_notes(text: str) -> None:
    Path("reports").mkdir(exist_ok=True)
    Path("reports/notes.txt").write_text(text)


def with_leaks() -> AbstractContextManager[Any]:
    """A rotation that gives a secret away in each place where a run leaves something."""
    secret = os.environ
    plan, apply, results = Rotation.plan, Rotation.apply, Rotation.results

    async def leaky_plan(rotation: Rotation, project_ids: Sequence[str]) -> list[RowResult]:
        get_run_logger().debug("sent %s", base64.b64encode(f"x {secret['LEAK_LOG']}".encode()).decode())
        logging.getLogger("jelou_rotation").warning(json.dumps(json.dumps(secret["LEAK_LIBRARY_LOG"])))
        await acreate_markdown_artifact(html.escape(secret["LEAK_ARTIFACT"]), key="leak")
        emit_event("leak", {"prefect.resource.id": "leak"}, payload={"sent": quote(secret["LEAK_EVENT"])})
        await Variable.aset("leak", secret["LEAK_VARIABLE"], overwrite=True)
        with tags(secret["LEAK_TAG"]):
            kept()
        keep_notes(secret["LEAK_FILE"][:14])
        os.write(1, secret["LEAK_OUTPUT"].encode())
        os.write(2, ascii(secret["LEAK_ERROR_OUTPUT"]).encode())
        await plan(rotation, project_ids)
        return [replace(row, error=quote(secret["LEAK_STATE"], safe="")) for row in results(rotation)]

    async def leaky_apply(rotation: Rotation, project_ids: Sequence[str]) -> list[RowResult]:
        await apply(rotation, project_ids)
        raise RuntimeError(f"broken: {secret['LEAK_EXCEPTION']}")

    def leaky_results(rotation: Rotation) -> list[RowResult]:
        return [replace(row, error=f"refused {secret['LEAK_REPORT']}") for row in results(rotation)]

    return patch.multiple(Rotation, plan=leaky_plan, apply=leaky_apply, results=leaky_results)


HOW = {
    "really": nullcontext,
    "worker": as_a_worker,
    "crash": with_a_crash,
    "unstored": with_a_failing_store,
    "leak": with_leaks,
}

if __name__ == "__main__":
    main(sys.argv[1:])
