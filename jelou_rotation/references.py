"""
References: where a credential is found, never the credential itself.

    env:NAME            an environment variable
    file:PATH           a file that only its owner can read
    block:TYPE/NAME     a Prefect block that holds a secret
"""

import re
from dataclasses import dataclass
from typing import Self

EXPECTED = "expected env:NAME, file:PATH or block:TYPE/NAME"

_FORMS = {
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "file": re.compile(r"[^\x00-\x1f\x7f]+"),
    "block": re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*"),
}


@dataclass(frozen=True, slots=True)
class Reference:
    """`scheme` is env, file or block; `target` what follows the colon."""

    scheme: str
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with what was expected, never with the text: it may be a credential typed by mistake."""
        scheme, _, target = text.partition(":")
        form = _FORMS.get(scheme)
        if form is None or not form.fullmatch(target):
            raise ValueError(EXPECTED)
        return cls(scheme, target)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"
