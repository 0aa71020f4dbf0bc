"""The command, as a person in a terminal meets it."""

import json
import os
import socket
import subprocess
import sys
import zipfile

import pytest
from prefect.settings import PREFECT_API_URL

from flows.__main__ import build_parser, main
from jelou_rotation.manifest import json_schema
from jelou_rotation.records import new_key


@pytest.fixture
def manifest(simulator, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKEN", "canary-new")
    simulator.add_project("prj_1", "https://old.example/1")
    path = tmp_path / "customers.yaml"
    path.write_text("projects:\n  prj_1: {authType: bearer, authorization: env:TOKEN, tags: [pilot]}\n")
    return path


def run(*arguments, **options):
    """The real command in a process of its own, against the session's server."""
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    with_server = {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | with_server, timeout=120, **options
    )


def test_a_plan_shows_the_changes_on_standard_output_and_nothing_else_is_said(manifest):
    done = run("plan", manifest.name)

    assert done.stderr == ""
    assert done.stdout.splitlines()[:3] == [
        "prj_1  planned  authorization: not readable -> env:TOKEN, no way back",
        "",
        "1 project: 1 would change.",
    ]
    assert done.returncode == 0


def test_json_is_the_report_and_nothing_but_the_report(manifest, simulator):
    done = run("rotate", manifest, "--only", "tag:pilot", "--json")

    report = json.loads(done.stdout)
    assert (report["schemaVersion"], report["summary"]["byOutcome"]) == (1, {"rotated": 1})
    assert simulator.projects["prj_1"].authorization == "canary-new"


def test_the_manifest_may_come_from_standard_input(manifest):
    done = run("plan", "-", input=manifest.read_text())

    assert "1 would change" in done.stdout


def test_rows_that_are_not_as_wanted_give_exit_code_1(manifest, simulator):
    simulator.projects.clear()

    assert run("rotate", manifest).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["audit"], 0, "1 project is as wanted: 1 unchanged.", id="audit"),
        pytest.param(["audit", "drifted.yaml"], 1, "1 of 1 project needs attention: 1 drifted.", id="audit drift"),
        pytest.param(["onboard", "new.yaml"], 0, "1 project is as wanted: 1 created.", id="onboard"),
        pytest.param(["onboard", "new.yaml", "--plan"], 0, "1 project: 1 would change.", id="onboard plan"),
        pytest.param(["signing-secrets", "--only", "prj_1"], 0, "1 project is as wanted: 1 rotated.", id="secrets"),
        pytest.param(["close-overlaps"], 0, "1 project is as wanted: 1 unchanged.", id="close overlaps"),
        pytest.param(["rotate", "--max-changes", "0"], 2, "max_changes: 1 of 1 projects would change", id="limit"),
        pytest.param(["rotate", "--max-failures", "few"], 2, "max_failures: expected a number", id="wrong limit"),
        pytest.param(["rotate", "--ramp", "half"], 2, "ramp step 1: expected", id="wrong ramp"),
        pytest.param(["rotate", "--max-downgrades=1", "--approved-plan=0"], 2, "knows no plan 0", id="unknown plan"),
    ],
)
def test_each_command_ends_with_its_exit_code_in_words(
    prefect_server, simulator, monkeypatch, tmp_path, capfd, arguments, code, says
):
    monkeypatch.setenv("JELOU_STORE_KEY", new_key())
    simulator.add_project("prj_1", "https://old.example/1")
    for name, project, host in (
        ("customers", "prj_1", "old.example/1"),
        ("drifted", "prj_1", "x.example"),
        ("new", "p2", "new.example"),
    ):
        auth = ", authType: no_auth" if arguments[0] == "rotate" else ""
        (tmp_path / f"{name}.yaml").write_text(f"projects:\n  {project}: {{webhookUrl: https://{host}{auth}}}\n")
    verb, *others = arguments
    manifest = [] if others and others[0].endswith(".yaml") else ["customers.yaml"]

    assert main([verb, *manifest, *others]) == code
    told = capfd.readouterr()
    assert says in (told.out if code < 2 else told.err)


def test_new_signing_secrets_are_made_only_for_projects_that_are_named(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["signing-secrets", "customers.yaml"])

    assert refused.value.code == 2
    assert "--only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "arguments", "says"),
    [
        pytest.param({"JELOU_CONCURRENCY": "many"}, ["customers.yaml"], "JELOU_CONCURRENCY: ", id="settings"),
        pytest.param({}, ["absent.yaml"], "absent.yaml: ", id="no manifest"),
        pytest.param({}, ["customers.yaml", "--only", "prj_2"], "did you mean prj_1", id="no such project"),
        pytest.param({"TOKEN": ""}, ["customers.yaml"], "env:TOKEN, authorization of prj_1: is empty", id="reference"),
        pytest.param({"PREFECT_API_URL": "http://127.0.0.1:1/api"}, ["customers.yaml"], "PREFECT_API_URL", id="server"),
    ],
)
def test_bad_input_is_refused_with_exit_code_2_and_no_stack_trace(
    manifest, simulator, monkeypatch, capsys, variables, arguments, says
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "flows", "rotate", *arguments]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith("jelou-rotation: refused, nothing was sent.\n")
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not simulator.requests_by_method


def test_the_schema_is_printed_for_editors(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_simulators_switches_are_listed(capsys):
    assert main(["simulate", "--switches"]) == 0
    assert "shape=flat\n" in capsys.readouterr().out


def test_a_wrong_switch_is_named(capsys):
    assert main(["simulate", "--switch", "shape=round"]) == 2
    assert "--switch, shape: " in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["simulate", "--port", str(port)]) == 2
    assert f"--port: {port} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "rotate", "schema", "simulate"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])

    assert ended.value.code == 0
    assert "usage: jelou-rotation" in capsys.readouterr().out


def test_the_wheel_holds_a_complete_command(pytestconfig, tmp_path, manifest):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(build, cwd=pytestconfig.rootpath, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import flows, flows.__main__ as m;"
        "print(flows.__file__, file=sys.stderr); sys.exit(m.main())"
    )
    command = [sys.executable, "-P", "-c", program, tmp_path / "installed", "plan", manifest]
    with_server = {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    done = subprocess.run(
        command, cwd=elsewhere, env=os.environ | with_server, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0
    assert "1 would change" in done.stdout
    assert done.stderr.strip() == str(tmp_path / "installed" / "flows" / "__init__.py")
