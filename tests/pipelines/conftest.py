"""Makes the toys importable, here and in worker processes, which get this process's path."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fault_drill")
