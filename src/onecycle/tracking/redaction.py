"""Keeps credentials out of whatever is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|_PWD$|KEY|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_USER_PART = re.compile(r"//[^/:\s]*:\S*@|//[^/\s]*@")  # a password may hold / and @, whatever the standard says


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the user part of addresses and without what secret environment variables hold."""
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if len(value) >= 4 and _SECRET_NAME.search(name):
            text = text.replace(value, f"${name}")
    return _USER_PART.sub("//", text)
