"""The commands that look at results, and at the machine; registered by `cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .config import UsageError
from .display import printable
from .printing import Json, complain, print_facts, print_json, print_rows


def report(run: Path, /, *, out: Path | None = None, clip: tuple[str, ...] = ()) -> None:
    """Write one HTML page that shows a run and its clips; it needs nothing else to be looked at.

    Parameters
    ----------
    run
        Folder that was named with --out when annotating.
    out
        The page; report.html in that folder without it.
    clip
        Clips to show in full; the first 50 without it.
    """
    from ..datasets.report import write_report

    print(write_report(run, out, clip_ids=list(clip) or None))


def view(folder: Path, clip_id: str | None = None, /, *, out: Path | None = None) -> None:
    """Write a clip as a Rerun recording (.rrd): its camera, pictures and depth; for a rendered one the scene too.

    Parameters
    ----------
    folder
        Folder of the manifest.
    clip_id
        The clip; the manifest's only one without it.
    out
        The recording; CLIP_ID.rrd in that folder without it.
    """
    from .view import view as write_view

    path, notes = write_view(folder, out, clip_id=clip_id)
    for words in notes:
        complain(words)
    print(path)


def score(prediction: Path, truth: Path, /, *, json: Json = False) -> None:
    """Compare an estimated camera track with the truth: two .npz files with c2w, K and optionally pose_valid.

    Parameters
    ----------
    prediction
        As `longtake manifest export --to npz` writes it.
    truth
        The same for the true camera.
    """
    from ..datasets.score import score_files

    figures = score_files(prediction, truth)
    if json:
        print_json(figures)
    else:
        print_facts({name: None if value is None else f"{value:.6g}" for name, value in figures.items()})


def evaluate(
    *inputs: Annotated[str, Parameter(name="INPUT", required=True)],
    poses: str | None = None,
    intrinsics: str | None = None,
    out: Path | None = None,
    jobs: int = 1,
    json: Json = False,
) -> int:
    """Say whether generated videos follow the camera that they were asked for, beside a camera that never moves.

    They are tracked as any footage is. Clips that cannot be tracked count as standing still. Exit code 1 where a clip
    could not be scored at all.

    Parameters
    ----------
    inputs
        Manifests with generated or rendered clips; with --poses, videos.
    poses
        The poses that each video was asked for: .npy, .npz or text, camera to world; {folder} and {stem} in the name
        stand for the video's.
    intrinsics
        The videos' camera where it is known, in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    out
        JSON file for the figures.
    jobs
        Clips worked on at the same time.
    """
    from . import evaluate as pipeline
    from .annotate import read_intrinsics

    numbers = None if intrinsics is None else read_intrinsics(intrinsics)
    found = pipeline.evaluate(*inputs, poses=poses, intrinsics=numbers, jobs=jobs)
    if out is not None:
        pipeline.write(found, out)
    if json:
        print_json(found.tree())
    else:
        for line in pipeline.table(found.rows()):
            print(printable(line))
        print(f"could not be tracked, and count as standing still: {found.untracked} of {len(found.clips)}")
        for name, why in found.failed:
            print(printable(f"not scored: {name}: {why}"))
    return 1 if found.failed else 0


def fov(
    image: str,
    /,
    *,
    intrinsics: str | None = None,
    row: Path | None = None,
    clip: str | None = None,
    frame: int = 0,
    json: Json = False,
) -> int:
    """Say which camera took a picture, by every source at hand, and whether it can be generated from.

    Both fields of view must lie between 25 and 120 degrees; exit code 1 where they do not.

    Parameters
    ----------
    image
        A picture; of a video or a folder the first frame.
    intrinsics
        The known camera in pixels: f, or fx,fy,cx,cy, or a file that holds them.
    row
        Manifest that has the picture as a frame.
    clip
        The clip; the beginning of its id is enough, and the manifest's only one needs none.
    frame
        The frame of the clip; its first without it.
    """
    from . import fov as pipeline
    from .annotate import read_intrinsics

    numbers = None if intrinsics is None else read_intrinsics(intrinsics)
    answer = pipeline.examine(image, numbers=numbers, manifest=row, clip=clip, frame=frame)
    rows, used = answer.rows(), answer.readings[0]
    if json:
        counts = {"used": used.source, "intrinsics": used.intrinsics, "width": used.width, "height": used.height}
        print_json(counts | {"problem": answer.problem, "readings": rows, "left_out": answer.left_out})
    else:
        print_rows(rows)
        print(f"{used.source} counts; focal_pct: how much longer the focal length is than by {used.source}")
        for source, why in answer.left_out.items():
            print(printable(f"left out: {source}: {why}"))
    if answer.problem:
        complain(answer.problem)
    return 1 if answer.problem else 0


def doctor(*, json: Json = False) -> int:
    """Check whether this machine has all that longtake needs; exit code 3 where something is missing."""
    from dataclasses import asdict

    from .doctor import examine

    findings = list(examine())
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        signs = {"ok": "ok      ", "missing": "MISSING ", "optional": "optional"}
        for finding in findings:
            print(f"{signs[finding.state]}  {finding.name}: {finding.words}")
    return 3 if any(finding.state == "missing" for finding in findings) else 0


def replay(
    folder: Path,
    name: Annotated[str, Parameter(name="STAGE")] = "",
    /,
    *,
    clip: str = "",
    key: str | None = None,
    to: Path | None = None,
    json: Json = False,
) -> int:
    """Run one stage again on the inputs that a run saved, and compare; exit code 1 where it fails.

    Nothing of the run is changed, and nothing of this is used by later runs.

    Parameters
    ----------
    folder
        The folder that was named with --out.
    name
        The stage, such as track.
    clip
        Part of the clip's name, as the run showed it. Not needed where the stage has one result.
    key
        The result's key, or its beginning, in place of stage and clip.
    to
        Folder for the new result; FOLDER/replay without it.
    """
    from . import replay as again

    store = again.Artifacts(folder.absolute() / "artifacts")
    if key is None and not name:
        raise UsageError("say which stage, or --key")
    found = again.find_key(store, key) if key is not None else again.find_call(store, name, clip)
    facts = again.replay(store, found, (to or folder / "replay").absolute()).facts()
    if json:
        print_json(facts)
    else:
        print_facts({name: value for name, value in facts.items() if name != "trace"})
        if facts["trace"]:
            print("\n".join(map(printable, facts["trace"].splitlines())))
    return 1 if facts["now"] == "failed" else 0
