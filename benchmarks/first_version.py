"""
What one writes first with Prefect at hand: each step of each project a task, mapped.

    python benchmarks/first_version.py URL PROJECTS [THREADS]

Prefect's default is as many threads as there are tasks.
"""

import sys
from typing import Any

import httpx
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

FIELDS = {"authType": "bearer", "authorization": "the-new-credential"}
CLIENT = httpx.Client(headers={"x-api-key": "key"}, timeout=30)


@task(retries=3, retry_delay_seconds=1)
def read(path: str) -> dict[str, Any]:
    integration: dict[str, Any] = CLIENT.get(path).raise_for_status().json()
    return integration


@task(retries=3, retry_delay_seconds=1)
def check(path: str, seen: dict[str, Any]) -> str:
    if CLIENT.get(path).raise_for_status().json() != seen:
        raise ValueError("somebody else changed it")
    return path


@task(retries=3, retry_delay_seconds=1)
def change(path: str) -> str:
    CLIENT.patch(path, json=FIELDS).raise_for_status()
    return path


@task(retries=3, retry_delay_seconds=1)
def verify(path: str) -> None:
    if CLIENT.get(path).raise_for_status().json()["authType"] != FIELDS["authType"]:
        raise ValueError("not as wanted")


@flow
def rotate(url: str, projects: int) -> None:
    paths = [f"{url}/external-support/prj_{number}" for number in range(projects)]
    seen = read.map(paths)
    seen.wait()
    verify.map(change.map(check.map(paths, seen))).result()


if __name__ == "__main__":
    url, projects, *threads = sys.argv[1:]
    if threads:
        rotate = rotate.with_options(task_runner=ThreadPoolTaskRunner(max_workers=int(threads[0])))
    rotate(url, int(projects))
