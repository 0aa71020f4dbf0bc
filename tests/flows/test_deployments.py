"""prefect.yaml and the form a person fills in to start a run; no server needed."""

from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint

from flows.rotate_credentials import rotate_credentials

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = {each["name"]: each for each in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]}


@pytest.fixture(params=DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def deployment(request):
    return request.param


@pytest.fixture
def flow(deployment):
    # A placeholder would hide that the file cannot be imported.
    return load_flow_from_entrypoint(f"{REPOSITORY}/{deployment['entrypoint']}", use_placeholder_flow=False)


def test_its_flow_takes_its_parameters(deployment, flow):
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)
    flow.validate_parameters({"manifest": "given in the form", "only": ["given too"], **deployment["parameters"]})


def test_what_runs_by_the_clock_leaves_no_parameter_open(deployment, flow):
    if deployment.get("schedules"):
        assert set(flow.parameters.required) <= set(deployment["parameters"])


def test_its_schedules_can_be_kept_and_say_whose_clock_they_follow(deployment):
    for schedule in deployment.get("schedules", []):
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]).timezone


def test_prefect_cancels_none_of_its_runs_for_being_the_second(deployment):
    # The parts of a run with shards are runs of the same deployment; the lock keeps the others apart.
    assert "concurrency_limit" not in deployment


def test_a_person_can_tell_it_from_the_others(deployment):
    assert deployment["description"]
    assert deployment["tags"]
    assert deployment["name"] in (REPOSITORY / "deployments/README.md").read_text()


def test_no_folder_of_one_machine_is_named(deployment):
    assert "pull" not in deployment
    assert not Path(deployment["entrypoint"]).is_absolute()


def test_the_form_offers_the_modes_and_plan_is_what_it_starts_with():
    parameters = rotate_credentials.parameters

    assert parameters.properties["mode"]["default"] == "plan"
    assert parameters.definitions["Mode"]["enum"] == ["plan", "rotate"]


def test_the_form_says_of_each_parameter_what_it_is(flow):
    assert all(field.get("description") for field in flow.parameters.properties.values())


def test_there_is_one_for_each_use():
    scheduled = [name for name, each in DEPLOYMENTS.items() if each.get("schedules")]
    by_hand = [name for name in DEPLOYMENTS if name not in scheduled]
    assert scheduled == ["rotate-scheduled", "close-overlaps", "audit-daily"]
    assert by_hand == ["rotate-manual", "onboard-bulk", "rotate-signing-secrets"]
    assert all(DEPLOYMENTS[name]["parameters"]["mode"] == "plan" for name in by_hand)
