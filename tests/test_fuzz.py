"""Damaged and hostile files are read or refused: a short run of benchmarks/fuzz.py, its seeds chosen by Hypothesis."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

hypothesis = pytest.importorskip("hypothesis")
ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {"video": 2, "manifest": 5}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("longtake_fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = load()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_read_or_refused(tmp_path, target):
    template = tmp_path / "sound"
    fuzz.sound(target, template)

    @hypothesis.settings(
        max_examples=EXAMPLES.get(target, 12), derandomize=True, database=None, deadline=None, print_blob=True
    )
    @hypothesis.given(hypothesis.strategies.integers(0, 2**32))
    def tried(seed: int) -> None:
        workspace = Path(tempfile.mkdtemp(dir=tmp_path))
        assert fuzz.try_one(target, seed, template, workspace) in ("read", "refused")

    tried()


def test_sound_inputs_are_read(tmp_path):
    """Were they not, the damaged ones would prove nothing."""
    import numpy as np

    for target in fuzz.TARGETS:
        fuzz.sound(target, tmp_path / target)
        _, whole = fuzz._read(target, tmp_path / target, tmp_path / f"{target}-out", np.random.default_rng(0), "none")
        assert whole, target
