"""How time and memory of `longtake annotate` grow with the length of a 720p video.

    python benchmarks/long_video.py --minutes 1 3 10

The film: a walk of ten seconds through the synthetic room at 1280 x 720 and 24 frames/s, there and back, over and over.
One there and back is rendered and encoded; longer films repeat its packets, so that they cost no rendering. Growth is
the time per minute of film over that of the shortest film: 1 is linear. Peak memory is the largest sum of the resident
sets of all processes that the command starts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from measure import RESULTS, annotate_and_score, machine, number, print_table, write_result
from numpy.typing import NDArray

from longtake.annotate.video import encode_rgb
from longtake.render.room import Room, camera_path, render_clip

WIDTH, HEIGHT, FPS = 1280, 720, 24
WALK_FRAMES = 10 * FPS
MEMORY_LIMIT_MB = 4096  # for 10 minutes


def there_and_back() -> NDArray[np.int64]:
    """Frames of the walk in the order in which they are shown; the ends are shown once."""
    return np.concatenate([np.arange(WALK_FRAMES), np.arange(WALK_FRAMES - 2, 0, -1)])


def film_once(path: Path) -> dict[str, NDArray]:
    """Encode one there and back; returns c2w [P, 4, 4] and K [P, 3, 3] of its frames."""
    c2w, intrinsics = camera_path("walk", WALK_FRAMES, width=WIDTH, height=HEIGHT)
    print(f"rendering {WALK_FRAMES} frames", file=sys.stderr)
    walk = list(render_clip(Room(), c2w, intrinsics, WIDTH, HEIGHT))
    order = there_and_back()
    encode_rgb(path, (walk[i] for i in order), FPS)
    k = np.tile(np.eye(3), (WALK_FRAMES, 1, 1))
    k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = intrinsics.T
    return {"c2w": c2w[order], "K": k[order]}


def repeat(once: Path, path: Path, num_frames: int) -> int:
    """Write the packets of `once` again and again until there are `num_frames`, in whole rounds; returns how many."""
    with av.open(str(path), "w") as target:
        stream, shift, written = None, 0, 0
        while written < num_frames:
            with av.open(str(once)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(video)
                    stream.time_base = video.time_base
                for packet in source.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue  # the end of the stream
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    target.mux(packet)
                    written += 1
                assert video.time_base
                shift += round(video.frames / FPS / video.time_base)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 3, 10])
    parser.add_argument("--out", type=Path, default=RESULTS / "long_video.json")
    args = parser.parse_args()
    started = machine()
    rows: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="long-"))
    try:
        once = folder / "once.mp4"
        truth = film_once(once)
        for minutes in sorted(args.minutes):
            video = folder / f"{minutes:g}min.mp4"
            frames = repeat(once, video, round(minutes * 60 * FPS))
            rounds = frames // len(truth["c2w"])
            whole = {name: np.tile(values, (rounds, 1, 1)) for name, values in truth.items()}
            found = annotate_and_score(video, folder / f"manifest-{minutes:g}", whole)
            row = {"minutes": frames / FPS / 60, "frames": frames, "megabytes": video.stat().st_size / 1e6} | found
            rows.append(row)
            row["s_per_minute"] = row["seconds"] / row["minutes"]
            row["time_growth"] = row["s_per_minute"] / rows[0]["s_per_minute"]
            row["memory_growth"] = row["peak_mb"] / rows[0]["peak_mb"]
            write_result(args.out, rows, started)
            print(f"{minutes:g} min of film: {found['seconds']:.0f} s, {found['peak_mb']:.0f} MB", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    head = "minutes|frames|s|s/minute|x linear|peak MB|x shortest|posed %|ATE % of path|focal %".split("|")
    table = [
        [
            number(row["minutes"]),
            str(row["frames"]),
            number(row["seconds"], 1),
            number(row["s_per_minute"], 1),
            number(row["time_growth"]),
            number(row["peak_mb"], 0),
            number(row["memory_growth"]),
            number(row["score"]["coverage_pct"], 1),
            number(row["score"].get("ate_pct_of_path"), 3),
            number(row["score"].get("focal_err_pct_median")),
        ]
        for row in rows
    ]
    print_table(head, table)
    worst = max(row["peak_mb"] for row in rows)
    print(f"peak memory {'below' if worst < MEMORY_LIMIT_MB else 'NOT below'} {MEMORY_LIMIT_MB} MB")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
