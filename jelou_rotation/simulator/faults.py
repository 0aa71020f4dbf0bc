"""Faults on demand."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class Fault(BaseModel):
    """
    A rule: which requests get a faulty answer, and which one. The first rule that matches decides.

    * `status`: an error status
    * `delay`: the usual answer, late
    * `reset_before`, `reset_after`: a TCP reset before or after acting
    * `empty`: no body
    * `truncated`: a body cut in the middle
    * `html`: a web page
    * `garbage`: bytes that are not HTTP
    * `status_zero`: 200 whose body says `"status": 0`
    * `redirect`: to an address that is not there
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    kind: Literal[
        "status",
        "delay",
        "reset_before",
        "reset_after",
        "empty",
        "truncated",
        "html",
        "garbage",
        "status_zero",
        "redirect",
    ]
    status: int | None = Field(
        default=None,
        ge=200,
        le=599,
        description="None: 503 for status, 307 for redirect, 200 for the other kinds",
    )
    retry_after: str | None = Field(default=None, description="the Retry-After header as it is: seconds or a date")
    delay_seconds: float = Field(default=0.0, ge=0.0, description="waits so long first, whatever the kind")
    acts: bool = Field(
        default=False,
        description="carries the request out first; delay and reset_after always do, reset_before never",
    )
    method: Literal["GET", "PATCH", "POST", "DELETE"] | None = Field(default=None, description="None: any")
    project_id: str | None = Field(default=None, description="None: any")
    times: int | None = Field(default=None, ge=1, description="None: for ever")
    rate: float = Field(default=1.0, ge=0.0, le=1.0, description="the share of matching requests that are hit")

    @model_validator(mode="after")
    def _a_delay_lasts(self) -> Self:
        if self.kind == "delay" and not self.delay_seconds:
            raise ValueError("a delay needs delay_seconds above 0")
        return self

    @property
    def carries_out(self) -> bool:
        return self.kind in {"delay", "reset_after"} or (self.acts and self.kind != "reset_before")

    @property
    def answer_status(self) -> int:
        return self.status or {"status": 503, "redirect": 307}.get(self.kind, 200)

    def matches(self, method: str, project_id: str) -> bool:
        return self.method in {None, method} and self.project_id in {None, project_id}


def passing_faults(share: float) -> list[Fault]:
    """Every kind of trouble that passes when the request is sent again, so that together they hit `share` of all."""
    troubles = [
        Fault(kind="status", status=429),
        Fault(kind="status", status=429, retry_after="0"),
        *(Fault(kind="status", status=status, acts=acts) for status in (500, 502, 503, 504) for acts in (False, True)),
        Fault(kind="reset_before"),
        Fault(kind="reset_after"),
        *(Fault(kind=kind, acts=True) for kind in ("empty", "truncated", "html", "garbage", "status_zero")),
        Fault(kind="delay", delay_seconds=0.2),
    ]
    # The first rule that hits decides, so each gets its chance only when those before it did not hit.
    rate = 1 - (1 - share) ** (1 / len(troubles))
    return [fault.model_copy(update={"rate": rate}) for fault in troubles] if share else []
