"""Texts without secrets: what goes into logs, recipes, checkpoints, trackers and error sentences passes through here.

Secrets are logins and signatures in urls, and the values of environment variables that are named like secrets
(WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...), wherever they stand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
SHORTEST = 8  # characters; a shorter value would also be found in ordinary words
_NAMED = re.compile(r"API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.I)
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^/\s@'\"]+@")
_SIGNED = re.compile(
    r"([?&](?:X-(?:Amz|Goog)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Signature|sig|se|sp|sv|\w*token|\w*key|password)=)"
    r"[^&\s'\"]+",
    re.I,
)


def masked(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """``text`` with every secret replaced, the longest first, since one may be part of another."""
    text = _SIGNED.sub(rf"\g<1>{MASK}", _LOGIN.sub(r"\1", text))
    values = {value for name, value in environment.items() if _NAMED.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def masked_content(content: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Nested dictionaries and lists with every string masked; anything else as it is."""
    if isinstance(content, str):
        return masked(content, environment)
    if isinstance(content, Mapping):
        return {key: masked_content(value, environment) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [masked_content(value, environment) for value in content]
    return content
