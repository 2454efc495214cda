"""A camera path in words and as a drawing, before anything is generated along it.

The speeds beside which a path's own are shown are those of the published key bindings (SANA-WM's present code and its
first release): the motion that the published examples were steered with. What the training clips reached is not on
record.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..datasets.charts import escape, lines, number, path_view
from ..geometry import angle_between_deg
from ..model.intrinsics import MAX_FOV_DEG, MIN_FOV_DEG
from ..model.sana_wm.actions import CURRENT, FIRST, FPS
from ..model.sana_wm.path import CameraPath

SPEEDS_M_S = (CURRENT.step * FPS, FIRST.step * FPS)  # 0.4 and 0.8
TURNS_DEG_S = (CURRENT.turn_deg * FPS, FIRST.turn_deg * FPS)  # 9.6 and 19.2
CONES = 9  # cameras drawn along the path


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """What a path does, seen from its first camera."""

    frames: int
    seconds: float
    speed_m_s: NDArray[np.float64]  # [F - 1] from each frame to the next
    turn_deg_s: NDArray[np.float64]  # [F - 1]
    travelled_m: float
    turned_deg: float  # all turns added up
    right_m: float  # where it ends
    up_m: float
    forward_m: float
    yaw_deg: float  # where it looks at the end, to the right
    pitch_deg: float  # and upwards

    @classmethod
    def of(cls, path: CameraPath) -> Motion:
        poses = path.world_from_cam
        turns = angle_between_deg(poses[:-1, :3, :3], poses[1:, :3, :3])
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        right, down, forward = poses[-1, :3, 3].tolist()
        look = poses[-1, :3, 2]
        return cls(
            frames=path.num_frames,
            seconds=path.num_frames / FPS,
            speed_m_s=steps * FPS,
            turn_deg_s=turns * FPS,
            travelled_m=float(steps.sum()),
            turned_deg=float(turns.sum()),
            right_m=right,
            up_m=-down,
            forward_m=forward,
            yaw_deg=float(np.degrees(np.arctan2(look[0], look[2]))),
            pitch_deg=float(np.degrees(np.arcsin(np.clip(-look[1], -1, 1)))),
        )

    def words(self) -> str:
        """Such as: the camera moves forward 3.2 m, left 0.4 m, and turns 40 deg right."""
        ways = [
            (self.forward_m, "forward", "back"),
            (self.right_m, "right", "left"),
            (self.up_m, "up", "down"),
        ]
        moves = [f"{plus if v > 0 else minus} {abs(v):.2f} m" for v, plus, minus in ways if abs(v) >= 0.01]
        sides = [(self.yaw_deg, "right", "left"), (self.pitch_deg, "up", "down")]
        turns = [f"{abs(v):.0f} deg {plus if v > 0 else minus}" for v, plus, minus in sides if abs(v) >= 0.5]
        ends = f"moves {', '.join(moves)}" if moves else "ends where it began"
        ends += f" and turns {', '.join(turns)}" if turns else ""
        return (
            f"{self.frames} frames, {self.seconds:.1f} s: the camera {ends} "
            f"({self.travelled_m:.2f} m and {self.turned_deg:.0f} deg on the way)"
        )

    def remarks(self) -> list[str]:
        """Where the path leaves the published speeds far behind."""
        found = []
        for values, (_, most), unit in (
            (self.speed_m_s, SPEEDS_M_S, "m/s"),
            (self.turn_deg_s, TURNS_DEG_S, "deg/s"),
        ):
            fast = float(np.quantile(values, 0.95))
            if fast > 1.5 * most:
                found.append(
                    f"{fast:.3g} {unit} is faster than the published controls ({most:.3g} {unit} at most): expect the "
                    f"video to follow less well; --speed {most / fast:.2g} slows it down"
                )
        return found


def fov_range(path: CameraPath) -> NDArray[np.float64]:
    """[2, 2] least and greatest field of view along a path, horizontal and vertical, degrees."""
    fov = np.degrees(2 * np.arctan(np.array([path.width, path.height]) / (2 * path.intrinsics[:, :2])))
    return np.stack([fov.min(0), fov.max(0)], axis=1)


def draw(path: CameraPath, *, lens: str, title: str) -> str:
    """An SVG of the path: from above, its speeds over time, its lens.

    Args:
        path: with intrinsics, which mean nothing where `lens` is empty.
        lens: what tells the intrinsics.
    """
    motion = Motion.of(path)
    parts = [_text(20, 34, escape(title), "title"), _text(20, 56, escape(motion.words()))]
    parts.append(_text(20, 92, _head("From above", "the first camera looks up the page")))
    parts.append(_placed(20, 100, _top_view(path, lens), 520))
    middle = np.arange(1, path.num_frames) / FPS
    panels = (
        ("Speed", "m/s", motion.speed_m_s, SPEEDS_M_S),
        ("Turn rate", "deg/s", motion.turn_deg_s, TURNS_DEG_S),
    )
    for i, (head, unit, values, (low, high)) in enumerate(panels):
        y = 92 + 212 * i
        parts.append(_text(570, y, _head(head, unit)))
        parts.append(
            '<g class="speeds">'
            + _placed(
                560,
                y + 8,
                lines(
                    middle,
                    [("published keys", np.full(len(middle), (low + high) / 2)), (head, values)],
                    label=f"{head} over time",
                    band=np.full(len(middle), (high - low) / 2),
                ),
                420,
            )
            + "</g>"
        )
    keys = "the published keys: {:g} to {:g} m/s, {:g} to {:g} deg/s".format(*SPEEDS_M_S, *TURNS_DEG_S)
    parts.append('<rect class="band" x="570" y="502" width="14" height="10"/>' + _text(590, 511, keys))
    parts += _lens(path, lens)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 560" role="img" '
        f'aria-label="{escape(motion.words())}"><style>{_STYLE}</style>'
        f'<rect class="paper" width="1000" height="560"/>{"".join(parts)}</svg>'
    )


def _top_view(path: CameraPath, lens: str) -> str:
    where = path.world_from_cam[:, :3, 3]
    right, ahead = where[:, 0], where[:, 2]
    size = float(max(np.ptp(right), np.ptp(ahead)))
    moves = size > 1e-6
    reach = 0.1 * size if moves else 1.0
    chosen = np.unique(np.linspace(0, path.num_frames - 1, CONES).round().astype(int))
    cones = []
    for i in chosen:
        half = path.width / (2 * path.intrinsics[i, 0]) if lens else 0.5
        corners = reach * np.array([[0, 0, 0], [-half, 0, 1], [half, 0, 1]]) @ path.world_from_cam[i, :3, :3].T
        cones.append((where[i] + corners)[:, [0, 2]])
    label = "the camera path from above"
    return path_view(right, ahead, np.zeros(len(where), bool), cones, unit="m" if moves else None, label=label)


def _lens(path: CameraPath, lens: str) -> list[str]:
    if not lens:
        return [_text(570, 540, "Field of view: not known yet, the picture will be asked")]
    (x0, x1), (y0, y1) = fov_range(path)
    fits = MIN_FOV_DEG < min(x0, y0) and max(x1, y1) < MAX_FOV_DEG
    spans = [f"{number(a)}°" if b - a < 0.05 else f"{number(a)}° to {number(b)}°" for a, b in ((x0, x1), (y0, y1))]
    verdict = "within" if fits else "NOT within"
    words = f"Field of view {spans[0]} x {spans[1]} ({lens}), {verdict} {MIN_FOV_DEG:g}° to {MAX_FOV_DEG:g}°"
    return [_text(570, 540, words, "" if fits else "bad")]


def _placed(x: float, y: float, drawing: str, width: float) -> str:
    """A drawing of `charts` at a place, so wide."""
    return drawing.replace("<svg ", f'<svg x="{x}" y="{y}" width="{width}" height="{_height(drawing, width)}" ', 1)


def _height(drawing: str, width: float) -> float:
    box = drawing.split('viewBox="', 1)[1].split('"', 1)[0].split()
    return round(width * float(box[3]) / float(box[2]), 1)


def _head(words: str, quiet: str) -> str:
    return f'<tspan class="head">{words}</tspan> <tspan dx="6">{quiet}</tspan>'


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="words {kind}">{words}</text>'


_STYLE = """
svg { --paper:#fcfcfa; --ink:#1f2328; --quiet:#636b74; --rule:#e3e3de; --s0:#2166a8; --s1:#b85c0b; --ok:#1f7a4d;
  --failed:#b3261e; }
@media (prefers-color-scheme: dark) { svg { --paper:#15181c; --ink:#e4e6e8; --quiet:#98a0a9; --rule:#31363d;
  --s0:#6fb1ee; --s1:#f0a35b; --ok:#63c79b; --failed:#f28b82; } }
text { font:11px system-ui,-apple-system,"Segoe UI",sans-serif; fill:var(--quiet); }
.words { font-size:14px; } .title { font-size:19px; font-weight:600; fill:var(--ink); }
.head { font-weight:600; fill:var(--ink); } .bad { fill:var(--failed); font-weight:600; }
.paper { fill:var(--paper); }
path.grid { stroke:var(--rule); fill:none; }
.line { fill:none; stroke-width:1.8; stroke-linejoin:round; stroke-linecap:round; } .line.s0 { stroke:var(--s0); }
.speeds .line.s0 { stroke:none; } .speeds .line.s1 { stroke:var(--s0); }
.band { fill:var(--s1); opacity:.22; }
.frustum { fill:var(--quiet); fill-opacity:.08; stroke:var(--quiet); stroke-opacity:.7; stroke-width:.8;
  stroke-linejoin:round; }
.bar { stroke:var(--quiet); stroke-width:1.2; fill:none; }
.start { fill:var(--paper); stroke:var(--ok); stroke-width:2.4; } .end { fill:var(--s1); }
"""
