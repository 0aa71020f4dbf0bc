"""The house keeps its order: imports point down, and nothing happens at import."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("jelou_rotation", "tasks", "flows")
HTTP_CLIENTS = {"httpx", "httpx_aiohttp", "aiohttp"}
DISTRIBUTIONS = packages_distributions()


def sources(package):
    return sorted((REPOSITORY / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """The top-level packages a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found.add((node.module or "").partition(".")[0])
    return found


def normal(name):
    """One spelling for each distribution, as PyPI compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in project["dependencies"]}


FLOW_FILES = [path for path in sources("flows") if not path.stem.startswith("__")]
flow_files = pytest.mark.parametrize("path", FLOW_FILES, ids=lambda path: path.stem)


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("jelou_rotation", {"prefect", "tasks", "flows"}),
        ("tasks", {"flows", *HTTP_CLIENTS}),
        ("flows", HTTP_CLIENTS),
    ],
)
def test_imports_point_down(package, never):
    wrong = {module_name(path): found for path in sources(package) if (found := imported(path) & never)}

    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package):
    foreign = set().union(*map(imported, sources(package))) - sys.stdlib_module_names - set(PACKAGES)
    undeclared = {name for name in foreign if not declared() & set(map(normal, DISTRIBUTIONS.get(name, ())))}

    assert not undeclared


@flow_files
def test_a_flow_file_defines_nothing_but_its_flow(path):
    _docstring, *statements = ast.parse(path.read_text()).body
    defined = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]

    (flow,) = defined
    assert isinstance(flow, ast.FunctionDef | ast.AsyncFunctionDef)
    assert ast.unparse(flow.decorator_list[0]).partition("(")[0] == "flow"


@flow_files
def test_a_flow_file_has_a_name_of_its_own(path):
    # Prefect may load it as a top-level module.
    assert path.stem not in sys.stdlib_module_names | set(DISTRIBUTIONS)


def test_nothing_happens_at_import(tmp_path):
    modules = [module_name(path) for package in ("tasks", "flows") for path in sources(package)]
    poisoned = {"JELOU_CONCURRENCY": "abc", "JELOU_BASE_URL": "nowhere", "PREFECT_HOME": str(tmp_path / "prefect")}
    cwd = tmp_path / "cwd"
    cwd.mkdir()

    subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}"],
        env=os.environ | poisoned | {"PYTHONPATH": str(REPOSITORY)},
        cwd=cwd,
        check=True,
    )

    assert not list(cwd.iterdir())


def test_a_run_without_a_store_does_not_wait_for_a_database_driver():
    code = "import sys, flows.rotate_credentials; print(*{'sqlalchemy', 'alembic'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)

    assert done.stdout.split() == []
