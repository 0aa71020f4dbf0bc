"""How much a run may do without being asked, and in which steps. Held against the plan before anything is sent."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import httpx
from pydantic import Field

from jelou_rotation.errors import Fault, LimitExceeded, SettingsError
from jelou_rotation.plan import RowPlan
from jelou_rotation.row import AuthType, Row

_AMOUNT = r"\d{1,6}|(?:100|\d{1,2})%"
_STEP = rf"{_AMOUNT}|tag:\S+|rest"

Amount = Annotated[str, Field(pattern=f"^({_AMOUNT})?$")]
"""A number of projects as `40`, or a share of them as `10%`; empty for no limit."""

RampStep = Annotated[str, Field(pattern=f"^({_STEP})$")]
"""A number of projects, a share of them, those with a tag, or all that are left: `1`, `10%`, `tag:pilot`, `rest`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    The most of everything a run may do; a percentage is of all projects chosen, rounded down.

    `max_host_changes` counts webhooks that would move to another host, `max_downgrades` projects that would lose their
    authentication, `max_failures` rows that need attention: above it the run begins no further one.
    """

    max_changes: Amount = ""
    max_host_changes: Amount = "10"
    max_downgrades: Amount = "0"
    max_failures: Amount = ""

    def __post_init__(self) -> None:
        names = ("max_changes", "max_host_changes", "max_downgrades", "max_failures")
        check({name: getattr(self, name) for name in names if getattr(self, name)}, _AMOUNT, "a number or a percentage")

    def failures_allowed(self, total: int) -> int | None:
        """None: any number."""
        return allowed(self.max_failures, total)

    def need_plan(self, rows: Sequence[Row]) -> bool:
        """Whether a plan of these rows could be above any of them; failures show while it is carried out."""
        most = (
            (self.max_changes, len(rows)),
            (self.max_host_changes, sum(row.webhook_url is not None for row in rows)),
            (self.max_downgrades, sum(row.auth_type is AuthType.NO_AUTH for row in rows)),
        )
        bounds = ((allowed(amount, len(rows)), count) for amount, count in most)
        return any(bound is not None and count > bound for bound, count in bounds)

    def counted(self, total: int) -> dict[str, str]:
        """The same limits by name, as numbers where they are shares of so many projects."""
        amounts = {name: allowed(amount, total) for name, amount in asdict(self).items()}
        return {name: "" if most is None else str(most) for name, most in amounts.items()}

    def check(self, plans: Sequence[RowPlan], total: int, failures: int) -> None:
        """Raises LimitExceeded with every limit that this plan is above. `failures`: rows that could not be planned."""
        counts = {
            "max_changes": (len(plans), "would change"),
            "max_host_changes": (sum(map(_moves_host, plans)), "would be delivered to another host"),
            "max_downgrades": (sum(map(_loses_authentication, plans)), "would lose their authentication"),
            "max_failures": (failures, "could not be planned"),
        }
        exceeded = [
            _exceeded(name, count, what, getattr(self, name), total)
            for name, (count, what) in counts.items()
            if (most := allowed(getattr(self, name), total)) is not None and count > most
        ]
        if exceeded:
            raise LimitExceeded("\n  ".join(["the plan is above the limits of this run:", *exceeded]))


def allowed(amount: str, total: int) -> int | None:
    """`10%` of 25 is 2; None for an empty amount, which is no limit."""
    if not amount:
        return None
    return total * int(amount[:-1]) // 100 if amount.endswith("%") else int(amount)


def ramp_steps(
    ramp: Sequence[str], project_ids: Sequence[str], tagged: Callable[[str], Collection[str]]
) -> list[list[str]]:
    """
    The projects dealt out in steps, in their order; what the ramp leaves over is the last one.

    A percentage is of all of them, rounded down, at least one; a tag takes those of it that are left, if any.
    Raises SettingsError, also for a tag that no project of the run has.
    """
    check({f"ramp step {number}": step for number, step in enumerate(ramp, 1)}, _STEP, "1, 10%, tag:NAME or rest")
    nobody = [step for step in ramp if step.startswith("tag:") and not tagged(step.removeprefix("tag:"))]
    if nobody:
        # Left out, a mistyped tag would rotate everything at once, without a canary.
        raise SettingsError([Fault("ramp", f"no project of this run has {step}") for step in nobody])
    left = list(project_ids)
    return [step for step in (*_dealt(ramp, left, len(project_ids), tagged), left) if step]


def _dealt(
    ramp: Sequence[str], left: list[str], total: int, tagged: Callable[[str], Collection[str]]
) -> Iterator[list[str]]:
    for step in ramp:
        if step.startswith("tag:"):
            members = tagged(step.removeprefix("tag:"))
            taken = [project_id for project_id in left if project_id in members]
        else:
            taken = left[: len(left) if step == "rest" else max(1, allowed(step, total) or 0)]
        chosen = set(taken)
        left[:] = [project_id for project_id in left if project_id not in chosen]
        yield taken


def check(given: dict[str, str], pattern: str, expected: str) -> None:
    """The form refuses it too, unless somebody has switched that off. Raises SettingsError."""
    faults = [Fault(name, f"expected {expected}") for name, text in given.items() if not re.fullmatch(pattern, text)]
    if faults:
        raise SettingsError(faults)


def _moves_host(plan: RowPlan) -> bool:
    if "webhookUrl" not in plan.sends or plan.creates:
        return False
    return _host(plan.row.webhook_url) != _host(plan.seen.webhook_url)


def _loses_authentication(plan: RowPlan) -> bool:
    """Where Jelou does not tell the former authType, our record of a credential tells it."""
    return plan.row.auth_type is AuthType.NO_AUTH and any(
        change.field == "authType" and (change.before or change.can_be_undone) and not plan.creates
        for change in plan.changes
    )


def _host(url: str | None) -> bytes | None:
    """As it goes over the wire, so that a name Jelou writes otherwise is still the same."""
    try:
        return httpx.URL(url or "").raw_host
    except (httpx.InvalidURL, UnicodeError):
        return None


def _exceeded(name: str, count: int, what: str, amount: str, total: int) -> str:
    most = f"{amount} allows {allowed(amount, total):,}" if amount.endswith("%") else f"the limit is {amount}"
    flag = name.replace("_", "-")
    return (
        f"{name}: {count:,} of {total:,} projects {what}, {most}."
        f" To allow it once: {name}={count} in the form, --{flag} {count} in a terminal"
    )
