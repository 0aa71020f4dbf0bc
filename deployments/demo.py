"""
`make demo`: a manifest is planned, rotated, verified and reported by real Prefect flows against a simulated Jelou.

Everything stays on this machine and ends with the demo; only the reports stay, in the folder `reports`.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_server import PrefectBlock, api_url, free_port, prefect_server

from jelou_rotation.records import new_key
from jelou_rotation.simulator import Simulator, passing_faults, running

CUSTOMERS = ("acme", "bolivar", "condor", "delta", "estrella", "fenix", "galapagos", "hidalgo")
STRANGER = "zeta"
MADE_HERE = "iguana"
GENERATED = """\
projects:
  iguana:
    authType: bearer
    authorization: generate
    rotateEvery: 30d
    publishTo: block:secret/iguana
"""


def main() -> int:
    """The story, from an old credential to deliveries with the new one."""
    simulator = Simulator(seed=7)
    with tempfile.TemporaryDirectory() as home, running(simulator) as jelou:
        secrets = prepare(simulator)
        say("Starting a Prefect server and a simulated Jelou, some ten seconds ...")
        port = free_port()
        api = api_url(port)
        with prefect_server(Path(home), port):
            environment = os.environ | secrets | settings(jelou, api)
            manifest = write_manifest(Path(home) / "customers.yaml")
            say("The manifest names credentials by reference and never holds one:")
            print("\n".join([*manifest.read_text().splitlines()[:7], "  ..."]))
            say("What would change? Nothing is written.")
            command(["plan", str(manifest)], environment, expected=1)
            say("Do it. One answer in five fails on purpose: 429, 5xx, resets, cut-off bodies, HTML, delays.")
            simulator.faults.extend(passing_faults(0.2))
            command(["rotate", str(manifest)], environment, expected=1)
            simulator.faults.clear()
            print(f"\n{STRANGER} is not at Jelou, on purpose: the report says what to do, retry.yaml runs it again.")
            accepted = deliver(simulator, CUSTOMERS)
            say("A credential can also be made here: nobody ever sees it, the receiver finds it in a Prefect block.")
            simulator.add_project(MADE_HERE)
            simulator.receivers[MADE_HERE].accepts = PrefectBlock(api, MADE_HERE)
            manifest = manifest.with_name("generated.yaml")
            manifest.write_text(GENERATED)
            print(GENERATED.rstrip())
            environment |= {"JELOU_STORE_KEY": new_key(), "JELOU_STORE_URL": f"sqlite:///{home}/records.db"}
            command(["rotate", str(manifest)], environment, expected=0)
            say("Once more: it is not due yet, so Jelou is not even asked.")
            command(["rotate", str(manifest)], environment, expected=0)
            accepted += deliver(simulator, [MADE_HERE])
    return 0 if accepted == len(CUSTOMERS) + 1 else 1


def deliver(simulator: Simulator, customers: Sequence[str]) -> int:
    """As Jelou does when a customer writes."""
    accepted = sum(asyncio.run(simulator.deliver(customer)) for customer in customers)
    say(f"Jelou now delivers with the new credentials: {accepted} of {len(customers)} receivers accept.")
    return accepted


def prepare(simulator: Simulator) -> dict[str, str]:
    """Projects with an old credential, receivers that already want the new one, and the new ones by variable."""
    secrets = {}
    for customer in CUSTOMERS:
        simulator.add_project(customer)
        secrets[variable(customer)] = f"new-credential-of-{customer}"
        simulator.receivers[customer].accepts = {secrets[variable(customer)]}
    return secrets | {variable(STRANGER): "new-credential-of-a-stranger"}


def variable(customer: str) -> str:
    return f"{customer.upper()}_TOKEN"


def write_manifest(path: Path) -> Path:
    rows = (f"  {customer}:\n    authorization: env:{variable(customer)}\n" for customer in (*CUSTOMERS, STRANGER))
    path.write_text("defaults:\n  authType: bearer\nprojects:\n" + "".join(rows))
    return path


def settings(jelou: str, api: str) -> dict[str, str]:
    return {
        "JELOU_BASE_URL": f"{jelou}/jelouapi/v1",
        "JELOU_API_KEY": "demo-key",
        "JELOU_ALLOW_PRIVATE_HOSTS": "true",
        "PREFECT_API_URL": api,
    }


def command(arguments: list[str], environment: Mapping[str, str], *, expected: int) -> None:
    """Run `jelou-rotation` as a person would."""
    print(f"$ jelou-rotation {arguments[0]} {Path(arguments[1]).name}", flush=True)
    code = subprocess.run([sys.executable, "-m", "flows", *arguments], env=environment, check=False).returncode
    if code != expected:
        sys.exit(f"demo: exit code {code}, expected {expected}")


def say(text: str) -> None:
    print(f"\n--- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
