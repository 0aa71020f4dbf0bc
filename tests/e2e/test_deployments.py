"""Each deployment of prefect.yaml on a real server, run by a real worker that is given its secrets safely."""

import asyncio

import asyncpg
import pytest
from pydantic import SecretStr

from jelou_rotation.records import new_key
from jelou_rotation.records.store import Store
from jelou_rotation.simulator import Simulator, running
from tests.e2e.live_prefect import live_prefect

API_KEY = "canary-of-the-api-key"
STORE_KEY = new_key()
# In the order in which a project meets them.
ONBOARD, ROTATE, CLOSE, AUDIT, MANUAL, SIGNING = (
    "onboard-projects/onboard-bulk",
    "rotate-credentials/rotate-scheduled",
    "close-overlaps/close-overlaps",
    "audit-integrations/audit-daily",
    "rotate-credentials/rotate-manual",
    "rotate-signing-secrets/rotate-signing-secrets",
)


@pytest.fixture(scope="module")
def simulator():
    simulator = Simulator()
    simulator.api_keys.add(API_KEY)
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def prefect(database, simulator, tmp_path_factory):
    """The API key in a Secret block, the store's key in a file, the credentials in the worker's environment."""
    folder = tmp_path_factory.mktemp("live")
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "JELOU_STORE_KEY").write_text(STORE_KEY)
    settings = {
        "JELOU_API_KEY": "block:secret/jelou-api-key",
        "JELOU_SECRETS_DIR": str(secrets),
        "JELOU_STORE_URL": f"sqlite:///{folder}/records.db",
        "PREFECT_SERVER_ENCRYPTION_KEY": new_key(),
        "TOKEN": "canary-of-a-credential",
    }
    with live_prefect(folder, database, simulator, settings) as prefect:
        block_type = prefect.get("/block_types/slug/secret")["id"]
        (schema,) = prefect.post("/block_schemas/filter", block_schemas={"block_type_id": {"any_": [block_type]}})
        document = {"name": "jelou-api-key", "data": {"value": API_KEY}, "block_type_id": block_type}
        prefect.post("/block_documents/", **document, block_schema_id=schema["id"])
        yield prefect


@pytest.fixture
def known(simulator):
    """A project that Jelou has, whose receiver checks nothing yet."""
    simulator.add_project("known")
    simulator.receivers["known"].checks = False
    return simulator.projects["known"]


MANIFEST = "projectId,webhookUrl,authType,authorization\nknown,,bearer,env:TOKEN\n"


def records(prefect):
    async def read():
        url = prefect.environment["JELOU_STORE_URL"]
        async with Store.open(url, SecretStr(STORE_KEY)) as store:
            return await store.read(await store.all_ids())

    return asyncio.run(read())


def ended(prefect, deployment, **parameters):
    """The state a run ended with, and what its report says, both read back through the API."""
    run_id = prefect.run(deployment, **parameters)
    state = prefect.end_of(run_id)
    page = prefect.report_artifact(run_id)
    assert state["message"] in page
    return state["name"], state["message"]


def test_the_scheduled_rotation(prefect, known):
    assert ended(prefect, ROTATE, manifest=MANIFEST) == ("Completed", "1 project is as wanted: 1 rotated.")
    assert known.authorization == "canary-of-a-credential"


def test_the_closing_of_overlaps(prefect, known):
    assert ended(prefect, CLOSE, manifest=MANIFEST) == ("Completed", "1 project is as wanted: 1 unchanged.")


def test_the_audit(prefect, known):
    known.webhook_url = "https://elsewhere.example/hook"
    manifest = "projectId,webhookUrl\nknown,https://panel.example/hook\n"

    assert ended(prefect, AUDIT, manifest=manifest) == ("Failed", "1 of 1 project needs attention: 1 drifted.")


def test_the_manual_run_plans_unless_told_otherwise(prefect, known):
    manifest = "projectId,webhookUrl\nknown,https://panel.example/new\n"

    assert ended(prefect, MANUAL, manifest=manifest) == ("Completed", "1 project: 1 would change.")
    assert not known.patches


def test_the_onboarding(prefect, simulator):
    manifest = "projectId,webhookUrl,authType,authorization\nnew,https://panel.example/new,bearer,env:TOKEN\n"

    ending = ended(prefect, ONBOARD, manifest=manifest, mode="rotate")

    assert ending == ("Completed", "1 project is as wanted: 1 created.")
    assert records(prefect)["new"].signing.value.get_secret_value() == simulator.projects["new"].signing_secret


def test_new_signing_secrets(prefect, simulator, known):
    former = known.signing_secret

    ending = ended(prefect, SIGNING, manifest=MANIFEST, only=["known"], mode="rotate")

    assert ending == ("Completed", "1 project is as wanted: 1 rotated.")
    kept = records(prefect)["known"].signing.value.get_secret_value()
    assert kept == simulator.projects["known"].signing_secret != former


WRITTEN_BY_THE_CLOCK = {"created", "updated", "last_polled", "status"}


def essence(found):
    """Without what only says when it was written: Prefect writes each schedule anew."""
    if isinstance(found, list):
        return [essence(each) for each in found]
    if isinstance(found, dict):
        return {
            key: essence(value)
            for key, value in found.items()
            if key not in {"created", "updated", "last_polled", "status"}
        }
    return found


def test_deploying_again_changes_nothing(prefect):
    def deployed():
        found = prefect.post("/deployments/filter")
        schedules = [[each["schedule"] for each in deployment.pop("schedules")] for deployment in found]
        return essence(found), schedules

    before = deployed()

    prefect.deploy()

    assert deployed() == before
    found = prefect.post("/deployments/filter")
    assert {each["name"] for each in found if each["schedules"]} == {
        "rotate-scheduled",
        "close-overlaps",
        "audit-daily",
    }
    assert len(found) == 6


async def everything_in(database):
    """Each row of each table, as XML."""
    connection = await asyncpg.connect(database.replace("+asyncpg", ""))
    try:
        return await connection.fetchval("SELECT schema_to_xml('public', true, false, '')")
    finally:
        await connection.close()


def test_the_server_stores_no_secret_of_a_worker(prefect, database, simulator):
    # Whoever takes a project on uses them all: the key, the store, a credential, and a signing secret that is new.
    manifest = "projectId,webhookUrl,authType,authorization\nother,https://panel.example/new,bearer,env:TOKEN\n"
    ended(prefect, ONBOARD, manifest=manifest, mode="rotate")
    made = simulator.projects["other"].signing_secret
    secrets = [API_KEY, STORE_KEY, "canary-of-a-credential", made, *simulator.api_keys - {"demo-key"}]

    files = {str(path): path.read_bytes() for path in prefect.home.rglob("*") if path.is_file()}
    everything = files | {"the database": asyncio.run(everything_in(database)).encode()}
    found = {name for name, content in everything.items() for secret in secrets if secret.encode() in content}

    assert not found
    # The search would find them: the block's name stands beside its sealed value, the reference in a run's parameters.
    assert b"jelou-api-key" in everything["the database"]
    assert b"env:TOKEN" in everything["the database"]
