"""Keeps credentials out of whatever is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASS|KEY(?!MAP|BOARD)|CREDENTIAL|AUTH(?!OR)|COOKIE|SIGNATURE|_(PWD|SIG)$", re.IGNORECASE
)
_ORDINARY = {"true", "false", "none", "null", "auto", "default", "enabled", "disabled"}
"""What a setting with such a name may also hold, and many another place."""
_USER_PART = re.compile(r"//[^/:\s]*:\S{0,1000}@|//(?!git@)[^/\s]*@")
"""A password may hold / and @, whatever standards say; without a bound, a long line of addresses takes minutes."""
_QUERY = re.compile(r"([?&]([\w.-]{1,80})=)[^&\s\"']+")


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the user part of addresses, what their query gives as a secret, and what secret environment
    variables hold."""
    environment = os.environ if environment is None else environment
    for name, value in sorted(environment.items(), key=lambda one: -len(one[1])):  # one may begin another
        if len(value) >= 4 and _SECRET_NAME.search(name) and value.lower() not in _ORDINARY:
            text = text.replace(value, f"${name}")
    text = _USER_PART.sub("//", text)  # first: a password may look like a query, too
    return _QUERY.sub(lambda found: found[1] if _SECRET_NAME.search(f"_{found[2]}") else found[0], text)
