"""The manifest at 200,000 clips, beside the same rows in Lance, in Iceberg and as one row per frame.

    python benchmarks/manifest_scale.py --rows 200000 --peer-rows 20000 --scratch /big/disk

Rows are what annotation writes of clips of 161 to 961 frames: smooth paths with an estimator's jitter, zooms, uneven
times, a dozen measurements a frame, captions. Every step runs in a process of its own: its seconds, and its peak
memory. The peers get `--peer-rows` rows, and so does a manifest of ours, for numbers side by side; the large manifest
is measured by itself. Peers have what they offer for look-ups: Lance an index on clip_id, Iceberg row groups as small
as ours, frames rows an integer clip number in order (pruned by statistics) and a table of clips beside them.
The files have just been written: reads are from the page cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from measure import RESULTS, machine, measured, number, print_table, write_result

from longtake.datasets.manifest import create_manifest, open_manifest
from longtake.datasets.readers import frame_times_s
from longtake.datasets.schema import PER_FRAME, SCHEMA, SCHEMA_ID
from longtake.geometry import rotation_from_vector

BATCH = 2000  # rows an append
LOOKUPS = {"manifest": 200, "lance": 200, "iceberg": 10, "frames": 20}
SHUFFLED = {"manifest": 1000, "lance": 1000, "iceberg": 8, "frames": 64}  # clips
LONGEST = 961
WINDOW = {"frames": 81, "fps": 16.0, "size": (480, 832), "pictures": False}
CAMERA = ["clip_id", "c2w", "intrinsics", "pose_valid"]
TIMES = "pts_s start_s num_frames fps_num fps_den".split()
META = "clip_id status num_frames motion_class scale_kind fov_x_median_deg tracked_ratio luma".split()
SQL = "status = 'ok' and num_frames >= 481 and scale_kind = 'metric' and fov_x_median_deg > 60"
WORDS = """a the of with under over along between narrow wide quiet crowded street river forest harbour kitchen stairs
    bridge market garden roof tunnel field morning evening light rain fog snow people bicycles trees windows boats
    reflections shadows stone brick glass wooden wet distant bright grey golden slowly past towards""".split()
STORES = ("manifest", "lance", "iceberg", "frames")


# ---- rows --------------------------------------------------------------------------------------------------------


class Rows:
    """Made-up rows, no two alike; row i is the same in every process."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        t = np.linspace(0, 1, LONGEST)[:, None]
        self.paths = []
        for _ in range(64):
            turns, centres = (
                sum(
                    rng.normal(0, size / f, 3) * np.sin(2 * np.pi * f * t + rng.uniform(0, 6.3, 3))
                    for f in (0.5, 1, 2, 5, 11)
                )
                for size in (0.5, 3.0)
            )
            jitter = rng.normal(0, 3e-4, (2, LONGEST, 3))
            self.paths.append((rotation_from_vector(turns + jitter[0]), centres + 5 * jitter[1]))
        self.noise = rng.normal(0, 1, 1 << 20).astype(np.float32)
        self.templates = {
            "source_dataset": "benchmark", "license": "CC-BY-4.0", "codec": "h264", "pix_fmt": "yuv420p",
            "container": "mov,mp4,m4a,3gp,3g2,mj2", "width": 1280, "height": 720, "coded_width": 1280,
            "coded_height": 720, "rotation_deg": 0, "mirrored": False, "sar_num": 1, "sar_den": 1, "color_range": "tv",
            "interlaced": False, "crop": [0, 0, 1280, 720], "boundary": "cut", "camera_convention": "opencv_c2w",
            "pixel_center": "integer", "distortion_model": "opencv_radial", "pose_source": "longtake",
            "flags": ["loop_closed"], "num_cuts": 0, "filter_profile": "default/annotate",
            "filter_not_measured": ["dover"], "caption_model": "captioner-3b", "run_id": "20250102T030405Z-abcdef",
            "config_hash": "0123456789abcdef", "software_version": "0.1.0",
            "stage_versions": json.dumps({"probe": "3", "shots": "2", "track": "14"}),
        }  # fmt: skip

    def __call__(self, i: int) -> dict[str, Any]:
        rng = np.random.default_rng([1, i])
        n = int(rng.integers(161, LONGEST + 1))
        first = int(rng.integers(0, LONGEST - n + 1))
        rotation, centre = self.paths[int(rng.integers(len(self.paths)))]
        turn = rotation_from_vector(rng.normal(0, 1, 3))
        c2w = np.empty((n, 3, 4), np.float32)
        c2w[:, :, :3] = turn @ rotation[first : first + n]
        c2w[:, :, 3] = centre[first : first + n] @ turn.T * rng.uniform(0.2, 3) + 1e-3 * self._noise(
            rng, n * 3
        ).reshape(n, 3)
        focal = np.full(n, rng.uniform(600, 1500))
        if zoom := rng.random() < 0.3:
            focal *= 1 + rng.uniform(0.1, 0.8) * np.sin(np.linspace(0, rng.uniform(1, 6), n)) ** 2
        intrinsics = np.column_stack([focal, focal, np.full(n, 639.5), np.full(n, 359.5)]).astype(np.float32)
        uneven = rng.random() < 0.2
        steps = rng.integers(28, 40, n) / 1000 if uneven else np.full(n, 1 / 30)
        times = np.cumsum(steps)
        fov = np.degrees(2 * np.arctan(640 / focal))
        name = "".join(rng.choice(list("0123456789abcdef"), 64))
        failed = rng.random() < 0.05
        reasons = ["low_luma"] if rng.random() < 0.2 else []
        luma, metric = float(rng.uniform(30, 200)), bool(rng.random() < 0.6)
        row = self.templates | {
            "clip_id": f"{name[:8]}-{name[8:12]}-5{name[13:16]}-a{name[17:20]}-{name[20:32]}",
            "origin": "annotated",
            "status": "failed" if failed else "filtered" if reasons else "ok",
            "source_uri": f"/footage/{name[:2]}/{name[2:14]}.mp4",
            "uri": f"/footage/{name[:2]}/{name[2:14]}.mp4",
            "source_sha256": name,
            "sha256": name,
            "group_id": name,
            "bytes": int(rng.integers(10**6, 10**8)),
            "fps_num": 30,
            "fps_den": 1,
            "tagged_fps": 30.0,
            "is_vfr": uneven,
            "origin_s": 0.0,
            "num_frames": n,
            "frame_start": first,
            "frame_stop": first + n,
            "start_s": float(times[0]),
            "end_s": float(times[-1] + 1 / 30),
            "duration_s": float(times[-1] - times[0] + 1 / 30),
            "filter_reasons": ["too_few_tracks"] if failed else reasons,
            "created_at": datetime.fromtimestamp(1.7e9 + i, UTC),
            "timings_s": json.dumps({"probe": round(rng.random(), 3), "track": round(60 * rng.random(), 3)}),
        }
        if failed:
            return row | {"error_stage": "track", "error": "only 31 features could be followed from frame to frame"}
        frame = {
            "frame_reproj_rmse_px": 0.5 + 0.1 * self._noise(rng, n),
            "frame_sampson_px": 0.3 + 0.08 * self._noise(rng, n),
            "frame_inlier_ratio": (rng.integers(300, 400, n) / 400).astype(np.float32),
            "frame_coverage": (rng.integers(40, 64, n) / 64).astype(np.float32),
            "frame_dyn_ratio": (rng.integers(0, 60, n) / 400).astype(np.float32),
            "frame_step_px": np.abs(3 + self._noise(rng, n)),
            "frame_focal_sigma": np.full(n, 0.01, np.float32),
            "frame_blur": 0.3 + 0.02 * self._noise(rng, n),
            "frame_luma": (luma + 10 * np.sin(np.linspace(0, 9, n)) + self._noise(rng, n)).astype(np.float32),
            "frame_saturation": 60 + self._noise(rng, n),
            "frame_vmaf_motion": np.abs(4 + self._noise(rng, n)),
            "frame_duplicate": np.zeros(n, np.float32),
            "frame_num_tracked": rng.integers(300, 400, n).astype(np.int32),
            "frame_is_keyframe": np.arange(n) % 9 == 0,
        }
        return row | frame | {
            "pts_s": times if uneven else None,
            "c2w": c2w.ravel(),
            "pose_valid": np.ones(n, bool),
            "intrinsics": intrinsics.ravel(),
            "intrinsics_mode": "per_frame" if zoom else "static",
            "focal_status": "estimated",
            "distortion": [float(rng.normal(0, 0.1)), 0.0],
            "scale_kind": "metric" if metric else "relative",
            "scale_source": "depth" if metric else None,
            "motion_class": str(rng.choice(["general", "general", "rotation", "planar", "static"])),
            "fov_x_min_deg": float(fov.min()),
            "fov_x_median_deg": float(np.median(fov)),
            "fov_x_max_deg": float(fov.max()),
            "tracked_ratio": 1.0,
            "ba_rmse_px": float(rng.uniform(0.2, 0.9)),
            "inlier_ratio": float(rng.uniform(0.6, 1)),
            "luma": luma,
            "flow_px": float(rng.uniform(0, 40)),
            "trans_total_m": float(rng.uniform(0, 50)),
            "rot_total_deg": float(rng.uniform(0, 400)),
            "filter_values": json.dumps({"luma": {"value": luma, "min": 40.0, "max": None, "passed": not reasons}}),
            "caption": " ".join(rng.choice(WORDS, int(rng.integers(25, 60)))),
            "track_stats": json.dumps({"num_points": int(rng.integers(500, 9000)), "ba_rmse_px": 0.4}),
        }  # fmt: skip

    def _noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        at = int(rng.integers(0, len(self.noise) - n))
        return self.noise[at : at + n]


def chunks_of(folder: Path) -> Iterator[pa.Table]:
    """The rows of a manifest as the peers get them."""
    for path in open_manifest(folder).paths():
        for batch in pq.ParquetFile(path).iter_batches(512):
            yield pa.Table.from_batches([batch]).cast(SCHEMA)


# ---- steps, each in a process of its own ---------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(run: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of the fastest of some runs."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return float(best)


def spread(seconds: list[float]) -> dict[str, float]:
    ms = 1000 * np.array(seconds)
    return {"median_ms": float(np.median(ms)), "p99_ms": float(np.percentile(ms, 99)), "max_ms": float(ms.max())}


def write_manifest(folder: Path, rows: int) -> dict[str, Any]:
    manifest, make, making, appending, commits = create_manifest(folder), Rows(), 0.0, 0.0, []

    for first in range(0, rows, BATCH):
        start = time.perf_counter()
        batch = [make(i) for i in range(first, min(first + BATCH, rows))]
        middle = time.perf_counter()
        manifest.append(batch)
        making += middle - start
        commits.append(time.perf_counter() - middle)
    appending = sum(commits)
    compacting = timed(manifest.compact)
    start = time.perf_counter()
    manifest.append([make(i) for i in range(rows, rows + 64)])  # as annotation commits
    return {
        "seconds": appending + compacting,
        "append_s": appending,
        "compact_s": compacting,
        "making_rows_s": making,
        "first_append_s": commits[0],
        "last_append_s": commits[-1],
        "commit_of_64_s": time.perf_counter() - start,
        "bytes": size_of(folder),
        "parts": len(manifest.snapshot().parts),
    }


def write_lance(folder: Path, source: Path) -> dict[str, Any]:
    import lance

    reader = pa.RecordBatchReader.from_batches(SCHEMA, (b for table in chunks_of(source) for b in table.to_batches()))
    seconds = timed(lambda: lance.write_dataset(reader, str(folder)))
    index = timed(lambda: lance.dataset(str(folder)).create_scalar_index("clip_id", "BTREE"))
    return {"seconds": seconds + index, "index_s": index, "bytes": size_of(folder)}


def iceberg(folder: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    folder.mkdir(exist_ok=True)
    return SqlCatalog("scale", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")


def write_iceberg(folder: Path, source: Path) -> dict[str, Any]:
    catalog = iceberg(folder)
    catalog.create_namespace("n")
    table = catalog.create_table("n.clips", SCHEMA, properties={"write.parquet.row-group-limit": "64"})
    waiting: list[pa.Table] = []

    def write() -> None:
        for chunk in chunks_of(source):
            waiting.append(chunk)
            if sum(map(len, waiting)) >= BATCH:
                table.append(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            table.append(pa.concat_tables(waiting))

    return {"seconds": timed(write), "bytes": size_of(folder)}


def write_frames(folder: Path, source: Path) -> dict[str, Any]:
    folder.mkdir()
    scalars = [f.name for f in SCHEMA if f.name not in PER_FRAME]

    def write() -> None:
        clips = frames = None
        count = 0
        for chunk in chunks_of(source):
            number = np.arange(count, count + len(chunk), dtype=np.int32)
            count += len(chunk)
            of_clips = chunk.select(scalars).append_column("clip", pa.array(number))
            lengths = np.where(chunk["c2w"].is_valid(), chunk["num_frames"], 0).astype(np.int64)
            columns: dict[str, Any] = {"clip": np.repeat(number, lengths)}
            columns["frame"] = np.arange(len(columns["clip"]), dtype=np.int32) - np.repeat(
                np.cumsum(lengths) - lengths, lengths
            ).astype(np.int32)
            times = chunk.select(TIMES).filter(chunk["c2w"].is_valid()).to_pylist()
            columns["pts_s"] = np.concatenate([frame_times_s(row) for row in times])
            for name, width in PER_FRAME.items():
                flat = chunk[name].combine_chunks().drop_null().flatten()
                if len(flat) != width * len(columns["clip"]):
                    continue  # not there, or not of every clip
                flat = flat.to_numpy(zero_copy_only=False)
                for k in range(width):
                    columns[f"{name}_{k}" if width > 1 else name] = flat[k::width]
            table = pa.table(columns)
            if clips is None:
                options = {"compression": "zstd"}
                split = [n for n in table.column_names if pa.types.is_floating(table.field(n).type)]
                clips = pq.ParquetWriter(folder / "clips.parquet", of_clips.schema, **options)
                frames = pq.ParquetWriter(
                    folder / "frames.parquet",
                    table.schema,
                    use_dictionary=["clip"],
                    use_byte_stream_split=split,
                    **options,
                )
            clips.write_table(of_clips)
            frames.write_table(table, row_group_size=64 * 512)  # pyright: ignore[reportOptionalMemberAccess]
        clips.close()  # pyright: ignore[reportOptionalMemberAccess]
        frames.close()  # pyright: ignore[reportOptionalMemberAccess]

    return {"seconds": timed(write), "bytes": size_of(folder)}


def readers(store: str, folder: Path) -> tuple[Callable[[str], Any], Callable[[], Any], Callable[[], Any]]:
    """How a store looks a clip up, scans the metadata, and filters all rows down to ids."""
    if store == "manifest":
        manifest = open_manifest(folder)
        return (
            manifest.row,
            lambda: manifest.table(META),
            lambda: manifest.table(["clip_id"], CONDITION)["clip_id"],
        )
    if store == "lance":
        import lance

        data = lance.dataset(str(folder))
        return (
            lambda clip_id: data.to_table(filter=f"clip_id = '{clip_id}'").to_pylist(),
            lambda: data.to_table(columns=META),
            lambda: data.to_table(columns=["clip_id"], filter=SQL)["clip_id"],
        )
    if store == "iceberg":
        from pyiceberg.expressions import EqualTo

        table = iceberg(folder).load_table("n.clips")
        return (
            lambda clip_id: table.scan(row_filter=EqualTo("clip_id", clip_id)).to_arrow(),
            lambda: table.scan(selected_fields=tuple(META)).to_arrow(),
            lambda: table.scan(row_filter=SQL, selected_fields=("clip_id",)).to_arrow()["clip_id"],
        )
    clips, frames = ds.dataset(folder / "clips.parquet"), ds.dataset(folder / "frames.parquet")

    def look_up(clip_id: str) -> Any:
        (row,) = clips.to_table(filter=ds.field("clip_id") == clip_id).to_pylist()
        return row, frames.to_table(filter=ds.field("clip") == row["clip"])

    return (
        look_up,
        lambda: clips.to_table(META),
        lambda: clips.to_table(["clip_id"], filter=CONDITION)["clip_id"],
    )


CONDITION = (
    (ds.field("status") == "ok")
    & (ds.field("num_frames") >= 481)
    & (ds.field("scale_kind") == "metric")
    & (ds.field("fov_x_median_deg") > 60)
)


def read_lookup(store: str, folder: Path, ids: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    look_up, _, _ = readers(store, folder)
    look_up(ids[0])
    first = time.perf_counter() - start
    return {"first_with_opening_ms": 1000 * first} | spread([timed(lambda i=i: look_up(i)) for i in ids[1:]])


def read_scan(store: str, folder: Path, ids: list[str]) -> dict[str, Any]:
    return {"seconds": timed(readers(store, folder)[1], 3)}


def read_filter(store: str, folder: Path, ids: list[str]) -> dict[str, Any]:
    _, _, choose = readers(store, folder)
    return {"seconds": timed(choose, 3), "found": len(choose())}


def read_shuffled(store: str, folder: Path, ids: list[str]) -> dict[str, Any]:
    """Cameras of clips in random order: ours by the training loader, with everything that it does; peers' bare rows."""
    wanted = SHUFFLED[store]
    if store == "manifest":
        from longtake.datasets.training import TrainingLoader

        start = time.perf_counter()
        stream = open_manifest(folder).filter("status == 'ok'").to_torch(**WINDOW, stream=True)
        planned = time.perf_counter() - start
        loader, seen = TrainingLoader(stream, batch_size=8, num_workers=2), 0
        start = time.perf_counter()
        for batch in loader:
            if seen == 0:
                first = time.perf_counter() - start
            seen += len(batch["clip_id"])
            if seen >= wanted:
                break
        seconds = time.perf_counter() - start
        return {"plan_s": planned, "first_batch_s": first, "clips_per_s": seen / seconds, "clips": seen}
    if store == "lance":
        import lance

        data = lance.dataset(str(folder))
        order = np.random.default_rng(0).permutation(data.count_rows())[:wanted]
        seconds = timed(lambda: [data.take(order[i : i + 8].tolist(), columns=CAMERA) for i in range(0, len(order), 8)])
        return {"clips_per_s": len(order) / seconds, "clips": len(order)}
    if store == "iceberg":
        from pyiceberg.expressions import In

        table, few = iceberg(folder).load_table("n.clips"), ids[:wanted]
        seconds = timed(
            lambda: [
                table.scan(row_filter=In("clip_id", few[i : i + 8]), selected_fields=tuple(CAMERA)).to_arrow()
                for i in range(0, len(few), 8)
            ]
        )
        return {"clips_per_s": len(few) / seconds, "clips": len(few)}
    frames = ds.dataset(folder / "frames.parquet")
    columns = ["clip", *(f"c2w_{k}" for k in range(12)), *(f"intrinsics_{k}" for k in range(4))]
    count = ds.dataset(folder / "clips.parquet").count_rows()
    order = np.random.default_rng(0).permutation(count)[:wanted]
    seconds = timed(lambda: [frames.to_table(columns, filter=ds.field("clip") == int(i)) for i in order])
    return {"clips_per_s": len(order) / seconds, "clips": len(order)}


# ---- the whole ---------------------------------------------------------------------------------------------------


def step(name: str, store: str, folder: Path, source: Path, rows: int) -> dict[str, Any]:
    """What a child process does."""
    if name == "write":
        if store == "manifest":
            return write_manifest(folder, rows)
        return {"lance": write_lance, "iceberg": write_iceberg, "frames": write_frames}[store](folder, source)
    make = Rows()
    picks = np.random.default_rng(7).permutation(rows)[: LOOKUPS[store] + 1]
    ids = [make(int(i))["clip_id"] for i in picks]
    read = {"lookup": read_lookup, "scan": read_scan, "filter": read_filter, "shuffled": read_shuffled}[name]
    return read(store, folder, ids)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=200_000)
    arguments.add_argument("--peer-rows", type=int, default=20_000)
    arguments.add_argument("--stores", nargs="*", default=STORES, choices=STORES)
    arguments.add_argument("--scratch", type=Path, help="folder for the files, 60 kB a row; a temporary one without")
    arguments.add_argument("--out", type=Path, default=RESULTS / "manifest_scale.json")
    arguments.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        name, store, folder, source, rows = given.step
        print(json.dumps(step(name, store, Path(folder), Path(source), int(rows))))
        return
    started = machine()
    idle = measured([sys.executable, __file__, "--help"]).peak_mb
    scratch = Path(tempfile.mkdtemp(prefix="manifest_scale-", dir=given.scratch))
    records: list[dict[str, Any]] = []
    try:
        sizes = [("manifest", given.rows), *((store, given.peer_rows) for store in given.stores)]
        for store, rows in dict.fromkeys(sizes):
            folder, source = scratch / f"{store}-{rows}", scratch / f"manifest-{given.peer_rows}"
            for name in ("write", "lookup", "scan", "filter", "shuffled"):
                run = measured([sys.executable, __file__, "--step", name, store, str(folder), str(source), str(rows)])
                if run.code:
                    raise SystemExit(f"{name} of {store} ended with exit code {run.code}")
                records.append(
                    {"store": store, "rows": rows, "step": name, **json.loads(run.stdout), "peak_mb": run.peak_mb}
                )
                print(records[-1], file=sys.stderr)
                write_result(given.out, [{"schema": SCHEMA_ID, "imports_mb": idle, **versions()}, *records], started)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(records)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("pyarrow", "pylance", "pyiceberg")}


def report(records: list[dict[str, Any]]) -> None:
    found = {(r["store"], r["rows"], r["step"]): r for r in records}
    table = []
    for store, rows in dict.fromkeys((r["store"], r["rows"]) for r in records):
        write, lookup, scan, filtered, shuffled = (
            found[store, rows, name] for name in ("write", "lookup", "scan", "filter", "shuffled")
        )
        table.append(
            [
                f"{store}, {rows} rows",
                number(write["seconds"], 1),
                number(write["peak_mb"], 0),
                number(write["bytes"] / rows / 1000, 1),
                number(lookup["first_with_opening_ms"], 1),
                number(lookup["median_ms"], 1),
                number(lookup["p99_ms"], 1),
                number(scan["seconds"], 2),
                number(filtered["seconds"], 2),
                number(shuffled["clips_per_s"], 0),
            ]
        )
    head = "store,write s,peak MB,kB a row,first look-up ms,look-up ms,p99 ms,scan s,filter s,shuffled clips/s".split(
        ","
    )
    print_table(head, table)


if __name__ == "__main__":
    main()
