"""The package is six folders behind links: the links, the direction of imports, and what an installation ends with."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("annotate", "render", "datasets", "model", "kernels", "pipelines")
MAY_IMPORT = {
    "pipelines": {"annotate", "render", "datasets", "model", "kernels"},
    "annotate": {"model", "kernels"},
    "render": {"model", "kernels"},
    "datasets": {"model", "kernels"},
    "model": {"kernels"},
    "kernels": set(),
}
LEAVES = {"geometry", "records", "errors", "files"}  # src/longtake/*.py that every folder may import
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, absolute: `..records` in annotate/ is longtake.records."""
    package = ("longtake", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names} if node.level else {stem}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_are_relative(folder):
    link = ROOT / "src" / "longtake" / folder
    assert link.is_symlink() and os.readlink(link) == f"../../{folder}"
    assert (ROOT / folder).is_dir()


def test_types_are_checked_behind_every_link():
    """pyright does not follow the links below src by itself: each folder with code is named."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]["include"]
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} <= {Path(folder).name for folder in settings}


def test_no_folder_is_a_regular_package():
    """With an __init__.py, `import datasets` from the repository's root would be ours, not Hugging Face's."""
    assert [path.name for path in ROOT.glob("*/__init__.py")] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder] | LEAVES | {folder}
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("longtake.")}
    assert ours <= allowed, f"{path} imports {ours - allowed}"
    tops = {name.split(".")[0] for name in names}
    assert folder == "pipelines" or "ray" not in tops, f"{path} imports ray"
    assert not tops & set(FOLDERS), f"{path} imports its neighbour by a top-level name: use a relative import"


def test_the_guard_sees_every_form_of_import(tmp_path, monkeypatch):
    (tmp_path / "annotate").mkdir()
    path = tmp_path / "annotate" / "x.py"
    lines = "from ..datasets import schema", "from .. import render", "def f():", " import ray.util"
    path.write_text("\n".join([*lines, " from longtake.model import x"]))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported(path) == {"longtake.datasets.schema", "longtake.render", "ray.util", "longtake.model"}


def test_import_datasets_is_never_ours(tmp_path):
    """In a process and in a Ray worker, both started from the repository's root, theirs wins wherever it lies."""
    theirs = tmp_path / "site" / "datasets"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("OWNER = 'theirs'\n")
    script = tmp_path / "ask.py"
    script.write_text(
        "import importlib, ray, sys\n"
        "sys.path.insert(0, '')\n"
        "def owner():\n"
        "    import datasets, os, sys\n"
        "    sys.path.insert(0, os.getcwd())\n"
        "    return os.getcwd(), datasets.OWNER, importlib.import_module('datasets').__file__\n"
        "ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)\n"
        "print(owner())\n"
        "print(ray.get(ray.remote(owner).remote()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(theirs.parent), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    expected = str((str(ROOT), "theirs", str(theirs / "__init__.py")))
    assert done.stdout.splitlines() == [expected, expected], done.stderr


def test_wheel_holds_the_code(tmp_path):
    copy = tmp_path / "copy"  # a build in place would leave its folder, and take what an earlier one left
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, copy], check=True, timeout=300)
    (wheel,) = tmp_path.glob("longtake-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"longtake/{path.relative_to(ROOT).as_posix()}" for path in MODULES}
    wanted |= {f"longtake/{path.name}" for path in (ROOT / "src" / "longtake").glob("*.py")} | {"longtake/py.typed"}
    wanted.add("longtake/render/cpu.cpp")  # compiled on first use
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if not name.startswith("longtake")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_nothing_we_depend_on_asks_for_the_other_opencv():
    """opencv-python needs libGL and writes into the same folder cv2 as opencv-python-headless: one of them only."""
    from packaging.requirements import Requirement

    todo, seen = ["longtake"], {}
    while todo:
        name = todo.pop()
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            wanted = re.sub(r"[-_.]+", "-", need.name).lower()
            if wanted not in seen:
                seen[wanted] = name
                todo.append(wanted)
    assert "opencv-python-headless" in seen
    assert not {name: by for name, by in seen.items() if name in ("opencv-python", "opencv-contrib-python")}


def test_help_is_quick():
    """Nothing heavy is loaded before a command runs: a person waits less than 0.3 s for --help."""
    code = "import sys; from longtake.pipelines import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "scipy", "torch", "cv2", "av", "pyarrow", "ray", "kornia", "poselib", "rerun"}
    assert not heavy & set(loaded)


def test_python_m_longtake():
    done = subprocess.run([sys.executable, "-m", "longtake", "--version"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout.strip()) == (0, metadata.version("longtake"))
