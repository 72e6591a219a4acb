"""Keeps credentials out of whatever is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"TOKEN(?!IZ)|SECRET|PASS|_PWD$|KEY(?!MAP|BOARD)|CREDENTIAL|AUTH(?!OR)|COOKIE", re.IGNORECASE)
_ORDINARY = {"true", "false", "none", "null", "auto", "default", "enabled", "disabled"}
"""What a setting with such a name may also hold, and many another place."""
_USER_PART = re.compile(r"//[^/:\s]*:\S*@|//(?!git@)[^/\s]*@")  # a password may hold / and @, whatever standards say


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the user part of addresses and without what secret environment variables hold."""
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if len(value) >= 4 and _SECRET_NAME.search(name) and value.lower() not in _ORDINARY:
            text = text.replace(value, f"${name}")
    return _USER_PART.sub("//", text)
