"""One clip of a manifest, named by the beginning of its id."""

from __future__ import annotations

import os
from typing import Any

from .config import UsageError


def row_of_clip(
    manifest: str | os.PathLike[str], beginning: str | None, how: str = " with --clip ID"
) -> dict[str, Any]:
    """The row of the clip whose id begins so; None for that of a manifest's only one.

    Args:
        how: a clip is named.

    Raises:
        UsageError: there are none or several.
        LongtakeError: there is no manifest.
    """
    from ..datasets.manifest import open_manifest

    found = open_manifest(manifest)
    matches = found.matching(beginning or "")
    if len(matches) != 1:
        which = "" if beginning is None else f" with an id that begins with {beginning}"
        raise UsageError(f"{manifest} has {len(matches)} clips{which}: name one{how}")
    return found.row(matches[0])
