"""What would change, as data: shown in a dry run, applied in a rotation, the same objects."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from jelou_rotation.gateway import Integration
from jelou_rotation.row import AuthType, Row


@dataclass(frozen=True, slots=True)
class Change:
    """
    One field of one integration.

    `field` has the API's own name; `before` is None when Jelou does not tell; a credential is shown as its reference,
    an address without its query, because a query may hold a token. `can_be_undone` is false where the former state is
    not known here: without the former credential there is no way back.
    """

    field: str
    before: str | None
    after: str
    can_be_undone: bool = False


@dataclass(frozen=True, slots=True)
class RowPlan:
    """
    One row beside what Jelou has; `before` is what it had before this rotation touched it.

    `sends` names the fields the PATCH would carry, empty when everything is already so: a credential always travels
    with its authType, because what Jelou does with one of them alone is unknown (reference §4.4). `rotates` tells
    whether a credential is among them, `creates` whether Jelou has no integration yet, which a POST makes first.
    """

    row: Row
    seen: Integration
    before: Integration
    changes: tuple[Change, ...]
    sends: tuple[str, ...]
    creates: bool = False

    @property
    def wanted(self) -> Integration:
        """What GET should say afterwards."""
        return Integration(
            webhook_url=self.row.webhook_url or self.before.webhook_url,
            auth_type=self.row.auth_type or self.before.auth_type,
        )

    @property
    def rotates(self) -> bool:
        return "authorization" in self.sends

    def body(self, credential: SecretStr | None) -> dict[str, str]:
        """The PATCH body, with the credential in clear: to be made right before it is sent, and not kept."""
        values = {
            "webhookUrl": self.row.webhook_url,
            "authType": self.row.auth_type,
            "authorization": credential.get_secret_value() if credential else None,
        }
        return {field: value for field in self.sends if (value := values[field]) is not None}


def plan_row(  # noqa: PLR0913 - what is known of a row
    row: Row,
    seen: Integration,
    *,
    rotates: bool,
    knows_former: bool = False,
    before: Integration | None = None,
    creates: bool = False,
) -> RowPlan:
    """
    Compare what is wanted with what Jelou has.

    `rotates`: a credential is to be sent; no documented answer tells it, so this cannot be seen here. `knows_former`:
    the one it replaces is in our record. `before`: what was seen when the rotation began, if in another run.
    `creates`: Jelou has no integration yet.
    """
    changes: list[Change] = []
    sends: list[str] = []
    if row.webhook_url and not same_address(row.webhook_url, seen.webhook_url):
        former = _shown_address(seen.webhook_url)
        changes.append(Change("webhookUrl", former, _shown_address(row.webhook_url) or "", former is not None))
        sends.append("webhookUrl")
    if row.auth_type and row.auth_type != seen.auth_type and (rotates or not row.authorization):
        changes.append(Change("authType", _shown_type(seen.auth_type), row.auth_type, knows_former))
        sends.append("authType")
    if rotates and row.authorization:
        changes.append(Change("authorization", None, str(row.authorization), knows_former))
        sends = [*(field for field in sends if field != "authType"), "authType", "authorization"]
    if creates:
        changes = [Change("integration", "none", "created"), *(replace(change, before="none") for change in changes)]
    return RowPlan(row, seen, before or seen, tuple(changes), tuple(sends), creates)


def contradicts(told: Integration, wanted: Integration) -> bool:
    """Whether an answer says something else; a field it leaves out says nothing."""
    address_differs = bool(told.webhook_url and wanted.webhook_url) and not same_address(
        told.webhook_url, wanted.webhook_url
    )
    type_differs = bool(told.auth_type and wanted.auth_type) and told.auth_type != wanted.auth_type
    return address_differs or type_differs


def moved(one: Integration, other: Integration) -> bool:
    """Whether updatedAt tells that somebody wrote in between."""
    return bool(one.updated_at and other.updated_at and one.updated_at != other.updated_at)


def unconfirmed(told: Integration, wanted: Integration) -> tuple[str, ...]:
    """The wanted fields that an answer leaves out."""
    fields = {
        "webhookUrl": (told.webhook_url, wanted.webhook_url),
        "authType": (told.auth_type, wanted.auth_type),
    }
    return tuple(name for name, (said, asked) in fields.items() if asked and not said)


def same_address(one: str | None, other: str | None) -> bool:
    """Whether two addresses mean the same, allowing for what a server may normalise (reference §11.12)."""
    return one == other or (one is not None and other is not None and _normal(one) == _normal(other))


def _normal(address: str) -> object:
    """As it goes over the wire: names in punycode, odd characters percent-encoded, no default port."""
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, UnicodeError):
        return address
    return url.scheme, url.raw_host, url.port, url.raw_path


def _shown_address(address: str | None) -> str | None:
    if address is None:
        return None
    try:
        parts = urlsplit(address)
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        return "an unreadable address"
    return f"{parts.scheme}://{host}{parts.path}{'?…' if parts.query else ''}"


def _shown_type(auth_type: str | None) -> str | None:
    return auth_type if auth_type is None or auth_type in set(AuthType) else "an unknown type"
