"""A manifest of what Jelou has, from the command."""

import pytest

from flows.__main__ import main
from jelou_rotation.manifest import load
from jelou_rotation.simulator import Fault, Simulator, Switches, running


@pytest.fixture(params=["flat", "envelope"])
def simulator(request, monkeypatch):
    simulator = Simulator(Switches(shape=request.param))
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    with running(simulator) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/jelouapi/v1")
        simulator.add_project("acme", "https://panel.acme.example/hook?key=1")
        simulator.add_project("open", "https://open.example/hook", "no_auth", None)
        yield simulator


def test_what_is_exported_is_a_manifest_that_changes_nothing(simulator, capsys):
    code = main(["export", "open", "acme"])

    text = capsys.readouterr().out
    assert code == 0
    rows = load(text).rows
    assert [(row.project_id, row.webhook_url) for row in rows] == [
        ("open", "https://open.example/hook"),
        ("acme", "https://panel.acme.example/hook?key=1"),
    ]
    assert all(row.authorization is None for row in rows)
    # The envelope does not tell the authType.
    assert ("# authType: bearer" in text) == (simulator.switches.shape == "flat")


def test_a_project_that_cannot_be_read_is_named_and_the_others_are_exported(simulator, capsys):
    simulator.add_fault(Fault(kind="status", status=403, project_id="open"))

    code = main(["export", "acme", "ghost", "open"])

    said = capsys.readouterr()
    assert code == 1
    assert [row.project_id for row in load(said.out).rows] == ["acme"]
    assert said.err.splitlines() == [
        "jelou-rotation: ghost: there is no integration",
        "jelou-rotation: open: Jelou answered 403 to GET (forbidden_bot)",
    ]


def test_the_projects_may_be_listed_in_a_file(simulator, capsys, tmp_path):
    (tmp_path / "ids").write_text("# ours\nacme\n\n open \nacme\n")

    assert main(["export", "--from", "ids"]) == 0

    assert [row.project_id for row in load(capsys.readouterr().out).rows] == ["acme", "open"]


@pytest.mark.parametrize("arguments", [[], ["--from", "absent"]])
def test_without_projects_it_is_refused(simulator, capsys, arguments):
    assert main(["export", *arguments]) == 2
    assert not simulator.requests_by_method
