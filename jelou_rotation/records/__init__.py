"""
The record store: what is durably known of each project's credential, because Jelou never tells it.

`records.store` and `records.parts` are imported where a store is opened: SQLAlchemy takes half a second (measured),
which a run without a store does not have to wait for.
"""

from jelou_rotation.records.cipher import Cipher, new_key
from jelou_rotation.records.record import Credential, Lease, Record, SigningSecret, Step, Transition

__all__ = [
    "Cipher",
    "Credential",
    "Lease",
    "Record",
    "SigningSecret",
    "Step",
    "Transition",
    "new_key",
]
