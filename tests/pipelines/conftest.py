"""Makes the toys importable, here and in worker processes, which get this process's path; one token for Ray."""

import os
import secrets
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fault_drill")
# Ray reads it once in a process, and without it puts one into the home folder.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
