"""What every test may ask for."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg
import certifi
import pytest

# Before anything imports Prefect: tests phone nobody, and a person's own settings do not reach them.
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
# Every client, also each of Prefect, loads all authorities anew: 30 ms. Nobody here speaks TLS, and one is enough.
_AUTHORITY = tempfile.NamedTemporaryFile("w", suffix=".pem")  # noqa: SIM115 - until the tests end
_certificate, _end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
_AUTHORITY.write(_certificate + _end)
_AUTHORITY.flush()
os.environ["SSL_CERT_FILE"] = _AUTHORITY.name


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """A test sees only the settings it makes, and writes only into its own folder."""
    for name in list(os.environ):
        if name.startswith("JELOU_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JELOU_SECRETS_DIR", str(tmp_path / "no-secrets-here"))
    monkeypatch.chdir(tmp_path)


PASSWORD = "canary-database-password"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    port = request.getfixturevalue("postgres")
    asyncio.run(run_sql(port, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"


async def run_sql(port, sql):
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user="postgres", password=PASSWORD, database="postgres"
    )
    await connection.execute(sql)
    await connection.close()


@pytest.fixture(scope="session")
def postgres():
    """The port of a PostgreSQL server of our own."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (debian and debian[-1])
    if not found:
        pytest.skip("needs the binaries of PostgreSQL (Debian: apt install postgresql)")
    # PostgreSQL does not run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="jelou-postgres-"))
    try:
        yield from run_postgres(Path(found).parent, folder, user)
    finally:
        shutil.rmtree(folder)


def run_postgres(binaries, folder, user):
    if user:
        shutil.chown(folder, "postgres", "postgres")
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = folder / "data"
    init = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=password", f"--pwfile={secret}"]
    subprocess.run(
        [*init, "--no-sync", "--no-locale", "-E", "UTF8"], check=True, capture_output=True, cwd=folder, **user
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": 60}
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    with (folder / "log").open("w") as log:
        command = [binaries / "postgres", "-D", data, "-p", str(port), *options]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user)
    try:
        wait_until_ready(port, server)
        yield port
    finally:
        # At once: nothing in it is wanted any more.
        server.send_signal(signal.SIGQUIT)
        server.wait(20)


def wait_until_ready(port, server):
    deadline = time.monotonic() + 20
    while True:
        try:
            asyncio.run(run_sql(port, "SELECT 1"))
            return
        except (OSError, asyncpg.PostgresError):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
