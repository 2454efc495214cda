"""longtake: posed video. `longtake.annotate(...)` turns video files into a manifest of posed clips.

    import longtake
    run = longtake.annotate("walk.mp4", out="posed")
    for row in run.manifest.rows(["clip_id", "status", "motion_class"]):
        print(row)

`longtake.annotate` is at once this function and the package of that name, whose modules are imported as usual.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .datasets.manifest import Manifest
    from .pipelines.annotate import annotate as annotate
    from .pipelines.ledger import Run
else:
    from . import annotate

__all__ = ["annotate", "open_manifest"]


def open_manifest(path: str | os.PathLike[str], *, files_in: Iterable[str | os.PathLike[str]] = ()) -> Manifest:
    """The manifest in this folder or at this address (`s3://bucket/prefix`), to read and to train on.

    Args:
        files_in: folders and addresses besides the manifest's own, whose files its rows may name. Without them, of
            files elsewhere those are read that a row was made from, by their SHA-256.

    Raises:
        LongtakeError: there is none, or it cannot be read.
    """
    from .datasets.manifest import open_manifest
    from .pipelines.frames import read_pictures

    manifest = open_manifest(path, files_in=files_in)
    manifest.read_pictures = read_pictures
    return manifest


class _Annotate(ModuleType):
    """The package `longtake.annotate`, made callable: what it runs is imported with the first call."""

    def __call__(self, *inputs: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Run:
        """See `longtake.pipelines.annotate.annotate`."""
        from .pipelines.annotate import annotate

        return annotate(*inputs, out=out, **options)


sys.modules[f"{__name__}.annotate"].__class__ = _Annotate
