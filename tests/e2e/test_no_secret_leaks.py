"""
No credential is left behind: planted ones, and those that the runs made themselves, are searched for in everything that
runs leave and in the record store, after every failure path was forced, with Prefect set to tell and to keep as much
as it can.
"""

import base64
import csv
import html
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_to_bytes

import httpx
import pytest

from jelou_rotation.simulator import Fault, Simulator, Switches, running
from jelou_rotation.simulator.receivers import Receiver

COMMAND = Path(__file__).with_name("command.py")

# What is planted

SPOKEN_DIFFERENTLY = "+/=%&\"'\\|<>{}#$ ~"
OUTSIDE_ASCII = "ñ€日😀"


def _credential(name: str, length: int = 40, special: str = SPOKEN_DIFFERENTLY) -> str:
    """As random as a real one, the same in each run, with characters in the middle that every encoding changes."""
    noise = "".join(random.Random(name).choices(string.ascii_letters + string.digits, k=length))  # noqa: S311 - planted
    return f"{noise[: length // 2]}{special}{noise[length // 2 :]}"


def _store_key(name: str) -> str:
    return base64.urlsafe_b64encode(random.Random(name).randbytes(32)).decode()  # noqa: S311 - planted


# Of rows, by how they are used and where they are found. For basic it is the password.
OF_ROWS = {
    "bearer env": _credential("bearer env"),
    "bearer file": "q7#Zx9!k",
    "bearer block": _credential("bearer block", 600),
    "api_key env": _credential("api_key env", 24),
    "api_key file": _credential("api_key file", 64, "=="),
    "api_key block": 'v"8\\Kd+2',
    "basic env": _credential("basic env", 24, OUTSIDE_ASCII),
    "basic file": "pÄ9 ☂x%7",
    "basic block": _credential("basic block", 40, SPOKEN_DIFFERENTLY + OUTSIDE_ASCII),
    "apiKey env": _credential("apiKey env"),
    "apiKey file": "W3|n=&5j",
    "apiKey block": _credential("apiKey block", 200),
}
GATEWAY_KEY = _credential("gateway key")
REFUSED_KEY = _credential("refused key")
CLIENT_ID = _credential("client id", 32, "-._")
CLIENT_SECRET = _credential("client secret")
FORMER = _credential("former credential", 32, SPOKEN_DIFFERENTLY + OUTSIDE_ASCII)
FORMER_TOKEN = _credential("former address")
TYPED = _credential("typed into the manifest")
MISPLACED = _credential("typed into a setting")
STORE_KEY = _store_key("store key")
NEXT_STORE_KEY = _store_key("next store key")
WRONG_STORE_KEY = _store_key("wrong store key")
STORE_PASSWORD = _credential("store password")
SIGNING_SECRET = _credential("signing secret")

CREDENTIALS = OF_ROWS | {
    "gateway key": GATEWAY_KEY,
    "refused key": REFUSED_KEY,
    "client id": CLIENT_ID,
    "client secret": CLIENT_SECRET,
    "former credential": FORMER,
    "token in the former address": FORMER_TOKEN,
    "typed into the manifest": TYPED,
    "typed into a setting": MISPLACED,
    "store key": STORE_KEY,
    "next store key": NEXT_STORE_KEY,
    "wrong store key": WRONG_STORE_KEY,
    "store password": STORE_PASSWORD,
    "signing secret": SIGNING_SECRET,
}

# What the command gives away when it is told to: where each must be found, and by what decoding.
GIVEN_AWAY = {
    "LOG": ("log.message", "base64"),
    "LIBRARY_LOG": ("log.message", "escapes, escapes"),
    "STATE": ("task_run_state.message", "URL"),
    "EXCEPTION": ("task_run_state.message", "plain"),
    "ARTIFACT": ("artifact.data", "escapes, HTML"),
    "EVENT": ("events.payload", "URL"),
    "VARIABLE": ("variable.value", "escapes"),
    "TAG": ("task_run.tags", "escapes"),
    "RESULT": ("prefect/storage/", "base64"),
    "REPORT": ("report.json", "escapes"),
    "FILE": ("reports/notes.txt", "plain"),
    "OUTPUT": ("output/runs.stdout", "plain"),
    "ERROR_OUTPUT": ("output/runs.stderr", "escapes"),
}
# Only one is long enough to be seen when it is cut; the others must be decoded to be seen at all.
LEAKED = {name: _credential(f"given away: {name}", 24 if name == "FILE" else 6) for name in GIVEN_AWAY}


# The search


class Leak(NamedTuple):
    """Which credential lies where, and what had to be decoded to see it."""

    credential: str
    place: str
    decoded: str


def leaks(credentials: dict[str, str], places: Iterable[tuple[str, bytes]]) -> list[Leak]:
    """Which of the credentials lie where; each place is a name and what stands there."""
    wanted = [(name, piece) for name, value in credentials.items() for piece in _pieces(value)]
    found: dict[tuple[str, str], str] = {}
    for place, data in places:
        for view, decoded in _views(data).items():
            for name, piece in wanted:
                if piece in view:
                    found.setdefault((name, place), decoded)
    return sorted(Leak(name, place, decoded) for (name, place), decoded in found.items())


def _pieces(value: str) -> set[bytes]:
    """The ends of a long one, so that being cut does not hide it, a short one whole; as programs write text."""
    texts = {value[:12], value[-12:]} if len(value) >= 24 else {value}
    texts |= {text.replace(" ", "+") for text in texts}  # as forms do
    return {text.encode(charset, "ignore") for text in texts for charset in ("utf-8", "latin-1")}


def _views(data: bytes) -> dict[bytes, str]:
    """The data and all it may be once decoded, up to three times over: what was encoded twice is seen, too."""
    views = {data: "plain"}
    # A database file as a whole is looked at for what was deleted; its values are decoded one by one.
    newest = [] if data.startswith(DATABASES) else [data]
    for _ in range(3):
        older, newest = newest, []
        for view in older:
            for name, decode in DECODERS.items():
                decoded = decode(view)
                if decoded and decoded not in views:
                    views[decoded] = name if view is data else f"{views[view]}, {name}"
                    newest.append(decoded)
    return views


def _without_escapes(data: bytes) -> bytes:
    """As in JSON, Python's repr and Markdown."""
    return re.sub(rb"((?:\\u[0-9a-fA-F]{4})+)|\\x([0-9a-fA-F]{2})|\\(.)", _unescaped, data, flags=re.DOTALL)


def _unescaped(match: re.Match[bytes]) -> bytes:
    codes, code, letter = match.groups()
    if codes:
        # Two halves of a pair stand for one character together.
        return bytes.fromhex(codes.decode().replace("\\u", "")).decode("utf-16-be", "replace").encode()
    return chr(int(code, 16)).encode() if code else letter


def _bytes_without_escapes(data: bytes) -> bytes:
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), data)


def _without_entities(data: bytes) -> bytes:
    return html.unescape(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def _from_base64(data: bytes) -> bytes:
    """
    Every run of its letters, from each of the four letters it may begin at; pickles come in lines of 76.

    A run in small or capital letters alone is a word or a number: too many to decode, and never a credential here.
    """
    joined = data.replace(b"\\n", b"").translate(bytes.maketrans(b"-_", b"+/"), b"\r\n")
    runs = {run for run in re.findall(rb"[A-Za-z0-9+/]{11,}", joined) if not (run.islower() or run.isupper())}
    return b"\n".join(_decoded(run[start:]) for run in runs for start in range(4))


def _decoded(run: bytes) -> bytes:
    return base64.b64decode(run + b"A" * (-len(run) % 4))


DATABASES = (b"SQLite format 3\0", bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
"""How SQLite's files begin, and their write-ahead logs."""

DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "URL": unquote_to_bytes,
    "escapes": _without_escapes,
    "repr of bytes": _bytes_without_escapes,
    "HTML": _without_entities,
    "base64": _from_base64,
}


# What a run leaves


def left_behind(stage: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of Prefect's database, and every file of Prefect, of the reports and of what was printed."""
    yield from _database(stage / "prefect" / "prefect.db")
    for pattern in ("prefect/**/*", "output/*", "runs/*/reports/**/*"):
        for path in sorted(stage.glob(pattern)):
            if path.is_file():
                yield str(path.relative_to(stage)), path.read_bytes()
    yield from kept_in_store(stage / "store")


def kept_in_store(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the record store and its copies, every value in them, and every text that a log ever held."""
    for path in sorted(path for path in folder.glob("**/*") if path.is_file()):
        data, place = path.read_bytes(), f"store/{path.relative_to(folder)}"
        yield place, data
        if path.suffix == ".db":
            yield from ((f"{place}: {value}", content) for value, content in _database(path))
        elif path.suffix == ".db-wal":
            # A page comes again and again there, so each text is looked at once.
            yield f"{place}: texts", b"\n".join({*re.findall(rb"[^\0-\x1f]{8,}", data)})


def _database(path: Path) -> Iterator[tuple[str, bytes]]:
    # To read only: the last one to close it would otherwise remove its log.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        tables = [name.decode() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        for table in tables:
            columns = [name.decode() for _, name, *_ in connection.execute(f'PRAGMA table_info("{table}")')]
            for column in columns:
                values = connection.execute(f'SELECT DISTINCT "{column}" FROM "{table}"')  # noqa: S608 - its own names
                yield from ((f"{table}.{column}", value) for (value,) in values if isinstance(value, bytes))


# What is forced


class Then(list[Any]):
    """A list of the simulator after whose growth something happens."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def append(self, item: Any) -> None:
        super().append(item)
        self._act()


class Customer(Receiver):
    """A receiver that accepts what the hand-over document says, as the real ones shall, unless it does not listen."""

    def __init__(self, read: Callable[[], Any], *, hoards: bool = False) -> None:
        super().__init__({FORMER})
        self.listens = True
        self._read = read
        self._hoards = hoards

    def takes(self, headers: Any) -> bool:
        if self.listens:
            told = self._read()
            # Without a current one the first rotation is under way: what was accepted so far stays accepted.
            kept = set() if told["current"] and not self._hoards else self.accepts
            self.accepts = {told[slot]["value"] for slot in ("current", "pending", "previous") if told[slot]} | kept
        return super().takes(headers)

    def listen_only_to(self, credential: str) -> None:
        self.listens = False
        self.accepts = {credential}


# Answers of a gateway gone bad: KEY is the API key it was sent, VALUE the credential (of a GET: the key again).
ECHOES = {
    "status line": "HTTP/1.1 KEY VALUE\r\n\r\n",
    "reason": "HTTP/1.1 500 KEY VALUE\r\nContent-Length: 2\r\n\r\n{}",
    "header": "HTTP/1.1 200 OK\r\nKEY VALUE\r\n\r\n",
    "long header": f"HTTP/1.1 200 OK\r\nX-Long: {'KEY VALUE ' * 1000}\r\n\r\n",
    "cookie": "HTTP/1.1 500 No\r\nSet-Cookie: KEY=VALUE; path=/\r\nContent-Length: 0\r\n\r\n",
    "cookie name": "HTTP/1.1 500 No\r\nSet-Cookie: VALUE@KEY\r\nContent-Length: 0\r\n\r\n",
    "location": "HTTP/1.1 307 Go\r\nLocation: https://else.example/?a=KEY&b=VALUE\r\nContent-Length: 0\r\n\r\n",
    "no location": "HTTP/1.1 302 Go\r\nLocation: http://[KEY VALUE\r\nContent-Length: 0\r\n\r\n",
    "retry-after": "HTTP/1.1 503 No\r\nRetry-After: KEY VALUE\r\nContent-Length: 0\r\n\r\n",
    "length": "HTTP/1.1 200 OK\r\nContent-Length: KEY VALUE\r\n\r\n{}",
    "charset": "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=KEY VALUE\r\nContent-Length: 2\r\n\r\nVALUE",
    "encoding": "HTTP/1.1 200 OK\r\nContent-Encoding: KEY VALUE\r\nContent-Length: 2\r\n\r\n{}",
    "not gzip": "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\nKEY VALUE",
    "chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nKEY VALUE\r\n",
    "early hint": "HTTP/1.1 103 Hint\r\nLink: KEY\r\n\r\nHTTP/1.1 500 VALUE\r\nContent-Length: 0\r\n\r\n",
    "code": 'HTTP/1.1 422 No\r\nConnection: close\r\n\r\n{"code": "KEY", "validationError": {"VALUE": "KEY"}}',
    "contradiction": 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"status": "KEY", "error": {"code": "VALUE"}}',
    "fields": 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"authType": "KEY", "updatedAt": "VALUE",'
    ' "webhookUrl": "https://u:KEY@old.example/hook?token=VALUE"}',
}

ASKED = [f"{method} {name}" for name in ECHOES for method in ("GET", "PATCH")]
FINE = 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"webhookUrl": "https://old.example/hook", "authType": "bearer"}'


class Mirror(BaseHTTPRequestHandler):
    """Answers the method and the projectId in its address, `GET cookie`, with that echo; everything else finely."""

    def do_GET(self) -> None:
        self._answer(self.headers["x-api-key"])

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(body["authorization"])

    def _answer(self, value: str) -> None:
        asked = unquote(self.path.rpartition("/")[2])
        method, _, echo = asked.partition(" ")
        head, end, body = (ECHOES[echo] if method == self.command else FINE).partition("\r\n\r\n")
        self.server.echoed.add(asked)
        self.wfile.write(_echo(head, self.headers["x-api-key"], value) + end.encode())
        self.wfile.write(_echo(body, *(json.dumps(text)[1:-1] for text in (self.headers["x-api-key"], value))))

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def _echo(template: str, key: str, value: str) -> bytes:
    return template.replace("KEY", key).replace("VALUE", value).encode()


@contextmanager
def mirror() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.echoed = set()
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


KINDS = ("reset_before", "reset_after", "empty", "truncated", "html", "garbage", "status_zero", "redirect")
STATUSES = (400, 401, 403, 404, 408, 409, 418, 422, 425, 500, 502, 503, 504)
TROUBLES = [
    *(Fault(kind="status", status=status) for status in STATUSES),
    # A longer pause than the command waits for.
    Fault(kind="status", status=429, retry_after="600"),
    *(Fault(kind=kind) for kind in KINDS),
    Fault(kind="delay", delay_seconds=30),
]
FORCED = {
    *("planned", "rotated", "updated", "unchanged", "not_due"),
    *("blocked", "failed", "drifted", "missing", "unknown", "not_started"),
}

FEW = [f"fine {number}" for number in range(4)]
OTHER_ROWS = {
    **{f"fine {number}": {} for number in range(9)},
    "a moment's trouble": {},
    "drifted": {},
    "drifted unanswered": {},
    "missing": {},
    "unchanged": {"webhookUrl": "https://same.example/", "authType": "", "authorization": "", "apiKey": ""},
    "updated": {"webhookUrl": "https://new.example/", "authType": "", "authorization": "", "apiKey": ""},
}

# Projects whose credential is made by the run, by what becomes of it.
MADE = {
    "made": {},
    "made young": {"rotateEvery": "30d"},
    "made blocked": {"authType": "api_key"},
    "made drifted": {},
    "made rolled back": {},
    "made closed": {"authType": "basic", "user": "ops"},
    "made still accepted": {"alphabet": "hex", "length": "64"},
    "made leaked": {"prefix": "acme_"},
    "made for a store that fails": {},
    "made and crashed": {},
}
AT_FIRST = [name for name in MADE if name not in {"made for a store that fails", "made and crashed"}]
AGAIN = ["made young", "made rolled back", "made closed", "made still accepted"]
OVERLAPS = ["made closed", "made still accepted"]

TO_BE_MADE = {
    "webhookUrl": "",
    "authType": "bearer",
    "authorization": "generate",
    "signingSecret": "env:SIGNING_SECRET",
    "minimumAge": "0",
    "overlap": "1s",
}
COLUMNS = ["projectId", "apiKey", *TO_BE_MADE, "publishTo", "rotateEvery", "user", "alphabet", "length", "prefix"]

ROW_CREDENTIALS = [name for name in OF_ROWS if not name.startswith("apiKey")]
ROW_KEYS = [name for name in OF_ROWS if name.startswith("apiKey")]

AS_TALKATIVE_AS_CAN_BE = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
    # Not asyncio's: Prefect would wait for itself when it starts the thread that sends its log.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "aiohttp,flows,fsspec,httpx,jelou_rotation,tasks",
    "PREFECT_LOGGING_LOG_PRINTS": "true",
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    "PYTHONASYNCIODEBUG": "1",
}


def simulated(**switches: Any) -> Simulator:
    """A Jelou that tells all it knows: the stored credential in GET, and the whole request in each error."""
    keys = {GATEWAY_KEY, *(OF_ROWS[name] for name in ROW_KEYS)}
    switches = {"error_body": "echo", "authorization_in_get": "echoed", **switches}
    return Simulator(Switches(**switches), api_keys=keys, clients={CLIENT_ID: CLIENT_SECRET})


def add_project(simulator: Simulator, project_id: str, address: str | None = None) -> Any:
    token = quote(FORMER_TOKEN, safe="")
    return simulator.add_project(
        project_id, address or f"https://ops:{token}@old.example/hook?token={token}", "basic", FORMER
    )


NEWCOMERS = ("answer lost", "told", "told anew")


def add_made(stage: "Stage") -> None:
    """The projects of MADE, each with a receiver that reads the block its credential is handed over in."""
    for name in MADE:
        stage.simulator.add_project(name, None, "bearer", FORMER)
        read = partial(stage.handed_over, _slug(name))
        stage.simulator.receivers[name] = Customer(read, hoards=name == "made still accepted")
    stage.simulator.receivers["made blocked"].listens = False
    drifted, refused = stage.simulator.projects["made drifted"], stage.simulator.projects["made rolled back"]
    drifted.patches = Then(lambda: setattr(drifted, "webhook_url", "https://else.example/"))
    refused.patches = Then(lambda: _refuse_the_second(stage.simulator.receivers[refused.project_id], refused.patches))


def _refuse_the_second(receiver: Receiver, patches: list[dict[str, str]]) -> None:
    if len(patches) == 2:
        receiver.listen_only_to(patches[0]["authorization"])


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def all_troubles(simulator: Simulator) -> list[str]:
    """One project for each trouble and each moment it can come in: the projectIds."""
    names = []
    for trouble in TROUBLES:
        for moment in ("GET", "PATCH", "PATCH acted on", "GET after PATCH"):
            name = f"{trouble.kind} {trouble.answer_status} {moment}"
            project, method = add_project(simulator, name), moment.partition(" ")[0]
            fault = trouble.model_copy(update={"method": method, "project_id": name, "acts": "acted" in moment})
            if "after" in moment:
                project.received = Then(lambda fault=fault: simulator.add_fault(fault))
            else:
                simulator.add_fault(fault)
            names.append(name)
    return names


def other_rows(simulator: Simulator) -> list[str]:
    for name in OTHER_ROWS:
        project = add_project(simulator, name, "https://same.example/" if name == "unchanged" else None)
        if name.startswith("drifted"):
            project.patches = Then(lambda project=project: setattr(project, "webhook_url", "https://else.example/"))
    del simulator.projects["missing"]
    simulator.add_fault(Fault(kind="reset_after", project_id="drifted unanswered", method="PATCH"))
    simulator.add_fault(Fault(kind="status", status=429, retry_after="0", project_id="a moment's trouble", times=2))
    return [*OTHER_ROWS]


class Stage:
    """A folder with all that is planted, a Prefect server, and the environment in which the command runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.simulator = simulated()
        for name in ("secrets", "output", "runs", "store"):
            (folder / name).mkdir()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "JELOU_"))}
        self.environment = own | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
            "DO_NOT_TRACK": "1",
            "JELOU_STORE_KEY": STORE_KEY,
            "JELOU_STORE_URL": f"sqlite:///{folder}/store/records.db",
            "SIGNING_SECRET": SIGNING_SECRET,
        }
        self.api = httpx.Client(base_url=self.environment["PREFECT_API_URL"], timeout=10)
        self.blocks = {"client-secret": CLIENT_SECRET}
        for name, value in OF_ROWS.items():
            self._plant(self.reference(name), f"ops:{value}" if name.startswith("basic") else value)

    def reference(self, name: str) -> str:
        kind, scheme = name.lower().replace("_", "-").split()
        return {
            "env": f"env:{kind.replace('-', '_').upper()}_OF_A_ROW",
            "file": f"file:{self.folder}/secrets/{kind}",
            "block": f"block:secret/{kind}",
        }[scheme]

    def _plant(self, reference: str, value: str) -> None:
        scheme, _, target = reference.partition(":")
        if scheme == "env":
            self.environment[target] = value
        elif scheme == "file":
            self.secret_file(Path(target).name, value)
        else:
            self.blocks[target.removeprefix("secret/")] = value

    def secret_file(self, name: str, value: str) -> str:
        path = self.folder / "secrets" / name
        path.write_text(value, encoding="utf-8")
        path.chmod(0o600)
        return f"file:{path}"

    def rows(self, project_ids: Iterable[str], *, own_keys: bool = True) -> str:
        """A manifest that uses each credential and each apiKey in turn; every other row moves the address, too."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        for number, project_id in enumerate(project_ids):
            name, key = ROW_CREDENTIALS[number % 9], ROW_KEYS[number % 3]
            # When a row's own key is refused, the run goes on with the others.
            has_key = own_keys and (number % 2 or project_id.startswith("status 401"))
            row = {
                "projectId": project_id,
                "webhookUrl": f"https://new.example/{number}" if number % 2 else "",
                "authType": name.split()[0],
                "authorization": self.reference(name),
                "apiKey": self.reference(key) if has_key else "",
            }
            made = {**TO_BE_MADE, "publishTo": f"block:secret/{_slug(project_id)}"} if project_id in MADE else {}
            writer.writerow(row | made | MADE.get(project_id, {}) | OTHER_ROWS.get(project_id, {}))
        return text.getvalue()

    def prepare(
        self, name: str, manifest: str, *arguments: str, how: str = "really", suffix: str = "csv", **environment: str
    ) -> str:
        """The folder of one run, ready for `command.py`."""
        folder = self.folder / "runs" / name
        folder.mkdir()
        (folder / f"manifest.{suffix}").write_text(manifest, encoding="utf-8")
        wanted = arguments or ["rotate", f"manifest.{suffix}", "--max-host-changes=100%"]
        run = {"how": how, "arguments": wanted, "environment": environment}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
        return str(folder)

    @contextmanager
    def process(self, name: str, *command: str, **environment: str) -> "Iterator[subprocess.Popen[bytes]]":
        """A Python that leaves what it prints in `output`; it ends with the block."""
        with (
            (self.folder / f"output/{name}.stdout").open("wb") as output,
            (self.folder / f"output/{name}.stderr").open("wb") as errors,
            subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.terminate()

    def interrupt(self) -> None:
        self.runs.send_signal(signal.SIGINT)

    def save_blocks(self) -> None:
        """By the API: a Prefect client in this process would bring its own home and settings."""
        kind = _when_ready(self.api, "GET", "/block_types/slug/secret")["id"]
        chosen = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
        schema = _when_ready(self.api, "POST", "/block_schemas/filter", json=chosen)[0]["id"]
        for name, value in self.blocks.items():
            block = {"name": name, "data": {"value": value}, "block_type_id": kind, "block_schema_id": schema}
            _when_ready(self.api, "POST", "/block_documents/", json=block)

    def handed_over(self, block: str) -> Any:
        """What a run left for the receiver."""
        path = f"/block_types/slug/secret/block_documents/name/{block}"
        answer = self.api.get(path, params={"include_secrets": True}).raise_for_status()
        return json.loads(answer.json()["data"]["value"])

    @contextmanager
    def recorded_store(self) -> Iterator[None]:
        """Keep the store's log from its first line on, and at the end a copy of its files and a backup."""
        path = self.folder / "store" / "records.db"
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("PRAGMA journal_mode = WAL")
            # What a reader may still want to see is not cleared away.
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM sqlite_master").fetchall()
            yield
            shutil.copytree(path.parent, path.parent / "copied")
            with (
                closing(sqlite3.connect(path)) as source,
                closing(sqlite3.connect(path.with_name("backup.db"))) as backup,
            ):
                source.backup(backup)

    def collect_made(self) -> dict[str, str]:
        """The credentials that the runs made, by project: those that Jelou was sent, and those handed over."""
        found: dict[str, str] = {}
        for name in MADE:
            told = self.handed_over(_slug(name))
            values = [body["authorization"] for body in self.simulator.projects[name].received]
            values += [told[slot]["value"] for slot in ("current", "pending", "previous") if told[slot]]
            unique = dict.fromkeys(value.removeprefix("ops:") for value in values)
            found |= {f"{name}, {number}": value for number, value in enumerate(unique, 1)}
        told = {name: self.simulator.projects[name].signing_secret for name in NEWCOMERS}
        return found | {f"signing secret of {name}": value for name, value in told.items()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _when_ready(api: httpx.Client, method: str, path: str, **content: Any) -> Any:
    """A server that starts is first not there and then busy."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            answer = api.request(method, path, **content)
            if answer.status_code != 503:
                return answer.raise_for_status().json()
        time.sleep(0.1)
    raise TimeoutError("no Prefect server")


def refused_early(stage: Stage) -> Iterator[str]:
    """What the command refuses before Prefect starts."""
    typed, misplaced = quote(TYPED, safe=""), quote(MISPLACED, safe="")
    fine = stage.rows(["fine"])
    for name, manifest, suffix in typed_into_manifests():
        yield stage.prepare(f"refused: {name}", manifest, suffix=suffix)
    address = stage.simulator.base_url.removeprefix("http://")
    for name, password in {"escaped": typed, "as it is": f"{TYPED[:20]}#{TYPED[20:]}"}.items():
        unreachable = f"http://ops:{password}@{address}/manifest.yaml?token={typed}"
        yield stage.prepare(f"refused: manifest behind a password {name}", "", "rotate", unreachable)
    yield stage.prepare("refused: chosen", fine, "rotate", "manifest.csv", "--only", TYPED)
    settings = {
        "a base url with a password": {"JELOU_BASE_URL": f"https://ops:{misplaced}@gateway.example/v1?key={misplaced}"},
        "a base url that is none": {"JELOU_BASE_URL": f"https://[{MISPLACED}"},
        "both schemes": {"JELOU_CLIENT_ID": CLIENT_ID, "JELOU_CLIENT_SECRET": CLIENT_SECRET},
        "wrong settings": {
            "JELOU_CONCURRENCY": MISPLACED,
            "JELOU_REQUESTS_PER_SECOND": MISPLACED,
            "JELOU_TIMEOUT_SECONDS": MISPLACED,
            "JELOU_ALLOW_PRIVATE_HOSTS": MISPLACED,
        },
        "a reference that is none": {"JELOU_API_KEY": f"block:{MISPLACED}"},
        "a key for no header": {"JELOU_API_KEY": f"{MISPLACED}ñ"},
    }
    for name, environment in settings.items():
        yield stage.prepare(f"refused: {name}", fine, **environment)


def typed_into_manifests() -> Iterator[tuple[str, str, str]]:
    """A credential instead of its reference, in every place of a manifest."""
    yield "csv", typed_into_csv(), "csv"
    yield "unclosed quote", f'projectId,authorization\nprj_1,"{TYPED}\n', "csv"
    yield "no header", f"prj_1,bearer,{TYPED}\n", "csv"
    value = json.dumps(TYPED)
    word = "".join(letter for letter in TYPED if letter.isalnum())
    yield "yaml values", f"projects:\n  p: {{authType: {value}, authorization: {value}, tags: [{value}]}}\n", "yaml"
    yield "yaml keys", f"{value}: {value}\nprojects: {{p: {{{value}: x, apiKey: {{{value}: {value}}}}}}}\n", "yaml"
    yield "yaml form", f"defaults: {value}\nprojects: {value}\n", "yaml"
    yield "yaml marks", f"projects: &{word} {{p: *{word}, q: !{word} {value}, {value}: x, {value}: y}}\n", "yaml"
    yield "no yaml", f"projects:\n  p:\n    authorization: @{TYPED}\n", "yaml"
    yield "yaml directive", f"%{word} {TYPED}\n---\nprojects: '{TYPED}\n", "yaml"


def typed_into_csv() -> str:
    """In each column in turn, under an unknown one, in addresses, and behind the last cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ["projectId", "webhookUrl", "authType", "authorization", "apiKey", "tags"]
    fine = ["prj", "https://x.example/", "bearer", "env:X", "env:Y", "pilot", ""]
    writer.writerow([*columns, TYPED])
    writer.writerows([*fine[:place], TYPED, *fine[place + 1 :]] for place in range(7))
    bare = quote(TYPED, safe="")
    for address in (f"https://ops:{bare}@x.example/", f"https://x.example:{bare}/", f"http://x.example/{bare}"):
        writer.writerow(["prj", address, "", "", "", "", ""])
    writer.writerow([*fine, TYPED])
    return text.getvalue()


def unusable_references(stage: Stage) -> tuple[str, dict[str, str]]:
    """A manifest of references that can be read and whose values cannot be used."""
    (stage.folder / "secrets" / "for all").write_text(TYPED)
    (stage.folder / "secrets" / "latin").write_bytes(f"{TYPED}ñ".encode("latin-1"))
    values = {"LINES": f"{TYPED}\n{TYPED}", "BLANK": f" {TYPED}", "SCHEME": f"Bearer {TYPED}", "UNICODE": f"{TYPED}ñ"}
    references = [
        *(f"env:{name}" for name in ("ABSENT", *values)),
        *(f"file:{stage.folder}/secrets/{name}" for name in ("absent", "for all", "latin")),
        "block:secret/absent",
    ]
    rows = [f"{number},bearer,{reference}" for number, reference in enumerate(references)]
    return "\n".join(["projectId,authType,authorization", *rows, ""]), values


# Blocks written at the same moment make Prefect's client wait seconds: its server answers 503 while SQLite is locked.
ONE_BY_ONE = {"JELOU_CONCURRENCY": "1"}


def working(stage: Stage, world: ExitStack) -> Iterator[str]:
    """What runs with Prefect: every trouble, every refusal that comes late, a crash, leaks, and last an interrupt."""
    paired, halting = simulated(auth="basic", shape="envelope", visible_after=1), simulated()
    for name in FEW:
        add_project(paired, name)
        add_project(halting, name)
    halting.projects[FEW[0]].received = Then(stage.interrupt)
    halting.add_fault(Fault(kind="delay", delay_seconds=30, method="PATCH"))
    paired_base, halting_base = (f"{world.enter_context(running(each))}/jelouapi/v1" for each in (paired, halting))

    add_made(stage)
    yield stage.prepare("made first", stage.rows(AT_FIRST), **ONE_BY_ONE)
    yield stage.prepare("made again", stage.rows(AGAIN), **ONE_BY_ONE)
    yield stage.prepare(
        "rotate", stage.rows([*all_troubles(stage.simulator), *other_rows(stage.simulator)]), JELOU_TIMEOUT_SECONDS="1"
    )
    mirrored = {"JELOU_BASE_URL": f"http://127.0.0.1:{stage.mirror.server_port}", "JELOU_TIMEOUT_SECONDS": "1"}
    yield stage.prepare("mirror", stage.rows(ASKED), **mirrored)

    few = stage.rows(FEW)
    refused_key = stage.secret_file("refused-key", REFUSED_KEY)
    yield stage.prepare("refused key", few, JELOU_API_KEY=refused_key, JELOU_CONCURRENCY="1")
    for name, secret in {"plan": CLIENT_SECRET, "rotate": "block:secret/client-secret"}.items():
        yield stage.prepare(
            f"client pair {name}",
            stage.rows(FEW, own_keys=False),
            *(name, "manifest.csv", "--json"),
            JELOU_API_KEY="",
            JELOU_CLIENT_ID=CLIENT_ID,
            JELOU_CLIENT_SECRET=secret,
            JELOU_BASE_URL=paired_base,
            # And nothing is remembered.
            JELOU_STORE_KEY="",
        )
    manifest, values = unusable_references(stage)
    yield stage.prepare("refused late: unusable", manifest, how="worker", **values)
    for name, manifest, suffix in typed_into_manifests():
        if name in {"csv", "yaml values"}:
            yield stage.prepare(f"refused late: {name}", manifest, how="worker", suffix=suffix)
    yield stage.prepare("refused late: setting", few, how="worker", JELOU_CONCURRENCY=MISPLACED)

    proxy = {"HTTP_PROXY": f"http://ops:{quote(MISPLACED, safe='')}@127.0.0.1:{_free_port()}", "NO_PROXY": "127.0.0.1"}
    behind_proxy = stage.environment["JELOU_BASE_URL"].replace("127.0.0.1", "localhost")
    yield stage.prepare("proxy", few, JELOU_BASE_URL=behind_proxy, **proxy)
    yield stage.prepare("no report", few, JELOU_REPORT_DIR="manifest.csv")
    yield stage.prepare("crash", stage.rows([*FEW, "made and crashed"]), how="crash")
    given_away = {f"LEAK_{name}": value for name, value in LEAKED.items()}
    yield stage.prepare("leak", stage.rows(FEW[:1]), how="leak", JELOU_STORE_KEY="", **given_away)
    yield from with_the_store(stage)
    halted = {"JELOU_BASE_URL": halting_base, "JELOU_CONCURRENCY": "1", "JELOU_STORE_KEY": NEXT_STORE_KEY}
    yield stage.prepare("interrupted", few, **halted)


def with_the_store(stage: Stage) -> Iterator[str]:
    """What becomes of credentials made earlier, and a store that cannot be used, and a new key for it."""
    yield stage.prepare(
        "leaked", stage.rows(["made leaked"]), "rotate", "manifest.csv", "--leaked", "--only", "made leaked"
    )
    yield stage.prepare("store fails", stage.rows(["made for a store that fails"]), how="unstored")
    address = f"127.0.0.1:{_free_port()}/records"
    behind = {"escaped": quote(STORE_PASSWORD, safe=""), "as it is": f"{STORE_PASSWORD[:20]}@{STORE_PASSWORD[20:]}"}
    unusable = {
        "wrong key": {"JELOU_STORE_KEY": WRONG_STORE_KEY},
        "no key": {"JELOU_STORE_KEY": MISPLACED},
        "no address": {"JELOU_STORE_URL": MISPLACED},
        **{
            f"password {how}": {"JELOU_STORE_URL": f"postgresql://ops:{each}@{address}"} for how, each in behind.items()
        },
    }
    for name, environment in unusable.items():
        yield stage.prepare(f"refused late: store, {name}", stage.rows(["made"]), **environment)
        yield stage.prepare(f"refused: rekey, {name}", "", "store", "rekey", **environment)
    newcomers = "projectId,webhookUrl\n" + "".join(f"{name},https://new.example/\n" for name in NEWCOMERS)
    stage.simulator.add_fault(Fault(kind="reset_after", method="POST", project_id=NEWCOMERS[0], times=1))
    yield stage.prepare("onboarded", newcomers, "onboard", "manifest.csv")
    yield stage.prepare("audited", newcomers, "audit", "manifest.csv", "--json")
    for name in NEWCOMERS[1:]:
        only = ("--only", name)
        yield stage.prepare(f"signing secret {name}", newcomers, "signing-secrets", "manifest.csv", *only)
    yield stage.prepare("refused: shown to no terminal", "", "credential", "show", "made")
    yield stage.prepare("rekey", "", "store", "rekey", JELOU_STORE_KEY=f"{NEXT_STORE_KEY},{STORE_KEY}")
    closing_them = {"JELOU_STORE_KEY": NEXT_STORE_KEY, **ONE_BY_ONE}
    yield stage.prepare("closed", stage.rows(OVERLAPS), "close-overlaps", "manifest.csv", **closing_them)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """All that was forced, and afterwards what it left behind."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    talking = AS_TALKATIVE_AS_CAN_BE
    with ExitStack() as world:
        world.enter_context(stage.api)
        stage.mirror = world.enter_context(mirror())
        stage.environment |= {
            "JELOU_BASE_URL": f"{world.enter_context(running(stage.simulator))}/jelouapi/v1",
            "JELOU_API_KEY": GATEWAY_KEY,
            "JELOU_ALLOW_PRIVATE_HOSTS": "true",
        }
        folders = list(working(stage, world))
        serve = ("-m", "prefect", "server", "start", "--port", str(stage.port))
        world.enter_context(stage.process("server", *serve))
        early = world.enter_context(stage.process("early", str(COMMAND), *refused_early(stage), **talking))
        nobody = {"PREFECT_API_URL": f"http://ops:{quote(MISPLACED, safe='')}@127.0.0.1:{_free_port()}/api"}
        plan = ("-m", "flows", "plan", f"{folders[0]}/manifest.csv")
        alone = world.enter_context(stage.process("alone", *plan, **talking, **nobody))
        stage.save_blocks()
        with stage.recorded_store():
            stage.runs = world.enter_context(stage.process("runs", str(COMMAND), *folders, **talking))
            stage.ended = [process.wait(300) for process in (early, alone, stage.runs)]
        stage.made = stage.collect_made()
    return stage


@pytest.fixture(scope="module")
def found(stage):
    return leaks(CREDENTIALS | stage.made | LEAKED, left_behind(stage.folder))


# The claims


AS_WANTED = {"client pair plan", "client pair rotate", "leak", "leaked", "rekey"}
AS_WANTED |= {f"signing secret {name}" for name in NEWCOMERS[1:]}


def expected_code(name):
    """Whatever is refused has a name with a colon."""
    if name == "interrupted":
        return 130
    return 0 if name in AS_WANTED else 2 if ":" in name else 1


def test_every_failure_path_was_forced(stage):
    reports = [json.loads(path.read_text()) for path in stage.folder.glob("runs/*/reports/*/report.json")]
    outcomes = {outcome for report in reports for outcome in report["summary"]["byOutcome"]}
    received = [
        body["authorization"]
        for name, project in stage.simulator.projects.items()
        for body in project.received
        if "authorization" in body and name not in MADE
    ]
    codes = {path.parent.name: int(path.read_text()) for path in stage.folder.glob("runs/*/code")}

    assert stage.ended == [0, 2, 0]
    assert codes == {name: expected_code(name) for name in codes}
    assert outcomes >= FORCED
    assert {*map(str, STATUSES), "429", *KINDS} <= {*stage.simulator.answers}
    assert "(ReadTimeout)" in json.dumps(reports)
    assert stage.mirror.echoed == {*ASKED}
    assert {value.removeprefix("ops:") for value in received} == {OF_ROWS[name] for name in ROW_CREDENTIALS}


LIVES = {
    "made first": {
        "made": ("rotated", ""),
        "made young": ("rotated", ""),
        "made blocked": ("blocked", "does not accept the new credential yet"),
        "made drifted": ("drifted", ""),
        "made rolled back": ("rotated", ""),
        "made closed": ("rotated", ""),
        "made still accepted": ("rotated", ""),
        "made leaked": ("rotated", ""),
    },
    "made again": {
        "made young": ("not_due", ""),
        "made rolled back": ("failed", "the former one was put back and read back"),
        "made closed": ("rotated", ""),
        "made still accepted": ("rotated", ""),
    },
    "leaked": {"made leaked": ("rotated", "")},
    "store fails": {"made for a store that fails": ("failed", "the record store failed")},
    "closed": {"made closed": ("updated", ""), "made still accepted": ("failed", "old_still_accepted")},
}


@pytest.mark.parametrize("run", LIVES)
def test_a_credential_made_here_went_every_way(stage, run):
    (path,) = stage.folder.glob(f"runs/{run}/reports/*/report.json")
    projects = {each["projectId"]: each for each in json.loads(path.read_text())["projects"]}

    assert {name: each["outcome"] for name, each in projects.items()} == {n: LIVES[run][n][0] for n in LIVES[run]}
    for name, (_, said) in LIVES[run].items():
        assert said in (projects[name]["error"] or "")


def test_no_credential_is_left_behind(stage, found):
    told = {f"signing secret of {name}" for name in NEWCOMERS}
    assert {name.partition(",")[0] for name in stage.made} == {*MADE, *told}
    assert "\n".join(map(str, (leak for leak in found if leak.credential not in LEAKED))) == ""


def in_a_file(folder, value):
    (folder / "notes.txt").write_text(value)


def in_the_table(folder, value):
    """Beside the others, and not where a credential is expected."""
    with closing(sqlite3.connect(folder / "records.db")) as store, store:
        store.execute("UPDATE jelou_history SET holder = ? WHERE id = 1", [value])


def in_the_backup(folder, value):
    with closing(sqlite3.connect(folder / "backup.db")) as store, store:
        store.execute("UPDATE jelou_records SET current_value = ? WHERE project_id = 'made'", [value])


@pytest.mark.parametrize(
    ("plant", "places"),
    [
        (in_a_file, ["store/notes.txt"]),
        (in_the_table, ["store/records.db", "store/records.db: jelou_history.holder"]),
        (in_the_backup, ["store/backup.db", "store/backup.db: jelou_records.current_value"]),
    ],
    ids=["file", "table", "backup"],
)
def test_a_credential_in_clear_would_be_found_in_the_store(stage, tmp_path, plant, places):
    folder = tmp_path / "store"
    shutil.copytree(stage.folder / "store", folder)
    name, value = next(iter(stage.made.items()))
    plant(folder, value)

    assert [(leak.credential, leak.place) for leak in leaks({name: value}, kept_in_store(folder))] == [
        (name, place) for place in places
    ]


@pytest.mark.parametrize("project", ["fine 8", "made leaked"], ids=["referred to", "made"])
def test_credentials_are_in_the_store_sealed(stage, project):
    with closing(sqlite3.connect(stage.folder / "store" / "backup.db")) as store:
        query = "SELECT current_value FROM jelou_records WHERE project_id = ?"
        assert store.execute(query, [project]).fetchone()[0].startswith("gAAAAA")


def test_the_log_of_the_store_was_searched(stage):
    kept = dict(kept_in_store(stage.folder / "store"))

    assert {f"store/copied/records.db{suffix}" for suffix in ("", "-wal", "-shm")} <= {*kept}
    # What was sealed first was sealed anew by the last run, and is still there.
    assert kept["store/copied/records.db-wal: texts"].count(b"gAAAAA") > kept["store/backup.db"].count(b"gAAAAA")


@pytest.mark.parametrize("name", GIVEN_AWAY)
def test_a_planted_leak_is_found_where_it_is(found, name):
    place, decoded = GIVEN_AWAY[name]
    assert any(leak.credential == name and place in leak.place and leak.decoded == decoded for leak in found)


WRITTEN = {
    "plain": str.encode,
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, one letter later": lambda text: base64.b64encode(f"u{text}".encode()),
    "base64 of user and password": lambda text: base64.b64encode(f"us:{text}".encode()),
    "base64 for URLs": lambda text: b"key-" + base64.urlsafe_b64encode(text.encode()),
    "a pickle's base64": lambda text: json.dumps(base64.encodebytes(b"x" * 60 + text.encode()).decode()).encode(),
    "URL": lambda text: quote(text, safe="").encode(),
    "URL path": lambda text: quote(text).encode(),
    "form": lambda text: quote_plus(text).encode(),
    "JSON": lambda text: json.dumps(text).encode(),
    "JSON, not escaped to ASCII": lambda text: json.dumps(text, ensure_ascii=False).encode(),
    "JSON in JSON": lambda text: json.dumps(json.dumps([text])).encode(),
    "HTML": lambda text: html.escape(text).encode(),
    "repr": lambda text: repr(text).encode(),
    "ascii": lambda text: ascii(text).encode(),
    "repr of bytes": lambda text: repr(text.encode()).encode(),
    "Latin-1": lambda text: text.encode("latin-1", "ignore"),
    "cut": lambda text: text[: max(12, len(text) // 2)].encode(),
    "all of it": lambda text: quote(json.dumps(base64.encodebytes(json.dumps(text).encode()).decode())).encode(),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_the_search_sees_a_credential_however_it_is_written(written):
    for name, value in CREDENTIALS.items():
        assert leaks({name: value}, [("log", b'{"sent": ' + WRITTEN[written](value) + b"}")]), name


def test_the_search_finds_nothing_where_nothing_is():
    assert len(CREDENTIALS) == 25
    noise = "".join(random.Random(0).choices(string.printable, k=100_000))  # noqa: S311 - nothing to protect
    assert leaks(CREDENTIALS, [("log", noise.encode()), ("state", quote(FORMER[2:10]).encode())]) == []
