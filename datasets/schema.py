"""The one schema of the manifest: a row describes a clip, whichever of annotate, render and generate made it.

Everything of a clip lies in its row, arrays flat and row-major: `c2w` holds 12 numbers a frame (the upper 3x4 of
`world_from_cam`), `intrinsics` 4. `readers.read_clip` gives them their shapes back. The metadata of each field say its
unit, and `per_frame`: how many values a frame has. Within a major version columns are only added.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..records import Rejected, Shot, Track, VideoInfo
from .filters import camera_values

SCHEMA_ID = "longtake.clips/1.3"
CONVENTIONS = {
    "pose": "c2w = world_from_cam, OpenCV camera axes (x right, y down, z forward), row-major 3x4 a frame; NaN where "
    "pose_valid is false",
    "intrinsics": "fx, fy, cx, cy a frame, pixels of this row's width x height, pixel centres at integer coordinates",
    "length": "metres where scale_kind is metric, else an arbitrary unit that is one and the same through the clip",
    "time": "seconds from the first frame of the source, from container time stamps",
    "uri": "absolute, or relative to the folder of the manifest",
    "missing": "null: not measured or not applicable; never a stand-in number",
}
TIME_ROUNDING_NS = 2  # a time stamp rounded to nanoseconds, less another
_CLIP_NAMESPACE = uuid.UUID("a5b5f0f4-9f0e-5d5c-8a3e-0d6f1d1f7c11")


def _floats(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))


TEXT, INT, LONG, REAL, DOUBLE = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
REALS, DOUBLES, INTS, BOOLS, TEXTS = (_floats(t) for t in (REAL, DOUBLE, INT, pa.bool_(), TEXT))


def _f(name: str, kind: pa.DataType, about: str, unit: str = "", *, frame: int = 0, required: bool = False) -> pa.Field:
    metadata = {"about": about} | ({"unit": unit} if unit else {}) | ({"per_frame": str(frame)} if frame else {})
    return pa.field(name, kind, nullable=not required, metadata=metadata)


SCHEMA = pa.schema(
    [
        # identity
        _f("clip_id", TEXT, "uuid5 of source hash, frame span and transform", required=True),
        _f("origin", TEXT, "annotated, rendered, generated or imported", required=True),
        _f("status", TEXT, "ok, filtered or failed", required=True),
        _f("source_dataset", TEXT, "name of the collection that the source comes from"),
        _f("source_uri", TEXT, "the original recording", required=True),
        _f("source_sha256", TEXT, "of the original recording; null where it could not be read"),
        _f("license", TEXT, "of the source, as the user stated it"),
        _f("split", TEXT, "train, val or test"),
        _f("group_id", TEXT, "the same for all clips of one recording: keep them in one split"),
        # video
        _f("uri", TEXT, "the file or image folder that holds the clip's frames"),
        _f("sha256", TEXT, "of that file"),
        _f("bytes", LONG, "its size", "bytes"),
        _f("container", TEXT, "container format"),
        _f("codec", TEXT, "video codec"),
        _f("pix_fmt", TEXT, "pixel format, as FFmpeg names it"),
        _f("width", INT, "upright picture with square pixels, bars included", "px"),
        _f("height", INT, "upright picture with square pixels, bars included", "px"),
        _f("coded_width", INT, "as stored in the stream", "px"),
        _f("coded_height", INT, "as stored in the stream", "px"),
        _f("rotation_deg", INT, "clockwise turn that made the stored picture upright; already applied", "deg"),
        _f("mirrored", pa.bool_(), "the stored picture was flipped left to right before that turn; already applied"),
        _f("sar_num", INT, "sample aspect ratio of the stored picture, numerator; already applied"),
        _f("sar_den", INT, "sample aspect ratio of the stored picture, denominator; already applied"),
        _f("color_range", TEXT, "tv, pc or unknown"),
        _f("interlaced", pa.bool_(), "the stream says it is interlaced"),
        _f("fps_num", INT, "frame rate, numerator: exact where pts_s is null, else of the median step", "1/s"),
        _f("fps_den", INT, "frame rate, denominator"),
        _f("tagged_fps", DOUBLE, "what the container claims", "1/s"),
        _f("is_vfr", pa.bool_(), "the source has a variable frame rate"),
        _f("origin_s", DOUBLE, "time of the source's first frame on its container's own clock", "s"),
        _f("num_frames", INT, "frames of the clip", "frames"),
        _f("frame_start", INT, "first frame of the clip in `uri`, from 0", "frames"),
        _f("frame_stop", INT, "one past the last frame of the clip in `uri`", "frames"),
        _f("start_s", DOUBLE, "time of the first frame", "s from the source's first frame"),
        _f(
            "end_s",
            DOUBLE,
            "time at which the last frame ends, taking it to last one median step",
            "s from the source's first frame",
        ),
        _f("duration_s", DOUBLE, "end_s - start_s", "s"),
        _f(
            "pts_s",
            DOUBLES,
            "time of each frame; null where it is start_s + i fps_den / fps_num to the nanosecond",
            "s from the source's first frame",
            frame=1,
        ),
        _f("image_uris", TEXTS, "for an image folder: the file of each frame", frame=1),
        _f("crop", INTS, "x, y, width, height of the scene within the picture: what bars leave", "px"),
        _f("boundary", TEXT, "what ended the shot before: start, cut, fade or dissolve"),
        # camera
        _f(
            "c2w",
            REALS,
            "world_from_cam, 3x4 row-major; NaN where pose_valid is false",
            "translation: see scale_kind",
            frame=12,
        ),
        _f("pose_valid", BOOLS, "the frame has a pose", frame=1),
        _f("intrinsics", REALS, "fx, fy, cx, cy", "px of width x height, centres at integers", frame=4),
        _f("intrinsics_mode", TEXT, "static or per_frame"),
        _f(
            "focal_status",
            TEXT,
            "estimated from the motion, given, predicted by a network where the motion does not determine it, or "
            "undetermined: a prior",
        ),
        _f("distortion_model", TEXT, "none or opencv_radial"),
        _f("distortion", REALS, "k1, k2 of opencv_radial"),
        _f("camera_convention", TEXT, "opencv_c2w"),
        _f("pixel_center", TEXT, "integer: the centre of the first pixel is (0, 0)"),
        _f("scale_kind", TEXT, "metric (lengths are metres) or relative"),
        _f("scale_source", TEXT, "what the metric scale comes from"),
        _f("scale_raw", REALS, "metric scale of each frame as measured", "m per scene unit", frame=1),
        _f("scale_smoothed", REALS, "metric scale of each frame as used", "m per scene unit", frame=1),
        _f("pose_source", TEXT, "the engine that made the poses"),
        _f("motion_class", TEXT, "general, rotation, static or planar"),
        _f("flags", TEXTS, "remarks on the track"),
        *(
            _f(f"fov_{axis}_{which}_deg", REAL, f"{which} field of view over the frames, 2 atan({size} / 2 f)", "deg")
            for axis, size in (("x", "width"), ("y", "height"))
            for which in ("min", "median", "max")
        ),
        _f("focal_anisotropy", REAL, "largest |fx - fy| / mean(fx, fy)"),
        # quality of each frame
        _f(
            "frame_reproj_rmse_px",
            REALS,
            "reprojection error of inlier tracks; NaN where there are none",
            "px of width x height",
            frame=1,
        ),
        _f(
            "frame_sampson_px",
            REALS,
            "median Sampson distance of held-out matches to the frame before",
            "px of width x height",
            frame=1,
        ),
        _f("frame_num_tracked", INTS, "feature tracks seen", frame=1),
        _f("frame_inlier_ratio", REALS, "inliers of the tracks that have a scene point", frame=1),
        _f("frame_coverage", REALS, "share of an 8x8 grid of the picture with an inlier", frame=1),
        _f("frame_dyn_ratio", REALS, "share of tracks that move against the scene", frame=1),
        _f(
            "frame_step_px",
            REALS,
            "median displacement of tracks from the frame before",
            "px of width x height",
            frame=1,
        ),
        _f("frame_focal_sigma", REALS, "relative standard deviation of the focal length", frame=1),
        _f("frame_is_keyframe", BOOLS, "the frame is a keyframe of the reconstruction", frame=1),
        _f("frame_blur", REALS, "how little blurring again would change: 0 sharp, 1 blurred", frame=1),
        _f("frame_luma", REALS, "mean luma", "0..255", frame=1),
        _f("frame_saturation", REALS, "mean HSV saturation", "0..255", frame=1),
        _f("frame_vmaf_motion", REALS, "vmafmotion against the frame before", frame=1),
        _f(
            "frame_flow_px",
            REALS,
            "mean flow magnitude since the frame 0.5 s before; NaN between",
            "px of width x height",
            frame=1,
        ),
        _f("frame_duplicate", REALS, "1 where the frame repeats the one before, else 0", frame=1),
        # quality of the clip
        _f("tracked_ratio", REAL, "frames with a pose, of all"),
        _f("ba_rmse_px", REAL, "root mean square residual of the bundle adjustment", "px of width x height"),
        _f("reproj_rmse_px", REAL, "root mean square of the frames' reprojection errors", "px of width x height"),
        _f("sampson_px", REAL, "median over frames", "px of width x height"),
        _f("num_tracked", REAL, "median over frames of the feature tracks seen"),
        _f("inlier_ratio", REAL, "median over posed frames"),
        _f("coverage", REAL, "median over posed frames of the grid share with an inlier"),
        _f("dyn_ratio", REAL, "mean over frames"),
        _f("masked_ratio", REAL, "share of the picture that masks leave out: bars, overlays, what moves"),
        _f("blur", REAL, "median over frames of frame_blur"),
        _f("luma", REAL, "mean over frames", "0..255"),
        _f("saturation", REAL, "mean HSV saturation", "0..255"),
        _f("vmaf_motion", REAL, "mean of FFmpeg's vmafmotion"),
        _f("flow_px", REAL, "mean flow magnitude between frames 0.5 s apart", "px of width x height"),
        _f("duplicate_ratio", REAL, "frames that repeat the one before"),
        _f("num_cuts", INT, "hard cuts inside the clip"),
        _f("dover", REAL, "DOVER quality score"),
        _f("num_entities", REAL, "people, vehicles and animals counted by a vision-language model"),
        _f("vlm_quality", REAL, "quality flag of a vision-language model"),
        _f("trans_total_m", REAL, "length of the path", "see scale_kind"),
        _f("rot_total_deg", REAL, "sum of the rotations from frame to frame", "deg"),
        _f("max_speed_m_s", REAL, "largest speed", "per second, see scale_kind"),
        _f("max_rot_deg_s", REAL, "largest rotation rate", "deg/s"),
        _f("jump_count", INT, "steps that are no continuation of the motion around them"),
        _f("scale_std_ratio", REAL, "std / mean of scale_raw"),
        _f("scale_drift_log", REAL, "range of the 1-second medians of log scale_raw"),
        _f("scale_dispersion", REAL, "median over frames of how far a frame's pixels differ in log scale"),
        # filters
        _f("filter_profile", TEXT, "profile/source that judged the clip; null where none did"),
        _f("filter_reasons", TEXTS, "why the clip was filtered, or has failed, as codes"),
        _f("filter_not_measured", TEXTS, "metrics of the profile that were not measured"),
        _f("filter_values", TEXT, "JSON: metric -> {value, min, max, passed}"),
        # text and actions
        _f("caption", TEXT, "what the scene looks like, without camera motion"),
        _f("caption_model", TEXT, "what wrote the caption"),
        _f("first_frame_uri", TEXT, "image of the first frame"),
        _f("action_dsl", TEXT, "the camera path as an action string"),
        _f("action_keys", TEXTS, "keys held in each frame", frame=1),
        # sidecars
        _f("depth_uri", TEXT, "dense depth"),
        _f("depth_encoding", TEXT, "how depth_uri stores depth, with its unit"),
        _f("mask_uri", TEXT, "masks of what moves"),
        _f("splat_uri", TEXT, "Gaussian splats of the scene"),
        # rendered
        _f("scene_id", TEXT, "the splat scene: the first 16 digits of its hash"),
        _f("path_family", TEXT, "the family of the camera path"),
        _f("seed", LONG, "random seed of a rendered path or a generated clip"),
        _f("render_coverage", REAL, "share of pixels with an opaque surface, alpha 0.95 or more"),
        _f("hole_ratio", REAL, "share of pixels that show a hole, alpha below 0.5"),
        _f("path_parameters", TEXT, "JSON: what was drawn from the seed for the camera path, in units of the scene"),
        _f("path_checks", TEXT, "JSON: check -> {value, limit, bound}, lengths in units of the scene; all were passed"),
        _f(
            "revisit_pairs",
            INTS,
            "earlier frame, later frame that shows the same place, pair after pair",
            "frames from the clip's first",
        ),
        _f("render_stats", TEXT, "JSON: the scene's splats and training cameras, the rasteriser, holes and flicker"),
        # generated
        _f("prompt", TEXT, "text prompt"),
        _f("parent_clip_id", TEXT, "the clip whose first frame or path was used"),
        _f("generation_config", TEXT, "JSON: the generator's settings"),
        _f("negative_prompt", TEXT, "what the generator was led away from"),
        _f("generation_stats", TEXT, "JSON: what the generator says of its work: passes, memory, remarks"),
        _f("plan_uri", TEXT, "drawing of the path that was asked for"),
        _f("latents_uri", TEXT, "safetensors: latent frames, and the camera that they were asked to show"),
        # provenance
        _f("error_stage", TEXT, "the stage that failed"),
        _f("error", TEXT, "what went wrong, in words"),
        _f("run_id", TEXT, "the run that wrote the row", required=True),
        _f("config_hash", TEXT, "of the run's resolved configuration", required=True),
        _f("software_version", TEXT, "longtake version", required=True),
        _f("stage_versions", TEXT, "JSON: stage -> version", required=True),
        _f("model_revisions", TEXT, "JSON: network -> revision of its weights"),
        _f("model_licenses", TEXT, "JSON: network -> licence of its weights"),
        _f("timings_s", TEXT, "JSON: stage -> seconds"),
        _f("track_stats", TEXT, "JSON: numbers that the pose engine says of its track"),
        _f("created_at", pa.timestamp("us", tz="UTC"), "when the row was written", required=True),
    ],
    metadata={"longtake.schema": SCHEMA_ID, "longtake.conventions": json.dumps(CONVENTIONS)},
)
PER_FRAME = {f.name: int(f.metadata[b"per_frame"]) for f in SCHEMA if b"per_frame" in f.metadata}
_CLIP_NUMBERS = [f.name for f in SCHEMA if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
_FRAME_QUALITY = [n for n in PER_FRAME if n.startswith("frame_") or n in ("scale_raw", "scale_smoothed")]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who made a row, with what."""

    run_id: str
    config_hash: str
    software_version: str
    stage_versions: Mapping[str, str]
    timings_s: Mapping[str, float] = field(default_factory=dict)
    model_revisions: Mapping[str, str] = field(default_factory=dict)
    model_licenses: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError("created_at needs a time zone: datetime.now(UTC)")


def clip_id(
    *, sha256: str | None, path: str, span: tuple[int, int] | None, crop: tuple[int, ...] | None, rotation_deg: int = 0
) -> str:
    """uuid5 of what a clip is cut from: the same clip gets the same id in every run, wherever its file lies.

    Args:
        sha256: of the source; None where it could not be read, and then the absolute path stands for it.
        path: of the source.
        span: first frame and one past the last; None for the file as a whole (a failed one).
        crop: x, y, width, height of the scene in the picture.
        rotation_deg: clockwise turn applied to the stored picture.
    """
    what = f"sha256:{sha256}" if sha256 else f"path:{_text(os.path.abspath(path))}"
    return str(uuid.uuid5(_CLIP_NAMESPACE, f"{what} span:{span} crop:{crop} rotation:{rotation_deg}"))


def annotate_row(
    *,
    path: str,
    provenance: Provenance,
    video: VideoInfo | None = None,
    shot: Shot | None = None,
    track: Track | None = None,
    rejected: Rejected | None = None,
    quality: Mapping[str, float | None] | None = None,
    frames: Mapping[str, NDArray] | None = None,
    source_dataset: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """The row of one annotated shot, or of one file or shot that failed (`rejected`); not judged yet.

    Args:
        path: the input; what is known of it when `video` is None.
        quality: numbers of the clip, by column name; they win over what is derived from the track.
        frames: arrays [T] of the clip's frames, by column name with or without its `frame_`.

    Raises:
        ValueError: neither a track nor a refusal, records that do not belong together, or an unknown number.
    """
    if (track is None) == (rejected is None):
        raise ValueError("a row needs either a track or the reason why there is none")
    if (shot is not None and video is None) or (track is not None and shot is None):
        raise ValueError("a shot needs its video, and a track its shot")
    if track is not None and shot is not None and len(track.pts_ns) != shot.num_frames:
        raise ValueError(f"the track has {len(track.pts_ns)} frames and its shot {shot.num_frames}")
    source = os.path.abspath(path) if video is None else video.path
    sha256 = video.sha256 if video else None
    row = _identity_columns(
        origin="annotated",
        source=source,
        sha256=sha256,
        provenance=provenance,
        source_dataset=source_dataset,
        license=license,
    )
    row["clip_id"] = clip_id(
        sha256=sha256,
        path=source,
        span=(shot.start, shot.stop) if shot else None,
        crop=shot.crop if shot else None,
        rotation_deg=video.rotation_deg if video else 0,
    )
    if video is not None:
        row |= _video_columns(video, shot)
    if track is not None:
        row |= _camera_columns(track) | _estimate_columns(track)
    row |= _quality_columns(quality or {}, frames or {}, row["num_frames"])
    return row | (_failure_columns(rejected) if rejected is not None else {})


def rendered_clip_id(*, scene_sha256: str, path: Mapping[str, Any]) -> str:
    """uuid5 of the scene's content and all that says which path was filmed through it."""
    return str(uuid.uuid5(_CLIP_NAMESPACE, f"rendered sha256:{scene_sha256} path:{_json(path)}"))


def render_row(
    *,
    scene: str,
    scene_sha256: str | None,
    provenance: Provenance,
    id: str | None = None,
    video: VideoInfo | None = None,
    uri: str | None = None,
    track: Track | None = None,
    rejected: Rejected | None = None,
    path_family: str | None = None,
    seed: int | None = None,
    path_parameters: Mapping[str, Any] | None = None,
    path_checks: Mapping[str, Any] | None = None,
    revisit_pairs: NDArray[np.int64] | None = None,
    render_stats: Mapping[str, Any] | None = None,
    quality: Mapping[str, float | None] | None = None,
    frames: Mapping[str, NDArray] | None = None,
    source_dataset: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """The row of one clip rendered from a splat scene, or of one scene or clip that failed (`rejected`).

    All clips of a scene have its hash for their group: a split by groups keeps them together.

    Args:
        scene: the scene's file or folder.
        scene_sha256: of its content; None where it could not be read.
        id: by `rendered_clip_id`; None for a scene that failed as a whole.
        video: the film, whole, and `uri`: where it lies.
        track: the camera it was filmed with; only what a camera is given by is read of it, nothing that is estimated.
        revisit_pairs: [K, 2] frames of the clip.
        quality, frames: as for `annotate_row`.

    Raises:
        ValueError: neither a camera with its film nor a refusal, or an unknown number.
    """
    if (track is None) == (rejected is None) or (track is not None and (video is None or uri is None)):
        raise ValueError("a row needs either a camera and its film or the reason why there is none")
    source = os.path.abspath(scene)
    row = _identity_columns(
        origin="rendered",
        source=source,
        sha256=scene_sha256,
        provenance=provenance,
        source_dataset=source_dataset,
        license=license,
    )
    row |= {
        "clip_id": id or clip_id(sha256=scene_sha256, path=source, span=None, crop=None),
        "scene_id": scene_sha256 and scene_sha256[:16],
        "splat_uri": row["source_uri"],
        "path_family": path_family,
        "seed": seed,
        "path_parameters": _json(path_parameters) if path_parameters is not None else None,
        "path_checks": _json(path_checks) if path_checks is not None else None,
        "revisit_pairs": revisit_pairs.ravel() if revisit_pairs is not None else None,
        "render_stats": _json(render_stats) if render_stats is not None else None,
    }
    if video is not None:
        row |= _video_columns(video, None) | {"uri": uri, "boundary": "start", "num_cuts": 0}
    if track is not None:
        row |= _camera_columns(track)
    row |= _quality_columns(quality or {}, frames or {}, row["num_frames"])
    return row | (_failure_columns(rejected) if rejected is not None else {})


def generated_clip_id(asked: str) -> str:
    """uuid5 of all that a generated clip was asked to be, given as its hash."""
    return str(uuid.uuid5(_CLIP_NAMESPACE, f"generated asked:{asked}"))


def generate_row(
    *,
    id: str,
    source: str,
    source_sha256: str | None,
    provenance: Provenance,
    config: Mapping[str, Any],
    seed: int,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    parent: str | None = None,
    group_id: str | None = None,
    split: str | None = None,
    action_dsl: str | None = None,
    action_keys: Sequence[str] | None = None,
    video: VideoInfo | None = None,
    uri: str | None = None,
    track: Track | None = None,
    rejected: Rejected | None = None,
    stats: Mapping[str, Any] | None = None,
    quality: Mapping[str, float | None] | None = None,
    frames: Mapping[str, NDArray] | None = None,
    source_dataset: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """The row of one generated clip, or of one that failed (`rejected`).

    It belongs to the group, and the split, of the clip whose first frame it begins with.

    Args:
        id: by `generated_clip_id`.
        source: the first picture's file, or the recording that it is from.
        config: the generator's settings, without the seed.
        parent: the clip whose first frame was used.
        group_id: the parent's; None for a picture of its own, whose hash stands for it.
        action_keys: held before each frame.
        video: the clip, whole, and `uri`: where it lies.
        track: the camera that was asked for; nothing in it is estimated.
        stats: what the generator says of its work.
        quality, frames: as for `annotate_row`.

    Raises:
        ValueError: neither a camera with its video nor a refusal, or an unknown number.
    """
    if (track is None) == (rejected is None) or (track is not None and (video is None or uri is None)):
        raise ValueError("a row needs either a camera and its video or the reason why there is none")
    row = _identity_columns(
        origin="generated",
        source=source,
        sha256=source_sha256,
        provenance=provenance,
        source_dataset=source_dataset,
        license=license,
    )
    row |= {
        "clip_id": id,
        "group_id": group_id or source_sha256,
        "split": split,
        "parent_clip_id": parent,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "generation_config": _json(config),
        "generation_stats": _json(stats) if stats is not None else None,
        "action_dsl": action_dsl,
    }
    if video is not None:
        row |= _video_columns(video, None) | {"uri": uri, "boundary": "start"}
    if track is not None:
        row |= _camera_columns(track) | {"action_keys": list(action_keys) if action_keys else None}
    row |= _quality_columns(quality or {}, frames or {}, row["num_frames"])
    return row | (_failure_columns(rejected) if rejected is not None else {})


def imported_row(
    *,
    source: str,
    name: str,
    sha256: str | None,
    span: tuple[int, int] | None,
    provenance: Provenance,
    video: VideoInfo | None = None,
    track: Track | None = None,
    rejected: Rejected | None = None,
    caption: str | None = None,
    quality: Mapping[str, float | None] | None = None,
    source_dataset: str | None = None,
    license: str | None = None,
) -> dict[str, Any]:
    """The row of one clip whose cameras another tool or collection states, or of one that was refused (`rejected`).

    Args:
        source: the collection's file or folder.
        name: of the clip within it.
        sha256: of its cameras as read.
        span: its frames in the video.
        video: of its media, whole; None where they were not looked at: sizes and times are the track's then.
        track: only what a camera is given by is read of it, and how it moves stays open.
        quality: as for `annotate_row`.
    """
    if (track is None) == (rejected is None):
        raise ValueError("a row needs either a camera or the reason why there is none")
    row = _identity_columns(
        origin="imported",
        source=source,
        sha256=video.sha256 if video else sha256,
        provenance=provenance,
        source_dataset=source_dataset,
        license=license,
    )
    row["clip_id"] = str(uuid.uuid5(_CLIP_NAMESPACE, f"imported {_text(name)} sha256:{sha256} span:{span}"))
    row |= {"group_id": row["source_sha256"], "caption": caption}
    if video is not None:
        row |= _video_columns(video, None)
    if track is not None and span is not None:
        row |= _time_columns(track.pts_ns) | _camera_columns(track) | {"motion_class": None}
        row |= {"frame_start": span[0], "frame_stop": span[1]}
        if row["image_uris"] is not None:
            row["image_uris"] = row["image_uris"][span[0] : span[1]]
    row |= _quality_columns(quality or {}, {}, row["num_frames"])
    return row | (_failure_columns(rejected) if rejected is not None else {})


def frame_rate(pts_ns: NDArray[np.int64]) -> tuple[Fraction | None, bool]:
    """Frames per second of these times, and whether every frame lies exactly where that rate puts it.

    Where it does not, the rate is that of the median step. None for fewer than two frames.
    """
    if len(pts_ns) < 2:
        return None, False
    passed = pts_ns - pts_ns[0]
    mean = Fraction(10**9 * (len(pts_ns) - 1), int(passed[-1])).limit_denominator(1001)
    if mean > 0:
        step_ns = 10**9 / mean
        even = np.array([round(i * step_ns) for i in range(len(pts_ns))])
        if (np.abs(passed - even) <= TIME_ROUNDING_NS).all():
            return mean, True
    median = Fraction(10**9 / float(np.median(np.diff(pts_ns)))).limit_denominator(1001)
    return (median if median > 0 else None), False


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`, each checked.

    Raises:
        ValueError: names the row, the column, and what is wrong.
    """
    rows = list(rows)
    for row in rows:
        check_row(row)
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError unless the row can stand in a manifest."""
    if problem := row_problem(row):
        raise ValueError(f"clip {row.get('clip_id')}: {problem}")


def row_problem(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, or None."""
    if unknown := [name for name in row if SCHEMA.get_field_index(name) < 0]:
        return f"the schema {SCHEMA_ID} has no column {', '.join(unknown)}"
    if missing := [f.name for f in SCHEMA if not f.nullable and row.get(f.name) is None]:
        return f"no value for {', '.join(missing)}"
    if row["status"] not in ("ok", "filtered", "failed"):
        return f"status {row['status']!r} is none of ok, filtered, failed"
    reasons = row.get("filter_reasons")
    if (row["status"] != "ok") != (reasons is not None and len(reasons) > 0):
        return f"status {row['status']} with filter_reasons {reasons}"
    if row["status"] == "failed" and not row.get("error"):
        return "status failed without an error"
    count = row.get("num_frames")
    for name, per_frame in PER_FRAME.items():
        values = row.get(name)
        if values is not None and (count is None or len(values) != count * per_frame):
            return f"{name} has {len(values)} values, but {count} frames of {per_frame} are wanted"
    if row.get("c2w") is None:
        return None if row["status"] == "failed" else "neither poses (c2w) nor status failed"
    if absent := [n for n in ("pose_valid", "intrinsics", "width", "height") if row.get(n) is None]:
        return f"c2w without {', '.join(absent)}"
    return _camera_problem(row)


def _camera_problem(row: Mapping[str, Any]) -> str | None:
    c2w = np.asarray(row["c2w"], np.float64).reshape(-1, 3, 4)
    posed = np.asarray(row["pose_valid"], bool)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(c2w).all((1, 2)))
    if (wrong := np.flatnonzero(posed != finite)).size:
        i = wrong[0]
        return f"frame {i}: pose_valid is {bool(posed[i])}, its pose {'finite' if finite[i] else 'not finite'}"
    rotation = c2w[posed, :, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2), initial=0.0)
    if (wrong := np.flatnonzero((error > 1e-4) | (np.linalg.det(rotation) < 0))).size:
        return f"frame {np.flatnonzero(posed)[wrong[0]]}: the rotation of its pose is no rotation"
    k = np.asarray(row["intrinsics"], np.float64).reshape(-1, 4)
    if (wrong := np.flatnonzero(~np.isfinite(k).all(1) | (k[:, :2] <= 0).any(1))).size:
        return f"frame {wrong[0]}: intrinsics {k[wrong[0]]} are no camera's"
    return None


def principal_point_outside(row: Mapping[str, Any]) -> str | None:
    """A sign of intrinsics in pixels of another size; possible for a picture that was cropped off its centre."""
    if row.get("intrinsics") is None:
        return None
    k = np.asarray(row["intrinsics"], np.float64).reshape(-1, 4)
    size = np.array([row["width"], row["height"]])
    wrong = np.flatnonzero(((k[:, 2:] < -0.5) | (k[:, 2:] > size - 0.5)).any(1))
    if not wrong.size:
        return None
    return (
        f"frame {wrong[0]}: the principal point {k[wrong[0], 2:]} lies outside the {size[0]} x {size[1]} picture; "
        "intrinsics must be in pixels of this row's width x height"
    )


def _identity_columns(
    *,
    origin: str,
    source: str,
    sha256: str | None,
    provenance: Provenance,
    source_dataset: str | None,
    license: str | None,
) -> dict[str, Any]:
    """A row with every column, of which only these are known yet."""
    return dict.fromkeys(SCHEMA.names) | {
        "origin": origin,
        "status": "ok",
        "filter_reasons": [],
        "source_dataset": source_dataset,
        "source_uri": _text(source),
        "source_sha256": sha256,
        "license": license,
        "group_id": sha256,
        "run_id": provenance.run_id,
        "config_hash": provenance.config_hash,
        "software_version": provenance.software_version,
        "stage_versions": _json(provenance.stage_versions),
        "model_revisions": _json(provenance.model_revisions) if provenance.model_revisions else None,
        "model_licenses": _json(provenance.model_licenses) if provenance.model_licenses else None,
        "timings_s": _json(provenance.timings_s),
        "created_at": provenance.created_at,
    }


def _failure_columns(rejected: Rejected) -> dict[str, Any]:
    return {
        "status": "failed",
        "filter_reasons": [rejected.reason],
        "error_stage": rejected.stage,
        "error": _text(rejected.message),
    }


def _video_columns(video: VideoInfo, shot: Shot | None) -> dict[str, Any]:
    span = slice(shot.start, shot.stop) if shot else slice(0, video.num_frames)
    return {
        "uri": _text(video.path),
        "sha256": video.sha256,
        "bytes": video.num_bytes,
        "container": video.container,
        "codec": video.codec,
        "pix_fmt": video.pix_fmt,
        "width": video.width,
        "height": video.height,
        "coded_width": video.coded_width,
        "coded_height": video.coded_height,
        "rotation_deg": video.rotation_deg,
        "mirrored": video.mirrored,
        "sar_num": video.sar_num,
        "sar_den": video.sar_den,
        "color_range": video.color_range,
        "interlaced": video.interlaced,
        "tagged_fps": _number(video.tagged_fps),
        "is_vfr": video.is_vfr,
        "origin_s": video.origin_ns / 1e9,
        "frame_start": shot.start if shot else 0,
        "frame_stop": shot.stop if shot else video.num_frames,
        **_time_columns(video.pts_ns[span]),
        "image_uris": [_text(p) for p in video.image_paths[span]] if video.is_images else None,
        "crop": list(shot.crop) if shot else None,
        "boundary": shot.boundary if shot else None,
        "num_cuts": 0 if shot and not shot.photographs else None,
    }


def _time_columns(pts_ns: NDArray[np.int64]) -> dict[str, Any]:
    rate, even = frame_rate(pts_ns)
    start_s = pts_ns[0] / 1e9 if len(pts_ns) else None
    length_s = (pts_ns[-1] - pts_ns[0] + np.median(np.diff(pts_ns))) / 1e9 if len(pts_ns) > 1 else None
    return {
        "fps_num": rate.numerator if rate else None,
        "fps_den": rate.denominator if rate else None,
        "num_frames": len(pts_ns),
        "start_s": start_s,
        "end_s": start_s + length_s if start_s is not None and length_s is not None else None,
        "duration_s": length_s,
        "pts_s": None if even else pts_ns / 1e9,
    }


def _camera_columns(track: Track) -> dict[str, Any]:
    """What a camera is, however it became known."""
    return {
        # the size is the track's own: its intrinsics are in these pixels
        "width": track.width,
        "height": track.height,
        "c2w": track.world_from_cam[:, :3].astype(np.float32).ravel(),
        "pose_valid": track.pose_valid,
        "intrinsics": track.intrinsics.astype(np.float32).ravel(),
        "intrinsics_mode": track.intrinsics_mode,
        "focal_status": track.focal_status,
        "distortion_model": track.distortion_model,
        "distortion": list(track.distortion),
        "camera_convention": "opencv_c2w",
        "pixel_center": "integer",
        "scale_kind": track.scale_kind,
        "scale_raw": track.scale_raw,
        "scale_smoothed": track.scale_smoothed,
        "pose_source": track.pose_source,
        "motion_class": track.motion_class,
        "flags": list(track.flags),
        **camera_values(track.intrinsics, track.width, track.height),
        "tracked_ratio": float(track.pose_valid.mean()),
    }


def _estimate_columns(track: Track) -> dict[str, Any]:
    """How well an estimated camera fits its pictures."""
    posed = track.pose_valid
    stats = {name: _number(value) for name, value in track.stats.items()}
    return {
        "frame_reproj_rmse_px": track.reproj_rmse_px,
        "frame_sampson_px": track.sampson_px,
        "frame_num_tracked": track.num_tracked,
        "frame_inlier_ratio": track.inlier_ratio,
        "frame_coverage": track.coverage,
        "frame_dyn_ratio": track.dyn_ratio,
        "frame_step_px": track.step_px,
        "frame_focal_sigma": track.focal_sigma,
        "frame_is_keyframe": track.is_keyframe,
        "ba_rmse_px": stats.get("ba_rmse_px"),
        "reproj_rmse_px": _over(lambda v: np.sqrt(np.mean(v * v)), track.reproj_rmse_px),
        "sampson_px": _over(np.median, track.sampson_px),
        "num_tracked": _over(np.median, track.num_tracked),
        "inlier_ratio": _over(np.median, track.inlier_ratio[posed]),
        "coverage": _over(np.median, track.coverage[posed]),
        "dyn_ratio": _over(np.mean, track.dyn_ratio),
        **{name: stats.get(name) for name in ("scale_std_ratio", "scale_drift_log", "scale_dispersion")},
        "track_stats": _json(stats),
    }


def _quality_columns(
    quality: Mapping[str, float | None], frames: Mapping[str, NDArray], num_frames: int | None
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in quality.items():
        if name not in _CLIP_NUMBERS:
            raise ValueError(f"the schema {SCHEMA_ID} has no column for the clip's {name!r}")
        row[name] = _number(value)
        if row[name] is not None and pa.types.is_integer(SCHEMA.field(name).type):
            row[name] = int(row[name])
    for name, values in frames.items():
        column = name if name in _FRAME_QUALITY else f"frame_{name}"
        if column not in _FRAME_QUALITY:
            raise ValueError(f"the schema {SCHEMA_ID} has no column for the frames' {name!r}")
        if len(values) != num_frames:
            raise ValueError(f"{name!r} has {len(values)} values for {num_frames} frames")
        row[column] = values
    return row


def _over(reduce: Any, values: NDArray) -> float | None:
    """A statistic of the finite values; None where there are none."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    return float(reduce(finite)) if finite.size else None


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(dict(tree), sort_keys=True, allow_nan=False)


def _text(text: str) -> str:
    """A file name need not be Unicode: bytes that are none are written as \\xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
