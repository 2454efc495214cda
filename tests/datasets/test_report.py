"""The report: all of a row is on the page, nothing hostile is, and a phone need not scroll sideways."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from longtake.datasets.charts import Ground, lines, number, path_view
from longtake.datasets.filters import judged
from longtake.datasets.manifest import create_manifest
from longtake.datasets.report import write_report
from longtake.datasets.schema import Provenance, annotate_row
from longtake.geometry import pose, rotation_from_vector
from longtake.records import LongtakeError, Rejected, Shot, Track, VideoInfo

HOSTILE = '<script>document.title="owned"</script>\'"><img src=x onerror=alert(1)>&amp;.mp4'
PROVENANCE = Provenance(
    run_id="20250101-<b>run</b>", config_hash="0123456789abcdef", software_version="0.1.0",
    stage_versions={"track": "1"}, timings_s={"probe": 0.04, "track": 12.5, "quality": 2.25},
)  # fmt: skip


def video(path: str, num_frames: int) -> VideoInfo:
    return VideoInfo(
        path=path, is_images=False, image_paths=(), sha256=f"{abs(hash(path)):064x}"[-64:], num_bytes=10_000,
        container="mov", codec="h264", pix_fmt="yuv420p", coded_width=640, coded_height=480, width=640, height=480,
        rotation_deg=0, sar_num=1, sar_den=1, color_range="tv", interlaced=False, is_vfr=False, tagged_fps=25.0,
        pts_ns=np.arange(num_frames) * 40_000_000,
    )  # fmt: skip


def track(n: int, *, motion: str = "general", lost: slice = slice(0, 0)) -> Track:
    """A camera that walks a curve, bobs, and zooms in and out."""
    s = np.linspace(0, 1, n)
    turn = np.stack([0.03 * np.sin(20 * s), 1.6 * s - 0.8, 0.02 * np.sin(13 * s)], 1)
    centre = np.stack([3 * s, 0.05 * np.sin(40 * s), 1.5 * np.sin(np.pi * s)], 1)
    if motion != "general":
        centre[:] = 0
    if motion == "static":
        turn[:] = 0
    world_from_cam = pose(rotation_from_vector(turn), centre)
    valid = np.ones(n, bool)
    valid[lost] = False
    world_from_cam[~valid] = np.nan
    f = 500 * (1 + 0.6 * np.sin(np.pi * s) ** 2)
    rng = np.random.default_rng(0)
    error = np.where(valid, 0.5 + 0.2 * rng.random(n), np.nan)
    return Track(
        pts_ns=np.arange(n) * 40_000_000, width=640, height=480, world_from_cam=world_from_cam, pose_valid=valid,
        intrinsics=np.stack([f, f, np.full(n, 319.5), np.full(n, 239.5)], 1), intrinsics_mode="per_frame",
        focal_status="estimated", focal_sigma=np.full(n, 0.01), distortion_model="opencv_radial",
        distortion=(-0.03, 0.002), motion_class=motion, flags=("loop_closed",), scale_kind="relative",
        pose_source="longtake", is_keyframe=np.arange(n) % 12 == 0, reproj_rmse_px=error, sampson_px=0.6 * error,
        num_tracked=rng.integers(600, 900, n).astype(np.int32), inlier_ratio=np.where(valid, 0.9, 0.0),
        coverage=np.where(valid, 0.8, 0.0), dyn_ratio=0.1 * rng.random(n), step_px=np.r_[np.nan, 4 + rng.random(n - 1)],
        stats={"ba_rmse_px": 0.55, "num_points": 5120.0},
    )  # fmt: skip


def annotated(path: str, *, n: int = 150, lost: slice = slice(0, 0), motion: str = "general") -> dict[str, Any]:
    shot = Shot(index=0, start=0, stop=n, crop=(0, 0, 640, 480), overlay=None, boundary="start")
    quality = {"blur": 0.4, "luma": 112.0, "saturation": 80.0, "vmaf_motion": 4.2, "flow_px": 31.0, "jump_count": 0,
               "trans_total_m": 4.0, "rot_total_deg": 96.0, "max_speed_m_s": 0.7, "max_rot_deg_s": 20.0}  # fmt: skip
    frames = {"blur": np.full(n, 0.4), "luma": 112 + 10 * np.sin(np.arange(n) / 9)}
    row = annotate_row(
        path=path, provenance=PROVENANCE, video=video(path, n), shot=shot, track=track(n, motion=motion, lost=lost),
        quality=quality, frames=frames,
    )  # fmt: skip
    return judged(row, "robust")


def failed(path: str) -> dict[str, Any]:
    refusal = Rejected(stage="probe", reason="not_a_video", message=f"{path} is no video: <i>moov</i> atom not found")
    return annotate_row(path=path, provenance=PROVENANCE, rejected=refusal)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with a good clip, a filtered one with a gap, a static one and a failed one; some hostile names."""
    folder = tmp_path_factory.mktemp("report") / "run <1>"
    manifest = create_manifest(folder)
    good = annotated("/films/walk through the house.mp4")
    manifest.append(
        [
            good,
            annotated(f"/films/{HOSTILE}", n=240, lost=slice(90, 130)) | {"caption": f"A room. {HOSTILE}"},
            annotated("/films/" + "tripod" * 30 + ".mp4", motion="static"),
            failed(f"/films/broken {HOSTILE}"),
        ]
    )
    sidecars = folder / "sidecars" / good["clip_id"]
    sidecars.mkdir(parents=True)
    for frame in (0, 60, 120):
        picture = np.full((90, 160, 3), (frame, 120, 200), np.uint8)
        (sidecars / f"contact_{frame:06d}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(run)


class Outline(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_hostile_becomes_markup(page: Path) -> None:
    outline = Outline(page.read_text(encoding="utf-8"))
    assert not {"script", "iframe", "object", "link", "i", "form"} & set(outline.tags)
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    links = [value for name, value in outline.attributes if name in ("src", "href")]
    assert len(links) >= 6 and all(re.match(r"#|data:image/jpeg;base64,", link) for link in links)
    # the name is there, as text: in the table, as a heading, in the provenance, in the caption
    assert outline.text.count(HOSTILE.rsplit("/", 1)[-1]) >= 4


def test_everything_of_the_rows_is_on_the_page(page: Path) -> None:
    text = Outline(page.read_text(encoding="utf-8")).text
    for expected in (
        "not a video", "moov", "loop closed", "one a frame", "500 to 800 px", "frames without pose", "83.3 %",
        "static camera", "opencv_radial −0.03, 0.002", "20250101-<b>run</b>", "0123456789abcdef", "num_points 5120",
        "OpenCV camera axes", "Focal length", "Field of view", "Speed", "Turn rate", "Blur", "Luma", "Path from above",
        "Path from the side", "21.6 s",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_contact_sheet_comes_from_the_sidecars_or_from_the_caller(run: Path, tmp_path: Path) -> None:
    html = write_report(run, tmp_path / "a.html").read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") == 3 and "4.8 s</figcaption>" in html
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    asked = []

    def sheet(row: Any) -> list[tuple[int, bytes]]:
        asked.append(row["clip_id"])
        return [(5, jpeg)]

    html = write_report(run, tmp_path / "b.html", contact_sheet=sheet).read_text(encoding="utf-8")
    assert len(asked) == 4 and html.count(base64.b64encode(jpeg).decode()) == 4


def test_a_large_run_shows_some_clips_in_full_and_says_so(run: Path, tmp_path: Path) -> None:
    html = write_report(run, tmp_path / "c.html", max_details=1).read_text(encoding="utf-8")
    assert html.count('<section class="clip"') == 1 and "1 of 4 clips are shown in full" in html
    rows = re.findall(r"<tr><td", html.split("</table>")[0])
    assert len(rows) == 4
    with pytest.raises(LongtakeError, match="no clip"):
        write_report(run, tmp_path / "d.html", clip_ids=["nothing"])


def test_an_empty_manifest_has_a_report_and_a_wrong_path_an_error(tmp_path: Path) -> None:
    create_manifest(tmp_path / "m")
    assert "no clips" in write_report(tmp_path / "m").read_text(encoding="utf-8")
    with pytest.raises(LongtakeError, match="no manifest"):
        write_report(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(LongtakeError, match="Cannot write the report"):
        write_report(tmp_path / "m", tmp_path / "file" / "report.html")


def test_numbers_are_short_and_never_invented() -> None:
    values = [None, float("nan"), 0.0, 0.00012345, 0.5, 12.0, 12.345, -3.25, 640.0, 12345.6, 2e9]
    assert [number(v) for v in values] == [
        "–",
        "–",
        "0",
        "0.000123",
        "0.5",
        "12",
        "12.3",
        "−3.25",
        "640",
        "12346",
        "2.00e+09",
    ]


def test_lines_break_at_gaps_and_keep_extremes() -> None:
    t = np.arange(5000) / 25
    v = np.sin(t)
    v[1000:1500] = np.nan
    v[2222] = 9.0
    drawing = lines(t, [("v", v)], label="v", missing=np.isnan(v))
    assert drawing.count("<polyline") == 2 and drawing.count('class="gap"') == 1
    points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", drawing)]
    assert len(points) < 800
    assert min(y for _, y in points) < 20  # the lone peak is still there, near the top
    assert "nan" not in drawing


def test_path_views_have_equal_axes() -> None:
    angle = np.linspace(0, 2 * np.pi, 100)
    drawing = path_view(3 * np.cos(angle), np.sin(angle), np.zeros(100, bool), [], unit="m", label="p")
    line = re.search(r'<polyline class="line s0" points="([^"]+)"', drawing)
    assert line
    xy = np.array([tuple(map(float, p.split(","))) for p in line[1].split()])
    assert np.ptp(xy[:, 0]) / np.ptp(xy[:, 1]) == pytest.approx(3, rel=0.01)
    still = path_view(np.zeros(5), np.zeros(5), np.zeros(5, bool), [], unit="m", label="p")
    assert "nan" not in still and "inf" not in still
    assert "no poses" in path_view(np.full(5, np.nan), np.full(5, np.nan), np.zeros(5, bool), [], unit="m", label="p")


# --- in a real browser ------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, spoken to in its DevTools protocol over a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        for fd in (to_browser[0], from_browser[1]):
            os.set_inheritable(fd, True)
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
            "--remote-debugging-pipe"
        )
        script = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'  # DevTools reads 3 and writes 4
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags.split(), f"--user-data-dir={profile}"],
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.write, self.read = os.fdopen(to_browser[1], "wb"), os.fdopen(from_browser[0], "rb")
        self.events: list[dict[str, Any]] = []
        self.count, self.rest, self.session = 0, b"", ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.read.fileno(), 1 << 16)
            if not more:
                raise ConnectionError("Chromium has ended")
            self.rest += more
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        call = {"id": self.count, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        self.write.write(json.dumps(call).encode() + b"\0")
        self.write.flush()
        while (answer := self.message()).get("id") != self.count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path) -> None:
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.write.close()
        self.read.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here to open the page in")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.mark.parametrize(("width", "phone", "dark"), [(1200, False, False), (390, True, False), (390, True, True)])
def test_in_a_browser(browser: Browser, page: Path, width: int, phone: bool, dark: bool, tmp_path: Path) -> None:
    browser.open(page, width, 844, phone=phone, dark=dark)
    # no sideways scrolling: nothing sticks out of the window
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 100))") == []
    # one request, for the page itself, and pictures that lie in it
    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url.split(",")[0] for url in urls if not url.startswith("data:image/jpeg")] == [page.as_uri()]
    # nothing ran, nothing was refused, nothing is broken
    assert browser.evaluate("document.title").endswith("longtake report")
    assert browser.evaluate("document.scripts.length") == 0
    entries = [e["params"] for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert entries == []
    assert browser.evaluate("[...document.images].filter(i => i.naturalWidth).length") == 3
    # text of the drawings is large enough to read
    smallest = "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))"
    assert browser.evaluate(smallest) >= 10
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 64) == dark
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_the_ground_lies_under_the_path() -> None:
    """A path along the ground's border is drawn where the border's picture ends."""
    corner, right, up = np.array([2.0, -1.0]), np.array([3.0, 0.4]), np.array([-0.8, 6.0])
    walk = np.stack([corner, corner + right, corner + right + up, corner + up])
    ground = Ground(href="data:,", corner=corner, right=right, up=up, dots=walk[:1])
    drawing = path_view(walk[:, 0], walk[:, 1], np.zeros(4, bool), [], unit="m", label="x", ground=ground)
    a, b, c, d, e, f = map(float, re.findall(r"matrix\(([^)]+)\)", drawing)[0].split())
    unit_square = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])  # the picture's y runs down
    placed = unit_square @ [[a, b], [c, d]] + [e, f]
    (line,) = re.findall(r'class="line s0" points="([^"]+)"', drawing)
    np.testing.assert_allclose(placed, [[float(v) for v in p.split(",")] for p in line.split()], atol=0.06)
    assert (placed > 0).all() and placed[:, 0].max() < 360
