"""The recipes of an operations team: what they name exists, and no secret is in them. No Docker is needed."""

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.server.events.actions import SendNotification
from prefect.server.schemas.actions import WorkPoolCreate as ServerWorkPoolCreate
from prefect.settings.models.root import Settings as PrefectSettings
from prefect.workers.process import ProcessWorker

from jelou_rotation.settings import Settings
from tasks.server_setup import SCHEDULED, read_alarms

REPOSITORY = Path(__file__).parents[1]
RECIPES = REPOSITORY / "deployments"
COMPOSE = yaml.safe_load((RECIPES / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (RECIPES / "Dockerfile").read_text()
DEPLOYMENTS = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
ALARMS = {alarm.name: alarm for alarm in read_alarms(RECIPES / "automations.yaml")}
TEMPLATE = json.loads((RECIPES / "work-pool.json").read_text())

services = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
alarms = pytest.mark.parametrize("alarm", ALARMS.values(), ids=ALARMS)


def prefect_variables():
    """Every environment variable this version of Prefect reads as a setting."""
    found = set()

    def walk(schema):
        if isinstance(schema, dict):
            found.update(schema.get("supported_environment_variables", ()))
            schema = list(schema.values())
        if isinstance(schema, list):
            for each in schema:
                walk(each)

    walk(PrefectSettings.model_json_schema())
    return found


PREFECT_VARIABLES = prefect_variables()
OUR_VARIABLES = {f"JELOU_{name.upper()}" for name in Settings.model_fields}
# Of Prefect beyond its settings, and of PostgreSQL.
OTHER_VARIABLES = {"DO_NOT_TRACK", "PREFECT_SERVER_ENCRYPTION_KEY", "PGPASSWORD", "POSTGRES_PASSWORD_FILE"}
SENSITIVE = {
    name
    for name in PREFECT_VARIABLES | OTHER_VARIABLES
    if re.search("AUTH_STRING|PASSWORD$|ENCRYPTION_KEY|API_KEY", name)
}
SENSITIVE |= {f"JELOU_{name.upper()}" for name, field in Settings.model_fields.items() if "Secret" in str(field)}
# The address of the record store is one when it holds a password, and there it does not.
SENSITIVE -= {"JELOU_STORE_URL"}
IN_THE_IMAGE = {"PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


def mounted(service):
    """The names of the secret files a service sees."""
    return [each if isinstance(each, str) else each["target"] for each in service.get("secrets", [])]


def variables(service):
    return {*service.get("environment", {}), *(name for name in mounted(service) if name.isupper())}


@services
def test_every_setting_is_one(service):
    assert variables(service) <= PREFECT_VARIABLES | OUR_VARIABLES | OTHER_VARIABLES


def test_every_setting_of_the_image_is_one():
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"(\w+)=", block)) <= PREFECT_VARIABLES | {"DO_NOT_TRACK"} | IN_THE_IMAGE


def test_every_variable_a_person_fills_in_is_explained_and_used():
    used = set(re.findall(r"\$\{(\w+)", re.sub(r"\$\$\{", "", (RECIPES / "compose.yaml").read_text())))
    example = re.findall(r"^(\w+)=", (RECIPES / ".env.example").read_text(), re.MULTILINE)

    assert set(example) == used


@services
def test_no_secret_is_in_the_recipe(service):
    assert not SENSITIVE & set(service.get("environment", {}))
    assert not re.search(r"://[^/\s@]*:[^/\s@]*@", json.dumps(service))


def test_every_secret_is_a_file_outside_the_build_and_the_repository():
    wanted = {each if isinstance(each, str) else each["source"] for one in SERVICES.values() for each in one["secrets"]}

    assert wanted == set(COMPOSE["secrets"])
    assert all(secret == {"file": f"secrets/{name}"} for name, secret in COMPOSE["secrets"].items())
    assert (RECIPES / "secrets/.gitignore").read_text().splitlines()[1:] == ["*", "!.gitignore"]
    assert (REPOSITORY / ".dockerignore").read_text().splitlines()[1] == "*"


@services
def test_what_stays_up_is_watched_and_comes_back(service):
    if service["restart"] == "no":
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


@services
def test_what_runs_our_image_can_change_nothing_but_its_volumes(service):
    if service["image"].startswith("jelou-rotation"):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_image_is_pinned():
    ours = {service["image"] for service in SERVICES.values()} - {"jelou-rotation:local"}
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)

    assert all(re.search(r":\d+\.\d+", image) for image in [*ours, *bases])
    assert len(set(bases)) == 1


def test_the_image_has_the_prefect_the_tests_ran_with():
    assert "FROM prefecthq" not in DOCKERFILE
    assert f"prefect=={version('prefect')} " in (REPOSITORY / "requirements.txt").read_text()


def test_pip_installs_in_the_image_only_what_is_locked():
    commands = re.findall(r"pip install (.*)", DOCKERFILE)

    assert [re.search(r"-r \S*?([\w-]+\.txt)$", each)[1] for each in commands if " -r " in each] == [
        "requirements-dev.txt",
        "requirements.txt",
    ]
    for each in commands:
        assert "--no-deps" in each
        assert "--require-hashes" in each or each.endswith("--no-build-isolation --target /app .")


def copied():
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE):
        yield from line.split()[:-1]


@pytest.mark.parametrize("path", list(copied()))
def test_what_the_image_copies_exists_and_reaches_the_build(path):
    assert (REPOSITORY / path).exists()
    assert f"!{path}" in (REPOSITORY / ".dockerignore").read_text().splitlines()


def test_the_image_runs_without_rights():
    assert re.findall(r"^USER (\w+)", DOCKERFILE, re.MULTILINE) == ["jelou"]
    assert "HEALTHCHECK" in DOCKERFILE


def test_docker_compose_takes_the_recipe():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs docker compose")
    command = [docker, "compose", "-f", str(RECIPES / "compose.yaml"), "config", "--quiet"]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_pools_template_is_prefects_own_and_the_sign_of_life():
    own = ProcessWorker.get_default_base_job_template()
    own["variables"]["properties"]["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}

    assert own == TEMPLATE
    for schema in (WorkPoolCreate, ServerWorkPoolCreate):
        schema(name="pool", type="process", base_job_template=TEMPLATE)


@alarms
def test_an_alarm_says_whom_it_is_about_and_its_message_can_be_sent(alarm):
    ours = {"prefect.resource.id": "prefect.tag.jelou", "prefect.resource.role": "tag"}

    assert dict(alarm.trigger.match_related.root) == ours or alarm.trigger.match["prefect.resource.id"][0].startswith(
        "jelou-rotation."
    )
    if alarm.message:
        SendNotification(block_document_id=uuid4(), **alarm.message.model_dump())
    else:
        assert [action.type for action in alarm.actions] == ["change-flow-run-state"]


def test_the_alarms_are_about_deployments_that_there_are():
    assert all("jelou" in deployment["tags"] for deployment in DEPLOYMENTS)
    assert SCHEDULED.removeprefix("jelou-rotation.deployment.") in [deployment["name"] for deployment in DEPLOYMENTS]


def test_two_signs_of_life_may_be_lost_before_a_run_is_taken_for_dead():
    (alarm,) = (each for each in ALARMS.values() if "prefect.flow-run.heartbeat" in each.trigger.after)
    frequency = int(TEMPLATE["variables"]["properties"]["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])

    assert alarm.trigger.within.total_seconds() >= 3 * frequency


def test_the_example_of_the_environment_holds_no_secret():
    assert not SENSITIVE & set(re.findall(r"^(\w+)=", (RECIPES / ".env.example").read_text(), re.MULTILINE))
