"""Names of results by what decides them. Torch is not imported: worker processes use this."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def content_key(fields: Mapping[str, Any]) -> str:
    """The name of a result: a hash of all that decides it."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
