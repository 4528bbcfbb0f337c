"""API keys: where they come from, and whether a caller's is one of them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from lipsync.errors import Unauthorized

from .settings import AuthSettings

_LEAST_CHARACTERS = 16


class Keys:
    """Raises ValueError where keys are wanted and none is set, or one is too short to be secret."""

    def __init__(self, settings: AuthSettings) -> None:
        self._are_wanted = settings.mode == "keys"
        self._digests: list[bytes] = []
        if not self._are_wanted:
            return
        found = re.split(r"[,\s]+", os.environ.get(settings.keys_env, ""))
        if settings.keys_file is not None:
            found += Path(settings.keys_file).read_text().split()
        keys = [key for key in found if key]
        if not keys:
            raise ValueError(
                f"auth.mode is keys, but there are none: set {settings.keys_env} or auth.keys_file (one key a line)."
            )
        if any(len(key) < _LEAST_CHARACTERS for key in keys):
            raise ValueError(f"An API key needs at least {_LEAST_CHARACTERS} characters.")
        if not all(key.isascii() for key in keys):
            raise ValueError("An API key is of ASCII characters: no others arrive in a header as they were sent.")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: str | None) -> str:
        """A name for the caller's key, "" where none is wanted. Raises Unauthorized. Takes as long for any key."""
        if not self._are_wanted:
            return ""
        kind, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, given)
        if kind.lower() != "bearer" or not known:
            raise Unauthorized("The API key is missing or unknown. Send it as 'Authorization: Bearer KEY'.")
        return given.hex()[:16]
