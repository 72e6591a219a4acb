"""Keeps credentials out of whatever is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASS|KEY(?!MAP|BOARD|RING)|CREDENTIAL|AUTH(?!OR)|COOKIE|SIGNATURE|WEBHOOK|CONNECTION_STRING"
    r"|_(PWD|PW|PAT|SIG|DSN)$",
    re.IGNORECASE,
)
_ORDINARY = {"true", "false", "none", "null", "auto", "default", "enabled", "disabled"}
"""What a setting with such a name may also hold, and many another place."""
_USER_PART = re.compile(r"(?<=:)//(?:[^/:\s\"'{]*:[^\s\"'{]{0,1000}@|(?!git@)[^/\s\"'{]*@)")
"""A password may hold / and @, whatever standards say; without a bound, a long line of addresses takes minutes. What
holds a quote or a brace is code that makes an address."""
_QUERY = re.compile(r"([?&]([\w.-]{1,80})=)[^&\s\"'{]+")
_ISSUED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}|sk-[\w-]{20,})|(?<=hooks\.slack\.com/services/)[\w/]+|(?<=\bBearer )[\w.~+/-]{16,}=*"
)
"""What Hugging Face, GitHub, GitLab, Slack, Amazon and OpenAI issue is known by its form."""


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without the user part of addresses, what their query gives as a secret, what secret environment variables
    hold, and what is known as a secret by its form.

    A variable of several lines, as a key may be, is also looked for line by line, since a patch has marks between them.
    """
    environment = os.environ if environment is None else environment
    for name, value in sorted(environment.items(), key=lambda one: -len(one[1])):  # one may begin another
        if _SECRET_NAME.search(name) and value.lower() not in _ORDINARY:
            for part in (value, *value.splitlines()):
                if len(part) >= 4:
                    text = text.replace(part, f"${name}")
    text = _USER_PART.sub("//", text)  # first: a password may look like a query, too
    text = _QUERY.sub(lambda found: found[1] if _SECRET_NAME.search(f"_{found[2]}") else found[0], text)
    return _ISSUED.sub("$SECRET", text)
