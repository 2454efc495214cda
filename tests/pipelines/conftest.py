"""Makes the toys importable, here and in worker processes, which get this process's path; one token for Ray; the
command line."""

import os
import secrets
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("fault_drill")
# Ray reads it once in a process, and without it puts one into the home folder.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture
def longtake(monkeypatch, capsys):
    """Runs the command line in this process: exit code, what is printed, complaints."""
    from longtake.pipelines import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longtake", *map(str, words)])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Cyclopts application invoked")  # it reads sys.argv, as it should
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err  # type: ignore[return-value]

    return run
