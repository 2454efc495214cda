"""The child process that touches untrusted media: `python -m longtake.annotate.decoder`, spoken to by `video.py`.

It reads one request from standard input, sets its own limits of memory and open files, answers with messages on
standard output and ends. Whatever libav or an image reader does to this process costs one request. It imports only
numpy, PyAV and OpenCV, so that it starts in about 0.2 s.

A message is a 4-byte length, a JSON header of that length, and the raw bytes of the arrays that its "arrays" lists.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.error
import av.filter
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..records import BadMedia

FORMATS = "mov,matroska,webm,avi,mpegts"
THUMB_SIDE = 160
MAX_REORDER = 16  # frames: the codecs' limit on how far showing may lag behind decoding
SEEK_WORTH = 100  # frames: over a shorter gap decoding on is cheaper than a seek
ALIVE_EVERY = 50  # frames or 1000s of packets between signs of life while nothing can be sent
NS = 1_000_000_000
# Formats whose first plane is luma in native byte order: read without any conversion
LUMA_FIRST = re.compile(r"(?:yuva?j?4\d\dp|gray)(9|10|12|14|16)?(?:le)?|nv12|nv21")


# ---- messages --------------------------------------------------------------------------------------------------


def send(file: BinaryIO, header: dict[str, Any], *arrays: NDArray) -> None:
    """Write one message to an unbuffered file."""
    text = json.dumps({**header, "arrays": [[a.dtype.str, a.shape] for a in arrays]}).encode()
    pixels = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays]
    for part in (struct.pack("<I", len(text)) + text, *pixels):
        view = memoryview(part)
        while view.nbytes:
            view = view[file.write(view) :]


def receive(fill: Callable[[memoryview], None]) -> tuple[dict[str, Any], list[NDArray]]:
    """Read one message; `fill` fills a whole buffer or raises."""
    size = bytearray(4)
    fill(memoryview(size))
    text = bytearray(struct.unpack("<I", size)[0])
    fill(memoryview(text))
    header = json.loads(text)
    arrays = []
    for dtype, shape in header.pop("arrays"):
        array = np.empty(shape, np.dtype(dtype))
        fill(array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return header, arrays


# ---- containers ------------------------------------------------------------------------------------------------


def open_video(path: str, max_pixels: int) -> tuple[InputContainer, VideoStream]:
    """Open a file as one of FORMATS and choose its video stream (not a cover picture), ready to decode."""
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container = av.open(path, options=options, metadata_errors="replace")
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        with open(path, "rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp":
            raise BadMedia("truncated", f"{path}: its index is missing; the file is cut off or unfinished.") from error
        raise BadMedia("not_a_video", f"{path}: no video in a container that is read here ({FORMATS}).") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no"
        raise BadMedia("no_video_stream", f"{path}: holds {kinds} streams but no video.")
    streams = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise BadMedia("unsupported_codec", f"{path}: no decoder for its video codec; convert it to H.264.")
    stream = max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)
    check_size(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
    stream.codec_context.options = {"max_pixels": str(max_pixels)}  # in av.open it would be ignored
    stream.thread_type = "AUTO"  # type: ignore[assignment]
    stream.codec_context.thread_count = min(os.cpu_count() or 1, 8)
    return container, stream


def check_size(path: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadMedia("resolution_too_large", f"{path}: {width}x{height} is over the limit of {max_pixels} pixels.")


def nanoseconds(pts: int, time_base: Fraction) -> int:
    """A time stamp on the container's clock, to the nearest nanosecond: packets and frames agree exactly."""
    return (pts * time_base.numerator * NS * 2 + time_base.denominator) // (2 * time_base.denominator)


def frame_ns(frame: VideoFrame) -> int | None:
    pts = frame.pts if frame.pts is not None else frame.dts
    return None if pts is None or frame.time_base is None else nanoseconds(pts, frame.time_base)


def decode(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame that can be decoded from here on, in the order of showing. Damaged packets are passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:  # the last packet was empty and has drained the decoder
            return
        except av.error.FFmpegError as error:  # damaged from here on; what the decoder still holds is good
            if isinstance(error, MemoryError):
                raise
            packet = None
        try:
            decoded = stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            decoded = []
        yield from (frame for frame in decoded if not frame.is_corrupt)
        if packet is None:
            return


def deinterlace(frames: Iterator[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """One whole picture for each frame, at its time (bwdif); frames flagged progressive pass as they are."""
    graph = av.filter.Graph()
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(graph.add_buffer(template=stream), bwdif, graph.add("buffersink")).configure()

    def ready() -> Iterator[VideoFrame]:
        while True:
            try:
                yield graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    for frame in frames:
        graph.vpush(frame)
        yield from ready()
    graph.vpush(None)
    yield from ready()


def upright_turn(frame: VideoFrame) -> tuple[int, bool]:
    """What the display matrix asks for: a left-right flip or none, then a turn of 0, 90, 180 or 270 deg clockwise."""
    if SideDataType.DISPLAYMATRIX not in frame.side_data:
        return 0, False
    a, b, _, c, d = struct.unpack("<5i", bytes(frame.side_data[SideDataType.DISPLAYMATRIX])[:20])  # type: ignore
    mirrored = a * d - b * c < 0
    clockwise = math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))
    return round(clockwise / 90) % 4 * 90, mirrored


# ---- probe -----------------------------------------------------------------------------------------------------


def probe_video(path: str, max_pixels: int, alive: Callable[[], None]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The facts about a file and the times of its frames, from one pass over the packets and one decoded frame.

    The container's claims about size, range, rotation and interlacing can be wrong, the first frame's cannot; and
    packets shown before the first frame that decodes never reach a viewer.
    """
    container, stream = open_video(path, max_pixels)
    time_base = stream.time_base
    assert time_base is not None  # every opened stream has one
    shown: list[int | None] = []
    last_dts: int | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            break  # damaged from here on
        if packet is None or (packet.size == 0 and packet.pts is None):
            break
        if packet.dts is not None:
            if last_dts is not None and (last_dts - packet.dts) * time_base > 1:
                raise BadMedia(
                    "timestamps_go_back",
                    f"{path}: time stamps fall back by more than 1 s after {float(last_dts * time_base):.3f} s, as"
                    " where recordings were joined; split it there, or re-encode it.",
                )
            last_dts = packet.dts
        if not packet.is_discard:  # an edit list cuts it off
            shown.append(packet.pts)
        if len(shown) % (20 * ALIVE_EVERY) == 0:
            alive()

    container, stream = open_video(path, max_pixels)
    first = next(decode(container, stream), None)
    if first is None:
        reason = "undecodable" if shown else "too_few_frames"
        raise BadMedia(reason, f"{path}: not one of its {len(shown)} frames can be decoded.")
    check_size(path, first.width, first.height, max_pixels)
    first_ns = frame_ns(first)
    if first_ns is None or None in shown:  # a container without presentation times: the decoder has to say them
        container, stream = open_video(path, max_pixels)
        times = []
        for frame in decode(container, stream):
            times.append(frame_ns(frame))
            if len(times) % ALIVE_EVERY == 0:
                alive()
        if None in times:
            raise BadMedia("no_timestamps", f"{path}: its frames carry no times; re-encode it as mp4 or mkv.")
    else:
        times = [nanoseconds(pts, time_base) for pts in shown if pts is not None]
    pts_ns = np.unique(np.array(times, np.int64))
    if first_ns is not None and container.format.name != "avi":
        pts_ns = pts_ns[pts_ns >= first_ns]

    context = stream.codec_context
    rotation_deg, mirrored = upright_turn(first)
    sar = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 8) <= sar <= 8:  # a broken tag: no camera or tape format comes near
        sar = Fraction(1)
    width, height = stretched_size(first.width, first.height, sar.numerator, sar.denominator)
    check_size(path, width, height, max_pixels)
    if rotation_deg in (90, 270):
        width, height = height, width
    # Constant frame rate means steps that differ by no more than the rounding to the container's clock
    steps = np.diff(pts_ns)
    tick_ns = float(time_base * NS)
    is_vfr = bool(steps.size and np.abs(steps - np.median(steps)).max() > 1.01 * tick_ns + 0.01 * np.median(steps))
    facts = {
        "container": container.format.name,
        "codec": context.codec.canonical_name,
        "pix_fmt": first.format.name,
        "coded_width": first.width,
        "coded_height": first.height,
        "width": width,
        "height": height,
        "rotation_deg": rotation_deg,
        "mirrored": mirrored,
        "sar_num": sar.numerator,
        "sar_den": sar.denominator,
        "color_range": color_range(first),
        "interlaced": first.interlaced_frame,
        "is_vfr": is_vfr,
        "tagged_fps": float(stream.average_rate) if stream.average_rate else math.nan,
        "origin_ns": int(pts_ns[0]),
    }
    return facts, pts_ns - pts_ns[0]


def probe_images(paths: list[str], max_pixels: int) -> dict[str, Any]:
    """The facts about a folder of images, from the first of them."""
    image = read_image(paths[0])
    if image is None:
        raise BadMedia("undecodable", f"{paths[0]}: not a readable image.")
    height, width = image.shape[:2]
    check_size(paths[0], width, height, max_pixels)
    return {
        "container": "images",
        "codec": os.path.splitext(paths[0])[1][1:].lower(),
        "pix_fmt": "bgr24",
        "coded_width": width,
        "coded_height": height,
        "width": width,
        "height": height,
        "rotation_deg": 0,
        "mirrored": False,
        "sar_num": 1,
        "sar_den": 1,
        "color_range": "pc",
        "interlaced": False,
        "is_vfr": False,
        "tagged_fps": math.nan,
        "origin_ns": 0,
    }


def color_range(frame: VideoFrame) -> str:
    """ "tv", "pc" or "unknown"; what is not said is "tv" for YUV by convention, and "pc" for gray and RGB."""
    if frame.format.name.startswith("yuvj"):
        return "pc"
    return {int(ColorRange.MPEG): "tv", int(ColorRange.JPEG): "pc"}.get(int(frame.color_range), "unknown")


def stretched_size(width: int, height: int, sar_num: int, sar_den: int) -> tuple[int, int]:
    """Size with square pixels: the side along which pixels are long grows, so none is thrown away."""
    if sar_num >= sar_den:
        return round(width * sar_num / sar_den), height
    return width, round(height * sar_den / sar_num)


# ---- from decoded frame to upright picture -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of the picture that is asked for. Sizes and crop are those of the frame as it lies in the file, but
    with square pixels; turning it upright comes last, on the fewest pixels."""

    size: tuple[int, int]  # width, height with square pixels
    crop: tuple[int, int, int, int]  # x, y, width, height
    out: tuple[int, int]  # width, height of the crop after shrinking
    rotation_deg: int  # clockwise, after the flip
    mirrored: bool

    @classmethod
    def of(cls, facts: dict[str, Any], crop: tuple[int, int, int, int] | None, max_side: int | None) -> View:
        """`facts` as `VideoInfo` has them; `crop` in display pixels, None for all; long side at most `max_side`."""
        size = stretched_size(facts["coded_width"], facts["coded_height"], facts["sar_num"], facts["sar_den"])
        x, y, w, h = crop or (0, 0, facts["width"], facts["height"])
        turned = facts["rotation_deg"]
        if turned == 90:
            x, y, w, h = y, size[1] - x - w, h, w
        elif turned == 180:
            x, y = size[0] - x - w, size[1] - y - h
        elif turned == 270:
            x, y, w, h = size[0] - y - h, x, h, w
        if facts["mirrored"]:
            x = size[0] - x - w
        return cls(
            size=size, crop=(x, y, w, h), out=shrunk(w, h, max_side), rotation_deg=turned, mirrored=facts["mirrored"]
        )

    def cut(self, picture: NDArray) -> NDArray:
        """Stretch to square pixels, crop and shrink a picture as it lies in the file."""
        if picture.shape[1::-1] != self.size:
            picture = cv2.resize(picture, self.size, interpolation=cv2.INTER_LINEAR)
        x, y, w, h = self.crop
        picture = picture[y : y + h, x : x + w]
        return picture if (w, h) == self.out else cv2.resize(picture, self.out, interpolation=cv2.INTER_AREA)

    def upright(self, picture: NDArray) -> NDArray:
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, -self.rotation_deg // 90))


def shrunk(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    scale = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


class VideoPixels:
    """Reads gray, thumbnail and RGB out of decoded frames."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.to_gray, self.to_rgb, self.to_thumb = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self.levels: dict[tuple[int, bool], NDArray[np.uint8]] = {}
        # The whole picture so small that the crop's long side is THUMB_SIDE
        small = shrunk(*view.crop[2:], THUMB_SIDE)
        scale = max(small) / max(view.crop[2:])
        self.thumb_size = tuple(max(1, round(s * scale)) for s in view.size)
        x, y = (min(round(o * scale), s - 1) for o, s in zip(view.crop[:2], self.thumb_size, strict=True))
        self.thumb_crop = np.s_[y : y + small[1], x : x + small[0]]

    def gray(self, frame: VideoFrame) -> NDArray[np.uint8]:
        match = LUMA_FIRST.fullmatch(frame.format.name)
        if match is None:  # swscale knows every format; gray comes out full range
            gray = self.to_gray.reformat(frame, format="gray", dst_color_range=ColorRange.JPEG, threads=1)
            return self.view.upright(self.view.cut(plane(gray, np.uint8)))
        bits = int(match[1] or 8)
        range_ = color_range(frame)
        full = range_ == "pc" or (range_ == "unknown" and frame.format.name.startswith("gray"))
        luma = self.view.cut(plane(frame, np.uint8 if bits == 8 else np.uint16))
        levels = self.full_range(bits, full)
        return self.view.upright(cv2.LUT(luma, levels) if bits == 8 else levels[luma])

    def full_range(self, bits: int, full: bool) -> NDArray[np.uint8]:
        """Table from stored luma to 8 bits, 0 black and 255 white."""
        if (bits, full) not in self.levels:
            black, white = (0, 2**bits - 1) if full else (16 << (bits - 8), 235 << (bits - 8))
            values = (np.arange(256 if bits == 8 else 65536) - black) * (255 / (white - black))
            self.levels[bits, full] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return self.levels[bits, full]

    def thumb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        width, height = self.thumb_size
        small = self.to_thumb.reformat(
            frame,
            width,
            height,
            "rgb24",
            interpolation=Interpolation.BILINEAR,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        return self.view.upright(plane(small, np.uint8, 3)[self.thumb_crop])

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        rgb = self.to_rgb.reformat(
            frame, *self.view.size, "rgb24", interpolation=Interpolation.BICUBIC, dst_color_range=ColorRange.JPEG
        )
        return self.view.upright(self.view.cut(plane(rgb, np.uint8, 3)))


def plane(frame: VideoFrame, dtype: type, channels: int = 1) -> NDArray:
    """The first plane without its padding, [h, w] or [h, w, channels], not copied."""
    stored = frame.planes[0]
    rows = np.frombuffer(memoryview(stored), dtype).reshape(stored.height, -1)[: frame.height, : frame.width * channels]
    return rows if channels == 1 else rows.reshape(frame.height, frame.width, channels)


class ImagePixels:
    """The same for images, which OpenCV gives as BGR, upright."""

    def __init__(self, view: View) -> None:
        self.view = view

    def gray(self, image: NDArray) -> NDArray:
        return self.view.cut(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))

    def thumb(self, image: NDArray) -> NDArray:
        small = self.view.cut(image)
        size = shrunk(small.shape[1], small.shape[0], THUMB_SIDE)
        return cv2.cvtColor(cv2.resize(small, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    def rgb(self, image: NDArray) -> NDArray:
        return cv2.cvtColor(self.view.cut(image), cv2.COLOR_BGR2RGB)


def read_image(path: str) -> NDArray[np.uint8] | None:
    """BGR, turned upright by its EXIF tag, 8 bits; None where it is no image."""
    with open(path, "rb") as file:
        data = np.frombuffer(file.read(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None  # type: ignore[return-value]


# ---- the frames asked for ----------------------------------------------------------------------------------------


def video_frames(
    request: dict[str, Any], pts_ns: NDArray[np.int64], indices: NDArray[np.int64], alive: Callable[[], None]
) -> Iterator[tuple[int, VideoFrame]]:
    """(index, frame) for those of the sorted `indices` that can be decoded; `pts_ns` [N] of the whole video."""
    path, facts = request["path"], request["facts"]
    size = facts["coded_width"], facts["coded_height"]
    in_order = facts["container"] == "avi"  # its times are those of decoding: frames are counted, from the first on

    def from_here(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
        def checked() -> Iterator[VideoFrame]:
            for frame in decode(container, stream):
                if (frame.width, frame.height) != size:
                    now = "x".join(map(str, (frame.width, frame.height)))
                    raise BadMedia(
                        "frame_size_changes",
                        f"{path}: frames of {size[0]}x{size[1]} turn into {now}; re-encode it at one size.",
                    )
                yield frame

        frames = deinterlace(checked(), stream) if facts["interlaced"] else checked()
        for count, frame in enumerate(frames):
            if count % ALIVE_EVERY == ALIVE_EVERY - 1:
                alive()
            if in_order:
                if count < len(pts_ns):
                    yield int(pts_ns[count]), frame
            elif (at := frame_ns(frame)) is not None:
                yield at - facts["origin_ns"], frame

    def starting_at(first: int) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from no later than `first`, as (time, frame)."""
        container, stream = open_video(path, request["max_pixels"])
        if first > 2 * MAX_REORDER and not in_order:
            assert stream.time_base is not None
            # A key frame's own leading pictures cannot be decoded after a seek: aim before them
            target_ns = int(pts_ns[first - MAX_REORDER]) + facts["origin_ns"]
            with contextlib.suppress(av.error.FFmpegError):  # it cannot seek
                container.seek(int(Fraction(target_ns, NS) / stream.time_base), stream=stream)
            frames = from_here(container, stream)
            ahead = next(frames, None)
            if ahead is not None and ahead[0] <= pts_ns[first]:
                yield ahead
                yield from frames
                return
            container, stream = open_video(path, request["max_pixels"])  # its index misleads: from the beginning
        yield from from_here(container, stream)

    for run in np.split(indices, np.flatnonzero(np.diff(indices) > SEEK_WORTH) + 1) if indices.size else ():
        wanted = iter(run.tolist())
        index = next(wanted)
        for at, frame in starting_at(index):
            while index is not None and pts_ns[index] < at:  # not decodable: passed over
                index = next(wanted, None)
            if index is None:
                break
            if pts_ns[index] == at:
                yield index, frame
                index = next(wanted, None)
                if index is None:
                    break


def image_frames(request: dict[str, Any], indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, BGR image) for those of the `indices` that can be decoded."""
    size = request["facts"]["coded_width"], request["facts"]["coded_height"]
    for index in indices.tolist():
        path = request["images"][index]
        image = read_image(path)
        if image is None:
            continue
        if image.shape[1::-1] != size:
            raise BadMedia(
                "frame_size_changes",
                f"{path}: {image.shape[1]}x{image.shape[0]}, but the first image is {size[0]}x{size[1]}; give images of"
                " one size at a time.",
            )
        yield index, image


def answer(request: dict[str, Any], arrays: list[NDArray], out: BinaryIO) -> None:
    def alive() -> None:
        send(out, {"kind": "alive"})

    if request["do"] == "probe":
        if request["images"]:
            send(out, {"kind": "facts", **probe_images(request["images"], request["max_pixels"])})
        else:
            facts, pts_ns = probe_video(request["path"], request["max_pixels"], alive)
            send(out, {"kind": "facts", **facts}, pts_ns)
        return
    pts_ns, indices = arrays
    view = View.of(request["facts"], request["crop"], request["max_side"])
    if request["images"]:
        found, pixels = image_frames(request, indices), ImagePixels(view)
    else:
        found, pixels = video_frames(request, pts_ns, indices, alive), VideoPixels(view)
    for index, frame in found:
        if request["do"] == "rgb":
            send(out, {"kind": "frame", "index": index}, pixels.rgb(frame))  # type: ignore[arg-type]
        else:
            send(out, {"kind": "frame", "index": index}, pixels.gray(frame), pixels.thumb(frame))  # type: ignore[arg-type]


def main() -> None:
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not mix with messages

    def fill(view: memoryview) -> None:
        while view.nbytes:
            count = sys.stdin.buffer.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the request ended early")
            view = view[count:]

    request, arrays = receive(fill)
    limit = request["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # it writes nothing but its own errors
    cv2.setNumThreads(1)
    try:
        answer(request, arrays, out)
    except BadMedia as error:
        send(out, {"kind": "refused", "reason": error.reason, "message": str(error)})
    except MemoryError:
        send(
            out,
            {
                "kind": "refused",
                "reason": "out_of_memory",
                "message": f"{request['path']}: decoding it takes over {limit >> 20} MB",
            },
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody listens any more
            return
        send(out, {"kind": "refused", "reason": "unreadable", "message": f"{request['path']}: {error.strerror}"})
    else:
        send(out, {"kind": "end"})


if __name__ == "__main__":
    main()
