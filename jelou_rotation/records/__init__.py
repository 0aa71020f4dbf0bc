"""The record store: what is durably known of each project's credential, because Jelou never tells it."""

from jelou_rotation.records.cipher import Cipher, new_key
from jelou_rotation.records.parts import Parts
from jelou_rotation.records.record import Credential, Lease, Record, SigningSecret, Step, Transition
from jelou_rotation.records.store import Store

__all__ = [
    "Cipher",
    "Credential",
    "Lease",
    "Parts",
    "Record",
    "SigningSecret",
    "Step",
    "Store",
    "Transition",
    "new_key",
]
