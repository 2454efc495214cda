"""Defaults, file and command line end in one checked configuration, and mistakes are answered with the right name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from longtake.pipelines.config import UsageError, config_hash, resolve, to_toml, to_tree


@dataclass(frozen=True, kw_only=True)
class Bundle:
    huber_px: float = 1.5
    kernel: Literal["huber", "cauchy"] = "huber"
    max_steps: int = 30


@dataclass(frozen=True, kw_only=True)
class Annotate:
    bundle: Bundle = field(default_factory=Bundle)
    stills: bool = False
    camera: tuple[float, ...] | None = None
    size: tuple[int, int] = (640, 480)
    source: str | None = None

    def __post_init__(self) -> None:
        if self.camera is not None and len(self.camera) not in (1, 4):
            raise ValueError(f"a camera has 1 or 4 numbers, not {len(self.camera)}")


@dataclass(frozen=True, kw_only=True)
class Root:
    annotate: Annotate = field(default_factory=Annotate)


def test_later_wins(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[annotate]\nsource = 'file'\nstills = true\n[annotate.bundle]\nhuber_px = 2\nmax_steps = 5\n")
    got = resolve(
        Root,
        toml=file,
        given={"annotate.source": "option"},
        sets=["annotate.bundle.huber_px=1e-1", "annotate.size=[8, 6]"],
    )
    assert got == Root(
        annotate=Annotate(bundle=Bundle(huber_px=0.1, max_steps=5), stills=True, size=(8, 6), source="option")
    )
    assert isinstance(got.annotate.bundle.huber_px, float)


def test_written_toml_reads_back(tmp_path):
    config = Root(annotate=Annotate(camera=(500.0, 500.5, 320.0, 240.0), source='a "quoted" é\n\t'))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert resolve(Root, toml=file) == config


def test_hash_follows_every_value():
    assert config_hash(Root()) == config_hash(Root())
    assert config_hash(Root()) != config_hash(Root(annotate=Annotate(bundle=Bundle(max_steps=31))))
    assert to_tree(Root())["annotate"]["size"] == [640, 480]


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("annotate.bundel.huber_px=1", "Did you mean 'annotate.bundle.huber_px'"),
        ("bundle.huber_px=1", "Did you mean 'annotate.bundle.huber_px'"),
        ("annotate.bundle.huber=1", "Did you mean 'annotate.bundle.huber_px'"),
        ("annotate.bundle.kernel=hubr", "Did you mean 'huber'"),
        ("annotate.bundle.max_steps=1.5", "annotate.bundle.max_steps = 1.5: wanted int"),
        ("annotate.bundle.max_steps=true", "wanted int"),
        ("annotate.stills=1", "annotate.stills = 1: wanted bool"),
        ("annotate.size=[1]", "annotate.size = [1]"),
        ("annotate.camera=[1, 2]", "annotate: a camera has 1 or 4 numbers, not 2"),
        ("annotate.bundle=3", "annotate.bundle is a group of settings"),
        ("annotate.bundle", "--set wants name=value"),
    ],
)
def test_mistakes_are_answered(assignment, words):
    with pytest.raises(UsageError) as error:
        resolve(Root, sets=[assignment])
    assert words in str(error.value)


def test_file_mistakes_are_answered(tmp_path):
    with pytest.raises(UsageError, match="no configuration file"):
        resolve(Root, toml=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[annotate\n")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML"):
        resolve(Root, toml=tmp_path / "bad.toml")
    (tmp_path / "typo.toml").write_text("[anotate]\n")
    with pytest.raises(UsageError, match="Did you mean 'annotate'"):
        resolve(Root, toml=tmp_path / "typo.toml")
