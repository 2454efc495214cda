"""Video files for tests, made on the spot: good ones, odd ones and broken ones. All are tiny."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
BITS = 8  # squares of a frame number
Picture = NDArray[np.uint8]  # [h, w, 3] RGB


def world(seed: int, size: int = 512) -> Picture:
    """A texture with detail at every scale, for a camera to look at."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.normal(size=(n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (4, 16, 64, 160)
    ]
    texture = sum(layer * weight for layer, weight in zip(layers, (30, 30, 30, 20), strict=True))
    return np.clip(texture + rng.uniform(90, 165, 3), 0, 255).astype(np.uint8)


def walk(
    seed: int,
    count: int,
    width: int = WIDTH,
    height: int = HEIGHT,
    *,
    step: tuple[float, float] = (1.5, 0.5),
    zoom: float = 1.0,
    turn_deg: float = 0.0,
    start: int = 0,
) -> list[Picture]:
    """A camera that glides over `world(seed)`: `step` pixels, `zoom` and `turn_deg` from frame to frame."""
    texture = world(seed)
    pictures = []
    for i in range(start, start + count):
        scale, angle = zoom**i, np.radians(turn_deg * i)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        centre = np.array([200.0, 200.0]) + np.array(step) * i
        offset = centre - turn @ (width / 2, height / 2)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        matrix = np.column_stack([turn, offset])
        pictures.append(cv2.warpAffine(texture, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return pictures


def numbered(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[Picture]:
    """Frames that carry their number as dark and bright squares along the top; `number_of` reads it back."""
    pictures = walk(0, count, width, height)
    side = width // BITS
    for i, picture in enumerate(pictures):
        for bit in range(BITS):
            picture[:side, bit * side : (bit + 1) * side] = 235 if i >> bit & 1 else 20
    return pictures


def number_of(gray: NDArray) -> int:
    side = gray.shape[1] / BITS
    centres = [int((bit + 0.5) * side) for bit in range(BITS)]
    return sum(int(gray[int(side / 2), x] > 128) << bit for bit, x in enumerate(centres))


def write(
    path: str | Path,
    pictures: Iterable[NDArray],
    *,
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source_format: str = "rgb24",
    sar: Fraction | None = None,
    rotation_ccw_deg: int = 0,
    color_range: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures at `fps`, or at `times_ms` of their own. The container follows from the name."""
    path = Path(path)
    defaults = {
        "libx264": {"preset": "veryfast", "crf": "20", "threads": "1"},  # the same bytes every time
        "libx265": {"x265-params": "log-level=none", "crf": "20"},
    }
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, fps, defaults.get(codec, {}) | (options or {}))
        assert isinstance(stream, VideoStream)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, source_format)
            if i == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                if sar is not None:
                    stream.codec_context.sample_aspect_ratio = sar
                if color_range:
                    stream.codec_context.color_range = color_range
                if rotation_ccw_deg:
                    stream.set_display_rotation(rotation_ccw_deg)
                if times_ms is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
            if color_range:
                frame = frame.reformat(format=pix_fmt, dst_color_range=color_range)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: str | Path) -> Path:
    """Half a second of a tone and no video."""
    path = Path(path)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 16000)
        assert isinstance(stream, AudioStream)
        tone = np.sin(np.arange(8000) * 0.17).astype(np.float32)[None] * 0.1
        frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packet_ranges(path: str | Path) -> list[tuple[int, int]]:
    """(offset, size) in the file of each video packet, in file order."""
    with av.open(str(path)) as container:
        return sorted((p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size)


def damage(path: str | Path, packet: int) -> Path:
    """Overwrite the body of one packet with noise."""
    path = Path(path)
    offset, size = packet_ranges(path)[packet]
    data = bytearray(path.read_bytes())
    data[offset + 8 : offset + size] = np.random.default_rng(0).bytes(size - 8)
    path.write_bytes(data)
    return path


def cut_off(path: str | Path, keep: float) -> Path:
    """Keep only this share of the file's bytes."""
    path = Path(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def hide_start(path: str | Path, frames: int, fps: int) -> Path:
    """Rewrite an mp4 so that an edit list hides its first frames, which are still needed for decoding."""
    path = Path(path)
    hidden = path.with_suffix(".hidden.mp4")
    with av.open(str(path)) as source, av.open(str(hidden), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                earlier = round(Fraction(frames, fps) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, stream
                target.mux(packet)
    return hidden.replace(path)


def size_changes(path: str | Path, first: list[Picture], second: list[Picture]) -> Path:
    """An mpegts stream whose pictures change their size in the middle."""
    path = Path(path)
    parts = []
    for i, pictures in enumerate((first, second)):
        part = path.with_suffix(f".{i}.ts")
        times = [(j + i * len(first)) * 40 for j in range(len(pictures))]
        write(part, pictures, times_ms=times, options={"bf": "0", "preset": "ultrafast"})
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path
