"""`longtake manifest ...`: interchange with other tools, filters, what a manifest holds; registered by `cli.py`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from .config import UsageError
from .display import printable
from .printing import Json, print_facts, print_json, print_rows, short

Where = Annotated[str | None, Parameter(help="Condition on rows, such as \"status == 'ok' and num_frames >= 100\".")]
SHOWN = "clip_id source_uri status num_frames motion_class fov_x_median_deg tracked_ratio filter_reasons".split()


def show(folder: str, clip_id: str | None = None, /, *, json: Json = False) -> None:
    """List the clips of a manifest, or all that is known of one of them.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    clip_id
        One clip; the beginning of its id is enough.
    """
    from ..datasets.manifest import open_manifest

    found = open_manifest(folder)
    if clip_id is None:
        print_rows(found.rows(SHOWN), json)
        return
    matches = found.matching(clip_id)
    if len(matches) != 1:
        raise UsageError(f"{len(matches)} clips of {folder} have an id that begins with {clip_id}")
    row = found.row(matches[0])
    if json:
        print_json(row)
    else:
        print_facts({name: short(value) for name, value in row.items() if value is not None})


def validate(folder: str, /, *, hashes: bool = False, json: Json = False) -> int:
    """Check every row and every file that the manifest names; exit code 1 where something is wrong.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    hashes
        Read every film that a row names, too, and compare its size and SHA-256 with the row.
    """
    from ..datasets.manifest import open_manifest

    found = open_manifest(folder)
    problems = found.validate(hashes=hashes)
    if json:
        print_json({"clips": len(found), "problems": problems})
    else:
        print("\n".join(problems) if problems else f"{len(found)} clips, nothing wrong")
    return 1 if problems else 0


def query(folder: str, /, where: Where = None, *, columns: str | None = None, json: Json = False) -> None:
    """Print the rows that meet a condition.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    columns
        Names, separated by commas; those of `show` without it.
    """
    from ..datasets.manifest import open_manifest

    names = columns.replace(" ", "").split(",") if columns else SHOWN
    print_rows(open_manifest(folder).rows(names, _condition(where)), json)


def export(
    folder: str,
    /,
    *,
    to: Literal["npz", "npy", "tum", "kitti", "colmap", "nerfstudio", "sana_wm", "vipe", "webdataset", "lerobot"],
    out: Path,
    where: Where = None,
    media: Annotated[Literal["none", "link", "copy"], Parameter(show_default=True)] = "none",
    json: Json = False,
) -> None:
    """Write the clips' cameras in a form that other tools read.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    to
        Form of the files.
    out
        Folder to write into.
    media
        Put the clips' videos beside them, in the formats that have a place for them (vipe, webdataset, lerobot); for
        vipe depth and masks too.
    """
    from ..datasets.exporters import export
    from ..datasets.manifest import open_manifest
    from .interchange import depth_maps

    found = export(open_manifest(folder), to, out, _condition(where), media=media, read_depth=depth_maps)
    _show(asdict(found), json)


def import_collection(
    source: Path,
    /,
    *,
    out: Path,
    format: Literal[
        "npz",
        "npy",
        "tum",
        "kitti",
        "colmap",
        "nerfstudio",
        "sana_wm",
        "vipe",
        "webdataset",
        "lerobot",
        "spatialvid",
        "omniworld",
    ],
    license: str,
    pose: Literal["c2w", "w2c"] | None = None,
    convention: Literal["opencv", "opengl"] | None = None,
    scale: Literal["metric", "relative"] | None = None,
    metres_per_unit: float | None = None,
    source_dataset: str | None = None,
    media: Annotated[Literal["link", "copy", "keep", "none"], Parameter(show_default=True)] = "link",
    media_folder: Path | None = None,
    fps: float | None = None,
    stills: bool = False,
    size: str | None = None,
    intrinsics: str | None = None,
    intrinsics_scale: float = 1.0,
    normalized: bool = False,
    pixel_center: Annotated[Literal["integer", "half"], Parameter(show_default=True)] = "integer",
    first_number: int | None = None,
    pose_column: str | None = None,
    video_column: str | None = None,
    trust_convention: bool = False,
    json: Json = False,
    quiet: bool = False,
) -> int:
    """Take the cameras of another tool or collection into a manifest; what is plainly wrong is refused with words.

    Parameters
    ----------
    source
        The collection's folder or file.
    out
        Folder of the manifest; made where there is none.
    format
        Form of the files; nerfstudio for DL3DV too.
    license
        Licence of the collection, for every row; unknown where you do not know it.
    pose
        Which way its matrices lead: camera to world or world to camera. Asked for where the format does not define it.
    convention
        Camera axes: opencv (x right, y down, z forward) or opengl (y up, z backward). Asked for likewise.
    scale
        Whether lengths are metres or of a unit of their own. Asked for where nothing says it.
    metres_per_unit
        Factor that makes metres of lengths.
    source_dataset
        Name of the collection, for every row.
    media
        Videos and pictures: hard-link or copy them below the manifest, keep them where they are (rows then name
        absolute paths), or none: only cameras.
    media_folder
        Where they lie, as NAME.mp4 or a folder NAME, if not in the collection.
    fps
        Frames a second of image folders, or of cameras without times.
    stills
        Its pictures are separate photographs.
    size
        Width x height in pixels of pictures that are not there.
    intrinsics
        fx,fy,cx,cy in pixels, for formats that hold none.
    intrinsics_scale
        Size of the pictures divided by the size that the intrinsics are of.
    normalized
        Intrinsics are shares of width and height.
    pixel_center
        Where the first pixel's centre lies, for formats that do not define it: integer is (0, 0), half (0.5, 0.5).
    first_number
        Where pictures are named frames of a video: the number in the name of its first frame.
    pose_column
        For lerobot: the column with the camera's poses, if not observation.c2w.
    video_column
        For lerobot: the camera's video, where a dataset has several.
    trust_convention
        Take poses as they are said to be, whatever they look like.
    quiet
        Show no progress.
    """
    from ..datasets.importers import ImportConfig
    from . import interchange
    from .annotate import read_intrinsics

    numbers = None if intrinsics is None else tuple(read_intrinsics(intrinsics))
    if numbers is not None and len(numbers) != 4:
        raise UsageError(f"--intrinsics {intrinsics}: wanted fx,fy,cx,cy")
    config = ImportConfig(
        format=format,
        license=None if license.strip().lower() in ("", "unknown") else license,
        direction=pose,
        convention=convention,
        scale=scale,
        metres_per_unit=metres_per_unit,
        source_dataset=source_dataset,
        fps=fps,
        size=None if size is None else _size(size),
        intrinsics=numbers,
        intrinsics_scale=intrinsics_scale,
        normalized=normalized,
        pixel_center=pixel_center,
        first_number=first_number,
        pose_column=pose_column,
        video_column=video_column,
        stills=stills,
        media=media,
        media_folder=media_folder,
        trust=trust_convention,
    )
    summary = interchange.import_collection(source, out, config, (lambda words: None) if quiet else _progress)
    facts = asdict(summary)
    errors = facts.pop("first_errors")
    _show(facts | ({"first_errors": errors} if json else {}), json)
    if not json:
        for reason, words in errors.items():
            print(printable(f"{reason}: {words}"))
    return 1 if summary.failed else 0


def filter(
    folder: str,
    /,
    *,
    profile: str,
    source: str | None = None,
    scores: tuple[Path, ...] = (),
    where: Where = None,
    dry_run: bool = False,
    json: Json = False,
) -> None:
    """Judge the clips again by a filter profile, without measuring anything again, and print what each rule drops.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    profile
        robust, sana_wm, a .toml file of rules, or none to take verdicts back.
    source
        For profiles with sources, such as sana_wm: the one whose thresholds apply.
    scores
        Scores of other tools by clip id: .parquet, .jsonl or .json; may be given again. They stay in the rows.
    dry_run
        Only count; write nothing.
    """
    from ..datasets.manifest import open_manifest
    from ..datasets.refilter import read_scores, refilter

    found = refilter(
        open_manifest(folder),
        None if profile == "none" else profile,
        source,
        scores=read_scores(scores),
        where=_condition(where),
        dry_run=dry_run,
    )
    if json:
        _show(asdict(found), True)
        return
    rates = found.rates
    if rates is not None:
        name = rates.profile if rates.source is None else f"{rates.profile}/{rates.source}"
        print(
            printable(f"{name}: {rates.dropped} of {rates.judged} clips dropped{_share(rates.dropped, rates.judged)}")
        )
        print_rows(
            {
                "rule": rule.metric,
                "low": "-" if rule.low is None else f"{rule.low:g}",
                "high": "-" if rule.high is None else f"{rule.high:g}",
                "measured": rule.judged,
                "dropped": rule.dropped,
                "rate": _share(rule.dropped, rates.judged).strip(" ()") or "-",
                "alone": rule.dropped_alone,
            }
            for rule in rates.rules
        )
        if rates.overlap:
            print("dropped by both:")
            print_rows({"rule": a, "and": b, "clips": n} for a, b, n in rates.overlap[:20])
    facts: dict[str, Any] = {"rows": found.rows, "changed" + (" (not written)" if dry_run else ""): found.changed}
    if scores:
        facts |= {"scored": found.scored, "scores without a clip": found.scores_without_clip}
    _show(facts, False)


def stats(folder: str, /, *, pictures: Path | None = None, json: Json = False) -> None:
    """Count what a manifest holds, and draw histograms.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    pictures
        Folder for pictures (SVG): fields of view, path lengths, speeds, durations, and why clips are not ok.
    """
    from ..datasets.card import survey, write_pictures
    from ..datasets.manifest import open_manifest

    contents = survey(open_manifest(folder))
    drawn = write_pictures(contents, pictures) if pictures is not None else {}
    if json:
        _show(contents.facts | {"pictures": {name: str(path) for name, path in drawn.items()}}, True)
        return
    _show({name: value for name, value in contents.facts.items() if value != {}}, False)
    for path in drawn.values():
        print(printable(str(path)))


def card(folder: str, /, *, out: Path | None = None, name: str | None = None) -> None:
    """Write a dataset card in Markdown: what the manifest holds, its licences counted, pictures and conventions.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    out
        The card; README.md in that folder without it. Its pictures go into the folder card beside it.
    name
        Title of the dataset; the folder's name without it.
    """
    from ..datasets.card import write_card
    from ..datasets.manifest import open_manifest

    if out is None and "://" in folder:
        raise UsageError("a card of a manifest in an object store needs a place of its own: --out README.md")
    out = out or Path(folder) / "README.md"
    print(printable(str(write_card(open_manifest(folder), out, name=name))))


def merge(folder: str, /, *others: str, json: Json = False) -> None:
    """Take over the rows of other manifests; of a clip that several have, the newest row counts.

    Parameters
    ----------
    folder
        The manifest that gets the rows: a folder, or an address (s3://bucket/prefix).
    others
        Those that they come from, which stay as they are.
    """
    from ..datasets.manifest import create_manifest, open_manifest

    if not others:
        raise UsageError("name the manifests to take rows from, after the one that gets them")
    sources = [open_manifest(other) for other in others]
    _show(asdict(create_manifest(folder).merge(*sources)), json)


def compact(folder: str, /) -> None:
    """Join the small parts that runs left into larger ones; every run does so at its end."""
    _rewritten(folder, "compact")


def migrate(folder: str, /) -> None:
    """Give the parts that an older longtake wrote the columns of this one; columns that it does not know survive."""
    _rewritten(folder, "migrate")


def _rewritten(folder: str, how: Literal["compact", "migrate"]) -> None:
    from ..datasets.manifest import open_manifest

    manifest = open_manifest(folder)
    before = manifest.snapshot()
    after = manifest.compact() if how == "compact" else manifest.migrate()
    print(f"{after.rows} clips, {len(before.parts)} parts before, {len(after.parts)} now")


def gc(folder: str, /, *, min_age_s: float = 3600.0) -> None:
    """Remove what no snapshot lists: replaced parts, and what killed writers left.

    Parameters
    ----------
    folder
        Folder of the manifest, or its address (s3://bucket/prefix).
    min_age_s
        Keep what is younger than this: a writer may be about to publish it, a reader about to read.
    """
    from ..datasets.manifest import open_manifest

    removed = open_manifest(folder).gc(min_age_s)
    for name in removed:
        print(printable(name))
    print(f"{len(removed)} files removed")


# ---- reading options and printing --------------------------------------------------------------------------------


def _condition(where: str | None) -> Any:
    from ..datasets.where import parse_where

    return None if where is None else parse_where(where)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 1 << 20 and 0 < int(height) < 1 << 20):
        raise UsageError(f"--size {text}: wanted width x height in pixels, such as 1280x704")
    return int(width), int(height)


def _share(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""


def _progress(words: str) -> None:
    import sys

    print(words, file=sys.stderr)


def _show(facts: dict[str, Any], as_json: bool) -> None:
    (print_json if as_json else print_facts)(facts)
