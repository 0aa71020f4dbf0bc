"""
The speed of jelou-rotation beside the least that is possible and beside what people write first, in one go.

Everybody sends the same requests for each project: GET for all of them, then GET, PATCH, GET. Each run is a fresh
process. They take turns, so that whatever else the machine does hits all of them.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from ground import HERE, Contestant, Ground, Result, median, open_ground
from picture import Bar, draw

RESULTS = HERE / "results.json"
PICTURE = HERE.parent / "docs" / "bench.svg"
PACKAGES = ("jelou-rotation", "prefect", "httpx", "httpx-aiohttp", "aiohttp")

FEW, SOME, MANY = 5, 1000, 10_000
SLOW_ONES_UP_TO = SOME
# By requests a second: so many projects that it takes a minute and a half.
LIMITED = {20: 450, 100: 2250, 500: 10_000}
QUICK_ONES = "--help,schema,floor,running,curl"
HUGE, HUGE_LATENCY_MS, HUGE_ONES = 100_000, 5, "floor,running"
THREADS = 32
BUSY = 0.9

Results = dict[tuple[str, int], Result]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and the bar it is to meet, where there is one."""

    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        return self.value <= (self.at_most or math.inf) and self.value >= (self.at_least or 0)

    def __str__(self) -> str:
        bars = {"at most": self.at_most, "at least": self.at_least}
        verdict = "met" if self.is_met else "NOT MET"
        return f"{self.value:.2f}" + "".join(f" ({word} {bar:g}: {verdict})" for word, bar in bars.items() if bar)


def _rotate(ground: Ground, projects: int) -> list[str]:
    return [sys.executable, "-m", "flows", "rotate", str(ground.manifest(projects))]


def _plan(ground: Ground, projects: int) -> list[str]:
    return [sys.executable, "-m", "flows", "plan", str(ground.manifest(projects))]


def _floor(ground: Ground, projects: int) -> list[str]:
    return [sys.executable, str(HERE / "floor.py"), ground.gateway, str(projects), str(ground.concurrency)]


def _first_version(ground: Ground, projects: int) -> list[str]:
    return [sys.executable, str(HERE / "first_version.py"), ground.gateway, str(projects)]


def _tuned(ground: Ground, projects: int) -> list[str]:
    return [*_first_version(ground, projects), str(THREADS)]


def _curl(ground: Ground, projects: int) -> list[str]:
    return ["sh", str(HERE / "curl.sh"), ground.gateway, str(projects), str(ground.concurrency)]


CONTESTANTS = (
    Contestant("floor", "no Prefect, no checks: the least possible", _floor),
    Contestant("running", "jelou-rotation, Prefect server running", _rotate, "running"),
    Contestant("temporary", "jelou-rotation, starts its own server", _rotate, "temporary"),
    Contestant("curl", "xargs -P and curl", _curl, most=SLOW_ONES_UP_TO),
    Contestant("tuned", f"first version, {THREADS} threads", _tuned, "running", SLOW_ONES_UP_TO, rounds=1),
    Contestant("first", "first version: a mapped task a step", _first_version, "running", SLOW_ONES_UP_TO, rounds=1),
)
BEGINNINGS = (
    Contestant("--help", "jelou-rotation --help", lambda *_: [sys.executable, "-m", "flows", "--help"]),
    Contestant("schema", "jelou-rotation schema", lambda *_: [sys.executable, "-m", "flows", "schema"]),
    Contestant("plan, running", "plan of 5 projects, Prefect server running", _plan, "running"),
    Contestant("plan, temporary", "plan of 5 projects, starts its own server", _plan, "temporary"),
)
LABELS = {each.name: each.label for each in (*BEGINNINGS, *CONTESTANTS)}


def main() -> None:
    # So that the servers end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    sizes = [int(size) for size in options.sizes.split(",")]
    about = machine() | {"latencyMs": options.latency_ms, "concurrency": options.concurrency, "rounds": options.rounds}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    if about["load"] > BUSY:
        print("The machine is busy with something else: trust the ratios more than the seconds.", flush=True)
    with open_ground(options.latency_ms, options.concurrency) as ground:
        beginnings = _named(options.only, BEGINNINGS)
        results = measure(ground, beginnings, [FEW], options.rounds)
        results |= measure(ground, _named(options.only, CONTESTANTS), sizes, options.rounds)
    if options.huge:
        with open_ground(HUGE_LATENCY_MS, options.concurrency) as ground:
            results |= measure(ground, _named(HUGE_ONES, CONTESTANTS), [HUGE], 1)
    figures = compare(results) | (measure_limited(options) if options.limited else {})
    print("", table(results), "", *(f"{name}: {figure}" for name, figure in figures.items()), sep="\n")
    for (name, projects), result in results.items():
        if result.busiest > BUSY:
            print(f"The gateway was the bottleneck of {name} with {projects:,} projects.")
    if options.only is None:
        write(about, results, figures)


def _named(only: str | None, contestants: Sequence[Contestant]) -> list[Contestant]:
    return [each for each in contestants if only is None or each.name in only.split(",")]


def measure(ground: Ground, contestants: Sequence[Contestant], sizes: Sequence[int], rounds: int) -> Results:
    """The median of each contestant at each size. They take turns."""
    runs: dict[tuple[str, int], list[Result]] = {}
    # Backwards: what runs in one round only runs in the last, because its server is busy for minutes afterwards.
    for left, projects, contestant in product(reversed(range(rounds)), sizes, contestants):
        if projects <= contestant.most and left < contestant.rounds:
            result = ground.run(contestant, projects)
            runs.setdefault((contestant.name, projects), []).append(result)
            print(f"{contestant.name}, {projects:,} projects: {result.seconds:.2f} s", file=sys.stderr, flush=True)
    return {which: median(each) for which, each in runs.items()}


def compare(results: Results) -> dict[str, Figure]:
    """What the bars are about, as far as it was measured."""
    found = {}
    for (name, projects), result in results.items():
        if name in {"--help", "schema"}:
            found[f"jelou-rotation {name}, s"] = Figure(result.seconds, at_most=0.5)
        if name in {"running", "temporary"} and (floor := results.get(("floor", projects))):
            bar = 1.25 if (name, projects) == ("running", MANY) else None
            found[f"{name} / floor, {projects:,} projects"] = Figure(result.seconds / floor.seconds, at_most=bar)
        if name in {"first", "tuned"} and (ours := results.get(("running", projects))):
            bar = 10.0 if (name, projects) == ("first", SOME) else None
            found[f"{name} / running, {projects:,} projects"] = Figure(result.seconds / ours.seconds, at_least=bar)
        if name == "running" and projects == MANY:
            found[f"peak memory, {projects:,} projects, MB"] = Figure(result.peak_mb, at_most=300)
    few, many = results.get(("running", SOME)), results.get(("running", MANY))
    if few and many:
        cost, memory = many.seconds / few.seconds / 10, (many.peak_mb - few.peak_mb) * 1024 / (MANY - SOME)
        found["cost of a project, 10,000 / 1,000"] = Figure(cost, at_most=1.0)
        found["memory a project, KB"] = Figure(memory, at_most=10.0)
    return found


def measure_limited(options: argparse.Namespace) -> dict[str, Figure]:
    """How near the package comes to limits nobody told it, and how much it is refused on the way."""
    found = {}
    for per_second, projects in LIMITED.items():
        with open_ground(options.latency_ms, options.concurrency, per_second) as ground:
            result = measure(ground, _named("running", CONTESTANTS), [projects], 1)["running", projects]
        needed, which = 4 * projects, f"{per_second} requests a second allowed, {projects:,} projects"
        found[f"{which}: time / least time"] = Figure(result.seconds * per_second / needed, at_most=1.15)
        found[f"{which}: % refused"] = Figure(100 * (1 - needed / result.requests), at_most=3.0)
    return found


def table(results: Results) -> str:
    """In Markdown, sorted by size and wall time."""
    header = ("projects", "", "wall", "CPU", "CPU of the server", "peak memory", "requests", "task runs")
    rows = [
        (
            f"{projects:,}",
            LABELS[name],
            f"{result.seconds:.2f} s",
            f"{result.cpu:.1f} s",
            "" if result.server_cpu is None else f"{result.server_cpu:.1f} s",
            f"{result.peak_mb:.0f} MB",
            f"{result.requests:,.0f}",
            "" if result.task_runs is None else f"{result.task_runs:,.0f}",
        )
        for (name, projects), result in sorted(results.items(), key=lambda each: (each[0][1], each[1].seconds))
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def write(about: Mapping[str, Any], results: Results, figures: Mapping[str, Figure]) -> None:
    runs = [
        {"contestant": name, "projects": projects} | _rounded(asdict(each))
        for (name, projects), each in results.items()
    ]
    compared = {name: _rounded(asdict(figure)) | {"met": figure.is_met} for name, figure in figures.items()}
    content = {"about": about, "runs": runs, "figures": compared}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")
    panels = {
        f"{projects:,} projects": [_bar(which, each) for which, each in results.items() if which[1] == projects]
        for projects in sorted({projects for _, projects in results if projects not in {FEW, HUGE}})
    }
    note = "Wall time of a whole run; {cores} cores, {latencyMs:g} ms latency, {concurrency} projects at once"
    PICTURE.write_text(draw(panels, note.format(**about)))


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(figure, 3) if isinstance(figure, float) else figure for name, figure in figures.items()}


def _bar(which: tuple[str, int], result: Result) -> Bar:
    return LABELS[which[0]], result.seconds, which[0] in {"running", "temporary"}


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names this machine."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "Python": platform.python_version(),
    } | {package: version(package) for package in PACKAGES}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _default_concurrency() -> int:
    # In another process: what this one has in memory, Linux counts for its children too.
    code = "from jelou_rotation.settings import Settings; print(Settings.model_fields['concurrency'].default)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # noqa: S603 - our own
    return int(shown.stdout)


def _options() -> argparse.Namespace:
    names = ", ".join(LABELS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the figures are medians; default: 3")
    parser.add_argument("--sizes", default="100,1000,10000", help="numbers of projects; default: 100,1000,10000")
    parser.add_argument("--latency-ms", type=float, default=50, help="of the gateway; default: 50")
    parser.add_argument("--concurrency", type=int, help="projects at once; default: that of jelou-rotation")
    parser.add_argument("--only", help=f"some of: {names}; then results.json and the picture stay as they are")
    parser.add_argument(
        "--quick", action="store_true", help=f"the same as --rounds 1 --sizes 100,1000 --only {QUICK_ONES}"
    )
    parser.add_argument(
        "--limited", action="store_true", help="also gateways that allow 20, 100, 500 requests a second"
    )
    parser.add_argument("--huge", action="store_true", help=f"also {HUGE:,} projects, at {HUGE_LATENCY_MS} ms")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sizes, options.only = 1, "100,1000", QUICK_ONES
    options.concurrency = options.concurrency or _default_concurrency()
    return options


if __name__ == "__main__":
    main()
