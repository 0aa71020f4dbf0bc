"""What would change, as data: shown in a dry run, applied in a rotation, the same objects."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """
    One field of one integration.

    `field` has the API's own name; `before` is None when Jelou does not tell; a credential is shown as its reference.
    """

    field: str
    before: str | None
    after: str
