"""From a video file or a folder of images to frames: upright, square pixels, full range, told apart by their times.

`probe` reads what a file says of itself, `frames` decodes. Files are untrusted: everything that parses them runs in a
child process (`decoder.py`) with limits of memory, size and patience, so that a crash costs one file.

A frame is known by its presentation time alone, never by a frame rate or a count from the container. A frame that
cannot be decoded is absent from what `frames` yields; its neighbours keep their indices.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import joint_digest, natural_key
from ..records import BadMedia, Frame, LongtakeError, VideoInfo

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .3gp .mkv .webm .avi .ts .mts .m2ts".split())
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff .ppm .pgm".split())
NS = 1_000_000_000


@dataclass(frozen=True)
class VideoConfig:
    """Limits for untrusted files, and the one thing that image folders do not say."""

    max_file_gb: float = 64.0
    max_pixels: int = 7680 * 4320  # of one frame, as stored and with square pixels
    max_frames: int = 2_000_000  # 18 hours at 30 fps
    decode_timeout_s: float = 60.0  # without a sign of life from the decoding process
    memory_mb: int = 4096  # address space of the decoding process
    images_fps: float = 30.0  # assumed for a folder of images from one continuous take


# ---- inputs ------------------------------------------------------------------------------------------------------


def expand_inputs(args: Sequence[str]) -> list[Path | str]:
    """What a user names, as inputs for `probe`: files and image folders as absolute paths, image patterns as text.

    A folder with videos stands for each of them, one with images alone for one input; likewise a glob pattern. Image
    files that a shell has expanded from a pattern stand for their folder if they are all of its images.

    Raises:
        LongtakeError: there is nothing at that place, or no media in it.
    """
    inputs: list[Path | str] = []
    named_images: dict[Path, set[Path]] = {}
    for arg in args:
        path = Path(arg).absolute()
        if path.is_dir():
            files = [p for p in path.iterdir() if p.is_file()]
            inputs.extend(_videos_or(files, path, arg))
        elif path.exists():
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                inputs.append(path)
                continue
            if path.parent not in named_images:
                inputs.append(path.parent)
            named_images.setdefault(path.parent, set()).add(path)
        elif glob.has_magic(arg):
            files = [Path(p).absolute() for p in glob.glob(arg, recursive=True) if os.path.isfile(p)]
            inputs.extend(_videos_or(files, os.path.abspath(arg), arg))
        else:
            raise LongtakeError(f"{arg}: no such file or folder.")
    for folder, images in named_images.items():
        there = {p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
        if images != there:
            raise LongtakeError(
                f"{folder}: {len(images)} of its {len(there)} images were named. Name the folder, or put the pattern in"
                " quotes so that the shell leaves it as it is."
            )
    return inputs


def _videos_or(files: list[Path], images: Path | str, arg: str) -> list[Path | str]:
    """The videos among the files, or else `images` if there are any."""
    videos = sorted((p for p in files if p.suffix.lower() in VIDEO_SUFFIXES), key=natural_key)
    if videos:
        return list(videos)
    if any(p.suffix.lower() in IMAGE_SUFFIXES for p in files):
        return [images]
    raise LongtakeError(
        f"{arg}: neither videos ({' '.join(sorted(VIDEO_SUFFIXES))}) nor images ({' '.join(sorted(IMAGE_SUFFIXES))})."
    )


def _image_paths(path: str) -> tuple[str, ...]:
    """The images of a folder or a pattern in natural order; none for a video file."""
    if os.path.isdir(path):
        found = [entry.path for entry in os.scandir(path) if entry.is_file()]
    elif os.path.exists(path):
        found = [path]
    elif glob.has_magic(path):
        found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    else:
        raise BadMedia("unreadable", f"{path}: no such file.")
    images = [p for p in found if Path(p).suffix.lower() in IMAGE_SUFFIXES]
    if not images and found != [path]:
        raise BadMedia("too_few_frames", f"{path}: holds no images.")
    return tuple(sorted(images, key=natural_key))


# ---- probe -------------------------------------------------------------------------------------------------------


def probe(path: str | Path, *, stills: bool = False, config: VideoConfig = VideoConfig()) -> VideoInfo:
    """What is known of a video file, a folder of images or a pattern of images before its pixels are decoded.

    One pass over the packets gives every frame's time; of the pixels only the first frame is decoded, because sizes,
    ranges and rotations that containers claim can be wrong. Frames cut off by an edit list, shown before the first
    decodable one, or with the time of another are not counted. Image folders carry no times: images of one continuous
    take are put at `config.images_fps`, `stills` (separate photographs) at a nominal one a second; `tagged_fps` is nan
    for both, and `sha256` covers the images' contents in order.

    Raises:
        BadMedia: reason is one of unreadable, empty_file, too_large, not_a_video, truncated, no_video_stream,
            unsupported_codec, resolution_too_large, too_few_frames, too_many_frames, undecodable, no_timestamps,
            timestamps_go_back, out_of_memory, decode_timeout, decoder_crashed.
    """
    path = os.path.abspath(path)
    images = _image_paths(path)
    digest, num_bytes = _digest(images or (path,), config.max_file_gb)
    request = {"do": "probe", "path": path, "images": images}
    with _Decoder(request, (), config) as decoder:
        facts, arrays = next(decoder.messages("facts"))
    if images:
        step_ns = NS if stills else NS / config.images_fps
        pts_ns = np.rint(np.arange(len(images)) * step_ns).astype(np.int64)
    else:
        pts_ns = arrays[0]
    if len(pts_ns) > config.max_frames:
        raise BadMedia("too_many_frames", f"{path}: {len(pts_ns)} frames are over the limit of {config.max_frames}.")
    del facts["kind"]
    return VideoInfo(
        path=path,
        is_images=bool(images),
        image_paths=images,
        sha256=digest,
        num_bytes=num_bytes,
        pts_ns=pts_ns,
        **facts,
    )


def _digest(paths: Sequence[str], max_gb: float) -> tuple[str, int]:
    """SHA-256 of a file, or of many files' digests in order, and their bytes; refuses what is no plain file."""
    total, digests = 0, []
    for path in paths:
        try:
            status = os.stat(path)
            if not S_ISREG(status.st_mode):
                raise BadMedia("unreadable", f"{path}: not a plain file.")
            total += status.st_size
            if status.st_size == 0:
                raise BadMedia("empty_file", f"{path}: the file is empty.")
            if total > max_gb * 1e9:
                raise BadMedia("too_large", f"{path}: {total / 1e9:.3g} GB are over the limit of {max_gb:.3g} GB.")
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise BadMedia("unreadable", f"{path}: {error.strerror}.") from error
    return joint_digest(digests), total


# ---- frames ------------------------------------------------------------------------------------------------------


def frames(
    info: VideoInfo,
    *,
    start: int = 0,
    stop: int | None = None,
    max_side: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    config: VideoConfig = VideoConfig(),
) -> Generator[Frame, None, None]:
    """Decode frames start .. stop-1 in order, those that can be decoded.

    Frames are upright, with square pixels and full range, interlaced ones made progressive; then cropped to `crop` (x,
    y, width, height in display pixels), then shrunk by area so that the long side is at most `max_side`. With
    s = crop width / gray width, gray pixel u lies at x + s (u + 0.5) - 0.5 of the display picture.
    `progress(done, total)` is called after each frame. The decoding process ends with the generator.

    Raises:
        BadMedia: frame_size_changes, where the size changes in mid-stream; out_of_memory, decode_timeout or
            decoder_crashed, where the decoding process died. Frames before that place have been yielded. Damaged data
            alone raise nothing: the frames that could be decoded are yielded, unless there is not one in the whole
            video (undecodable).
    """
    stop = info.num_frames if stop is None else stop
    if not 0 <= start <= stop <= info.num_frames:
        raise ValueError(f"{info.path}: frames {start} .. {stop} of {info.num_frames}")
    done = 0
    with _pictures(info, "gray", np.arange(start, stop), crop, max_side, config) as decoder:
        for header, (gray, thumb) in decoder.messages("frame"):
            index = header["index"]
            done += 1
            yield Frame(index=index, pts_ns=int(info.pts_ns[index]), gray=gray, thumb=thumb)
            if progress is not None:
                progress(index + 1 - start, stop - start)
    if done == 0 and stop - start == info.num_frames:
        raise BadMedia("undecodable", f"{info.path}: not one of its {info.num_frames} frames can be decoded.")


def pictures(
    info: VideoInfo,
    *,
    start: int = 0,
    stop: int | None = None,
    only: Sequence[int] | NDArray[np.int64] | None = None,
    crop: tuple[int, int, int, int] | None = None,
    max_side: int | None = None,
    config: VideoConfig = VideoConfig(),
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Decode frames start .. stop-1 in order: their numbers and RGB pictures [h, w, 3], cropped and shrunk as `frames`.

    Frames that cannot be decoded are absent. The decoding process ends with the generator.

    Args:
        only: of these frames those that are wanted, in order; None for all.

    Raises:
        BadMedia: as `frames`, but for undecodable.
    """
    stop = info.num_frames if stop is None else stop
    if not 0 <= start <= stop <= info.num_frames:
        raise ValueError(f"{info.path}: frames {start} .. {stop} of {info.num_frames}")
    wanted = np.arange(start, stop)
    if only is not None:
        wanted = wanted[np.isin(wanted, only)]
    with _pictures(info, "rgb", wanted, crop, max_side, config) as decoder:
        for header, (rgb,) in decoder.messages("frame"):
            yield header["index"], rgb


def read_rgb(
    info: VideoInfo,
    indices: Sequence[int],
    *,
    max_side: int | None = None,
    config: VideoConfig = VideoConfig(),
) -> list[NDArray[np.uint8]]:
    """RGB pictures [h, w, 3], upright with square pixels, of the named frames in the order they are named.

    Raises:
        BadMedia: as `frames`; also undecodable, where one of the frames cannot be decoded.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] < info.num_frames:
        raise ValueError(f"{info.path}: frames {indices} of {info.num_frames}")
    with _pictures(info, "rgb", wanted, None, max_side, config) as decoder:
        found = {header["index"]: arrays[0] for header, arrays in decoder.messages("frame")}
    missing = [i for i in wanted.tolist() if i not in found]
    if missing:
        raise BadMedia("undecodable", f"{info.path}: frame {missing[0]} cannot be decoded.")
    return [found[int(i)] for i in indices]


def _pictures(
    info: VideoInfo,
    kind: str,
    indices: NDArray[np.int64],
    crop: tuple[int, int, int, int] | None,
    max_side: int | None,
    config: VideoConfig,
) -> _Decoder:
    if crop is not None:
        x, y, w, h = crop
        if not (0 <= x < x + w <= info.width and 0 <= y < y + h <= info.height):
            raise ValueError(f"{info.path}: crop {crop} does not lie in {info.width}x{info.height}")
    facts = asdict(info)
    for name in ("pts_ns", "image_paths"):
        del facts[name]
    request = {
        "do": kind,
        "path": info.path,
        "images": info.image_paths,
        "facts": facts,
        "crop": crop,
        "max_side": max_side,
    }
    return _Decoder(request, (info.pts_ns, np.asarray(indices, np.int64)), config)


class _Decoder:
    """One decoding process for one request; ends with the `with` block."""

    def __init__(self, request: dict[str, Any], arrays: Sequence[NDArray], config: VideoConfig) -> None:
        self.request = {**request, "max_pixels": config.max_pixels, "memory_mb": config.memory_mb}
        self.arrays, self.config, self.path = arrays, config, request["path"]

    def __enter__(self) -> _Decoder:
        from .decoder import send

        self.errors = tempfile.TemporaryFile()
        environment = {
            **os.environ,
            # -P keeps the working folder off the path, where anything may lie; the child finds what this process finds
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(self.config.max_pixels),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            bufsize=0,
            process_group=0,  # Ctrl-C is this process's to deal with
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.out = self.process.stdout.fileno()
        self.poll = select.poll()
        self.poll.register(self.out, select.POLLIN)
        with contextlib.suppress(OSError, AttributeError):  # a larger pipe only saves switches between processes
            fcntl.fcntl(self.out, fcntl.F_SETPIPE_SZ, 1 << 20)
        with contextlib.suppress(BrokenPipeError):  # it died at once: reading says so
            send(self.process.stdin, self.request, *self.arrays)  # type: ignore[arg-type]
            self.process.stdin.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]

    def messages(self, kind: str) -> Iterator[tuple[dict[str, Any], list[NDArray]]]:
        """Messages of one kind until the end; a refusal is raised as BadMedia."""
        from .decoder import receive

        while True:
            header, arrays = receive(self._fill)
            if header["kind"] == "refused":
                raise BadMedia(header["reason"], header["message"])
            if header["kind"] == "end":
                return
            if header["kind"] == kind:
                yield header, arrays

    def _fill(self, view: memoryview) -> None:
        while view.nbytes:
            if not self.poll.poll(self.config.decode_timeout_s * 1000):
                raise BadMedia(
                    "decode_timeout", f"{self.path}: the decoder stood still for {self.config.decode_timeout_s:g} s."
                )
            count = os.readv(self.out, [view])
            if count == 0:
                code = self.process.wait()
                self.errors.seek(0)
                last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise BadMedia("decoder_crashed", f"{self.path}: the decoding process {how}. {last}".rstrip())
            view = view[count:]


# ---- writing -----------------------------------------------------------------------------------------------------


def encode_rgb(
    path: str | Path,
    pictures: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    *,
    crf: int = 18,
    preset: str = "fast",
) -> None:
    """Write RGB pictures [h, w, 3] of one even size as H.264 mp4; the file appears under its name when it is whole.

    While writing, the temporary neighbour `.NAME.partial` is a fragmented mp4, readable up to the last fragment after
    a crash.

    Raises:
        ValueError: no pictures, or their size is odd or changes.
    """
    import av

    path = Path(path)
    rate = Fraction(fps).limit_denominator(1001)
    partial, whole = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.whole")
    try:
        with av.open(str(partial), "w", "mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as container:
            stream = None
            for picture in pictures:
                height, width = picture.shape[:2]
                if stream is None:
                    if width % 2 or height % 2:
                        raise ValueError(f"{path}: pictures of {width}x{height}; H.264 needs even sizes")
                    options = {"crf": str(crf), "preset": preset, "g": str(max(1, round(2 * rate)))}
                    stream = container.add_stream("libx264", rate, options)
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                elif (width, height) != (stream.width, stream.height):
                    raise ValueError(f"{path}: a picture of {width}x{height} after {stream.width}x{stream.height}")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            if stream is None:
                raise ValueError(f"{path}: no pictures to write")
            container.mux(stream.encode(None))
        with av.open(str(partial)) as source, av.open(str(whole), "w", "mp4", {"movflags": "faststart"}) as target:
            copied = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copied
                    target.mux(packet)
        with open(whole, "rb") as file:
            os.fsync(file.fileno())
        whole.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
