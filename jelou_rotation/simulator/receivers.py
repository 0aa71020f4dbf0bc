"""What Jelou delivers to a customer's webhook, and the receiver that checks it there."""

import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AuthType = Literal["bearer", "api_key", "basic", "no_auth"]


@dataclass(slots=True)
class Receiver:
    """
    A customer's webhook endpoint; anybody may post to it.

    `accepts` holds credentials as they are ("s3cret", for basic "user:password") or whole header values;
    without `checks` every post is taken; `deliveries` counts "accepted" and "refused".
    """

    accepts: set[str] = field(default_factory=set)
    checks: bool = True
    deliveries: Counter[str] = field(default_factory=Counter)

    def takes(self, headers: Mapping[str, str]) -> bool:
        accepted = not self.checks or not self.accepts.isdisjoint(presented(headers))
        self.deliveries["accepted" if accepted else "refused"] += 1
        return accepted


def presented(headers: Mapping[str, str]) -> set[str]:
    """The credentials a request presents, as they are and as the whole header value."""
    header = headers.get("Authorization", "")
    scheme, _, rest = header.partition(" ")
    bearer = rest if scheme.lower() == "bearer" else None
    found = {headers.get("X-API-Key"), header, bearer, decoded_basic(header)}
    return {credential for credential in found if credential}


def decoded_basic(header: str) -> str | None:
    """The `user:password` of a Basic header; None when it is not one."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        return None


def credential_header(
    auth_type: AuthType, authorization: str | None, basic_encoded_by: Literal["jelou", "caller"]
) -> dict[str, str]:
    """The header Jelou presents to a webhook; none for `no_auth` or when no credential is stored."""
    if authorization is None or auth_type == "no_auth":
        return {}
    if auth_type == "api_key":
        return {"X-API-Key": authorization}
    if auth_type == "bearer":
        return {"Authorization": f"Bearer {authorization}"}
    if basic_encoded_by == "jelou":
        authorization = base64.b64encode(authorization.encode()).decode()
    return {"Authorization": f"Basic {authorization}"}


def signature(body: bytes, signing_secret: str) -> str:
    """X-Jelou-Signature: the secret is used as the text it is, not hex-decoded."""
    return "sha256=" + hmac.new(signing_secret.encode(), body, hashlib.sha256).hexdigest()


def message_event(project_id: str, number: int) -> bytes:
    """The event of an end user's message, compact as `JSON.stringify` writes it."""
    event = {
        "event_type": "message",
        "field": "messages",
        "object": "message_event",
        "timestamp": time.time_ns() // 1_000_000,
        "project_id": project_id,
        "room_id": "room_1",
        "contact": {"id": "contact_1", "name": "Simulated contact"},
        "conversation": {"id": "conversation_1"},
        "bot": {"id": "bot_1", "name": "Simulated bot"},
        "value": {"id": f"message_{number}", "type": "text", "content": {"body": "Hello"}},
    }
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
