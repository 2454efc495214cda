"""The order of files by name, and the one hash of many: what a row says of a picture folder, and what checks it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path


def natural_key(name: str | Path) -> list[tuple[int, int, str]]:
    """Sort key under which frame_2 comes before frame_10."""
    return [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", str(name))]


def joint_digest(digests: Sequence[bytes]) -> str:
    """The SHA-256 of a file, or of many files' SHA-256 in order, from these: 64 hex digits."""
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()
