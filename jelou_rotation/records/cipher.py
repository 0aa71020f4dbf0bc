"""How a value is sealed before it is stored, and recognised without being read."""

import hashlib
import hmac
import json
import re

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from jelou_rotation.errors import StoreError, Unreadable


def new_key() -> str:
    """A key for JELOU_STORE_KEY."""
    return Fernet.generate_key().decode()


class Cipher:
    """
    Seals values with the first of the keys and opens what any of them sealed.

    `keys` are separated by commas or white space. Raises StoreError when one of them is no key.
    """

    def __init__(self, keys: SecretStr) -> None:
        given = [key for key in re.split(r"[\s,]+", keys.get_secret_value()) if key]
        # Fernet itself overlooks what follows the padding.
        if not given or not all(re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) for key in given):
            raise StoreError(
                "JELOU_STORE_KEY: expected one key or several, separated by commas or spaces, the first one to seal"
                " with; a key is 32 random bytes in URL-safe base64 (44 characters)"
            )
        self._fernet = MultiFernet([Fernet(key) for key in given])

    def seal(self, project_id: str, value: str) -> str:
        return self._fernet.encrypt(json.dumps({"project_id": project_id, "value": value}).encode()).decode()

    def unseal(self, project_id: str, sealed: str) -> str:
        """Raises Unreadable, also when the value was sealed for another project: rows may be swapped by hand."""
        try:
            content = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise Unreadable(
                f"{project_id}: what is stored does not decrypt; it was altered, or sealed with another key"
            ) from None
        if content["project_id"] != project_id:
            raise Unreadable(f"{project_id}: what is stored was sealed for another project")
        return str(content["value"])


def fingerprint(key: bytes, value: SecretStr) -> str:
    """Tells whether two values are the same, to nobody who lacks the key."""
    return hmac.new(key, value.get_secret_value().encode(), hashlib.sha256).hexdigest()
