"""A gsplat without kernels is noticed before it is asked to draw. The package here is an empty one of that name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.errors import MissingPart
from longtake.pipelines import doctor
from longtake.pipelines import render as pipeline
from longtake.render import cuda
from longtake.render.gaussians import Gaussians
from longtake.render.rasterize import Rasterizer


@pytest.fixture
def gsplat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gsplat as PyPI has it, on a machine with a GPU and no CUDA toolkit; the folder of its modules."""
    about = tmp_path / "gsplat-1.5.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gsplat\nVersion: 1.5.3\n")
    (tmp_path / "gsplat").mkdir()
    (tmp_path / "gsplat" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    for module in (cuda, pipeline):
        monkeypatch.setattr(module, "device_found", lambda: True)
    return tmp_path / "gsplat"


def few() -> Gaussians:
    return Gaussians(
        means=np.array([[0, 0, 2], [0.1, 0, 2]], np.float32),
        scales=np.full((2, 3), 0.1, np.float32),
        quaternions=np.array([[1, 0, 0, 0]] * 2, np.float32),
        opacities=np.array([0.9, 0.9], np.float32),
        sh=np.zeros((2, 1, 3), np.float32),
    )


def test_no_kernels_and_nothing_to_compile_them(gsplat: Path) -> None:
    with pytest.raises(MissingPart, match=r"without kernels.*no nvcc.*CUDA_HOME.*--index-url https://"):
        cuda.check_kernels()
    with pytest.raises(MissingPart, match="without kernels"):
        Rasterizer(few(), backend="gsplat")
    with pytest.raises(MissingPart, match="without kernels"):
        pipeline._remark("gsplat")
    assert "drawn on the CPU: gsplat is installed without kernels" in pipeline._remark("auto")
    assert not pipeline._gsplat_runs()
    with pytest.warns(UserWarning, match="drawn on the CPU"):
        assert Rasterizer(few()).backend in ("cpu", "reference")
    (found,) = [f for f in doctor.examine() if f.name == "gsplat"]
    assert found.state == "optional" and "nvcc" in found.words and "drawn on the CPU" in found.words


def test_kernels_in_the_wheel(gsplat: Path) -> None:
    (gsplat / "csrc.so").touch()
    assert cuda.check_kernels() == "kernels in the wheel"
    assert pipeline._remark("auto") == "" and pipeline._gsplat_runs()


def test_kernels_that_will_be_compiled(gsplat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path))
    with pytest.raises(MissingPart, match="no nvcc"):
        cuda.check_kernels()  # libraries alone
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert cuda.check_kernels() == f"compiles its kernels on first use, for minutes, with {tmp_path}/bin/nvcc"


def test_no_gsplat_at_all() -> None:
    if cuda.importlib.util.find_spec("gsplat"):
        pytest.skip("gsplat is installed")
    with pytest.raises(MissingPart, match=r"pip install 'longtake\[gsplat\]'"):
        cuda.check_kernels()
