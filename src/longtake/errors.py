"""What longtake raises. Apart from `records`, so that the command line need not load NumPy to complain."""

from __future__ import annotations


class LongtakeError(Exception):
    """An error whose text says what was wrong, where, and what to do. Nothing else reaches a user."""


class BadMedia(LongtakeError):
    """The file cannot be used; `reason` is a snake_case code for the manifest's `filter_reasons`/`error`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):  # crosses process borders with both fields
        return type(self), (self.reason, str(self))


class MissingPart(LongtakeError):
    """The environment lacks something (a package, weights, room on the disk, the right to write): exit code 3."""


class BadWeights(LongtakeError):
    """A network's files are not what they should be, or the hub does not have them: exit code 1."""
