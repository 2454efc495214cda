"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real footage with ground truth; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LONGTAKE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "sequences").is_dir():
        pytest.skip(f"no test footage at {folder}; set LONGTAKE_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """The folder of reference outputs of the published networks; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LONGTAKE_TEST_PARITY", ROOT.parent / "shared" / "parity"))
    if not folder.is_dir():
        pytest.skip(f"no reference outputs at {folder}; set LONGTAKE_TEST_PARITY to their folder")
    return folder
