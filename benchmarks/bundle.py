"""Our bundle adjustment beside Ceres and SciPy on one BAL problem: time, peak memory, iterations and final cost.

    python benchmarks/bundle.py .../bal/ladybug-49-7776-pre.txt.gz

Every solver runs in a process of its own, in turn, `--repeats` times; the fastest run counts. Time is that of the solve
with the problem in memory, structure and set-up of the solver included, reading the file and building COLMAP's objects
not; CPU time is of the same span, and says more on a busy machine. Peak memory is the process's largest resident set
less what it held before the solve. All free focal length, k1 and k2 of every camera; the cost printed is 0.5 sum r^2 of
the solution, computed here alike for all.

Ceres comes with pycolmap, whose cost function takes an observation from behind a camera for a perfect one, where BAL's
has no behind. So that all solve the same problem, those few observations are left out; "whole problem" keeps them.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtake.annotate.bundle import Bundle, BundleConfig, adjust
from longtake.geometry import pose, rotation_from_vector, vector_from_rotation

TOLERANCE = 1e-6  # relative decrease of the cost at which every solver stops: Ceres' default
SCIPY_TOLERANCE, SCIPY_EVALUATIONS = 1e-4, 50  # SciPy alone, which takes minutes even so; read its time with its cost
SOLVERS = ("longtake", "longtake whole problem", "ceres dense_schur", "ceres sparse_schur", "scipy trf")


def read_bal(path: Path) -> Bundle:
    """The problem, its axes (y up, looking along -z) turned to OpenCV's."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        views, points, obs = map(int, file.readline().split())
        numbers = np.array(file.read().split(), np.float64)
    seen = numbers[: 4 * obs].reshape(obs, 4)
    cameras = numbers[4 * obs : 4 * obs + 9 * views].reshape(views, 9)
    flip = np.diag([1.0, -1.0, -1.0])
    zero = np.zeros(views)
    return Bundle(
        cam_from_world=pose(flip @ rotation_from_vector(cameras[:, :3]), cameras[:, 3:6] @ flip),
        points=numbers[4 * obs + 9 * views :].reshape(points, 3),
        intrinsics=np.stack([cameras[:, 6], cameras[:, 6], zero, zero, cameras[:, 7], cameras[:, 8]], 1),
        view_group=np.arange(views),
        obs_view=seen[:, 0].astype(np.int64),
        obs_point=seen[:, 1].astype(np.int64),
        obs_xy=seen[:, 2:] * [1, -1],
    )


def without_behind(problem: Bundle) -> Bundle:
    """Less the observations that are behind their camera at the start, and the points that less than two others see."""
    pose_of = problem.cam_from_world[problem.obs_view]
    in_camera = np.einsum("nij,nj->ni", pose_of[:, :3, :3], problem.points[problem.obs_point]) + pose_of[:, :3, 3]
    keep = in_camera[:, 2] > 0
    keep &= np.bincount(problem.obs_point[keep], minlength=len(problem.points))[problem.obs_point] >= 2
    return replace(
        problem,
        obs_view=problem.obs_view[keep],
        obs_point=problem.obs_point[keep],
        obs_xy=problem.obs_xy[keep],
    )


def project(rotation: NDArray, translation: NDArray, f: NDArray, k1: NDArray, k2: NDArray, points: NDArray) -> NDArray:
    """Pixels [N, 2] of points [N, 3], each by its own camera."""
    in_camera = np.einsum("nij,nj->ni", rotation, points) + translation
    n = in_camera[:, :2] / in_camera[:, 2:]
    r2 = (n * n).sum(1)
    return (f * (1 + r2 * (k1 + r2 * k2)))[:, None] * n


def cost_of(problem: Bundle) -> float:
    """0.5 sum of squared residuals, pixels squared."""
    pose_of, k = problem.cam_from_world[problem.obs_view], problem.intrinsics[problem.obs_view]
    points = problem.points[problem.obs_point]
    found = project(pose_of[:, :3, :3], pose_of[:, :3, 3], k[:, 0], k[:, 4], k[:, 5], points)
    return 0.5 * float(((found - problem.obs_xy) ** 2).sum())


def clocks() -> NDArray:
    """Wall and CPU seconds so far."""
    return np.array([time.perf_counter(), time.process_time()])


def solve_longtake(problem: Bundle, threads: int) -> tuple[NDArray, float, int]:
    config = BundleConfig(max_iterations=200, cost_tolerance=TOLERANCE, cheirality=False, num_threads=threads)
    start = clocks()
    found = adjust(problem, config, free_intrinsics=frozenset({"f", "k1", "k2"}))
    return clocks() - start, cost_of(found.bundle), found.iterations


def solve_ceres(problem: Bundle, threads: int, linear_solver: str) -> tuple[NDArray, float, int]:
    import pycolmap

    scene = pycolmap.Reconstruction()
    slot = np.empty(len(problem.obs_view), np.int64)
    for v, k in enumerate(problem.intrinsics):
        params = [k[0], 0, 0, k[4], k[5]]
        scene.add_camera_with_trivial_rig(
            pycolmap.Camera(model="RADIAL", width=2000, height=2000, params=params, camera_id=v + 1)
        )
        obs = np.flatnonzero(problem.obs_view == v)
        slot[obs] = np.arange(len(obs))
        image = pycolmap.Image(name=str(v), camera_id=v + 1, image_id=v + 1, keypoints=problem.obs_xy[obs])
        scene.add_image_with_trivial_frame(image, pycolmap.Rigid3d(problem.cam_from_world[v, :3]))
    by_point = np.argsort(problem.obs_point, kind="stable")
    bounds = np.searchsorted(problem.obs_point[by_point], np.arange(len(problem.points) + 1))
    ids = []
    for p, xyz in enumerate(problem.points):
        track = pycolmap.Track()
        for o in by_point[bounds[p] : bounds[p + 1]]:
            track.add_element(int(problem.obs_view[o]) + 1, int(slot[o]))
        ids.append(scene.add_point3D(xyz, track, np.zeros(3, np.uint8)))
    chosen = pycolmap.BundleAdjustmentConfig()
    for v in range(len(problem.cam_from_world)):
        chosen.add_image(v + 1)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = False
    options.print_summary = False
    options.ceres.auto_select_solver_type = False
    options.ceres.min_num_residuals_for_cpu_multi_threading = 0
    solver = options.ceres.solver_options
    solver.linear_solver_type = getattr(type(solver.linear_solver_type), linear_solver.upper())
    solver.max_num_iterations, solver.num_threads = 200, threads
    solver.function_tolerance, solver.gradient_tolerance, solver.parameter_tolerance = TOLERANCE, 0.0, 0.0
    start = clocks()
    solved = pycolmap.create_default_bundle_adjuster(options, chosen, scene).solve()
    seconds = clocks() - start
    intrinsics = problem.intrinsics.copy()
    poses = problem.cam_from_world.copy()
    for v in range(len(poses)):
        params = scene.cameras[v + 1].params
        intrinsics[v] = params[0], params[0], 0, 0, params[3], params[4]
        poses[v, :3] = scene.images[v + 1].cam_from_world().matrix()
    points = np.array([scene.points3D[i].xyz for i in ids])
    assert isinstance(solved, pycolmap.CeresBundleAdjustmentSummary)
    summary = solved.ceres_summary
    iterations = summary.num_successful_steps + summary.num_unsuccessful_steps
    fields = {**problem.__dict__, "cam_from_world": poses, "points": points, "intrinsics": intrinsics}
    return seconds, cost_of(Bundle(**fields)), iterations


def solve_scipy(problem: Bundle) -> tuple[NDArray, float, int]:
    """Trust region reflective with LSMR and finite differences grouped by the sparsity, as in SciPy's cookbook."""
    from scipy.optimize import least_squares
    from scipy.sparse import coo_matrix

    views, obs = len(problem.cam_from_world), len(problem.obs_view)
    cameras = np.concatenate(
        [
            vector_from_rotation(problem.cam_from_world[:, :3, :3]),
            problem.cam_from_world[:, :3, 3],
            problem.intrinsics[:, [0, 4, 5]],
        ],
        1,
    )

    def residuals(x: NDArray) -> NDArray:
        camera = x[: 9 * views].reshape(views, 9)
        per_obs, points = camera[problem.obs_view], x[9 * views :].reshape(-1, 3)[problem.obs_point]
        rotation = rotation_from_vector(camera[:, :3])[problem.obs_view]
        found = project(rotation, per_obs[:, 3:6], per_obs[:, 6], per_obs[:, 7], per_obs[:, 8], points)
        return (found - problem.obs_xy).ravel()

    columns = np.concatenate(
        [
            problem.obs_view[:, None] * 9 + np.arange(9),
            9 * views + problem.obs_point[:, None] * 3 + np.arange(3),
        ],
        1,
    )
    rows = np.repeat(np.arange(2 * obs), 12)
    pattern = coo_matrix((np.ones(len(rows), np.int8), (rows, np.repeat(columns, 2, 0).ravel()))).tocsr()
    x0 = np.concatenate([cameras.ravel(), problem.points.ravel()])
    start = clocks()
    found = least_squares(
        residuals, x0, jac_sparsity=pattern, x_scale="jac", ftol=SCIPY_TOLERANCE, max_nfev=SCIPY_EVALUATIONS
    )
    return clocks() - start, float(found.cost), int(found.njev)


def run_one(solver: str, path: Path, threads: int) -> dict[str, float]:
    """Solve in this process."""
    problem = read_bal(path)
    if "whole" not in solver:
        problem = without_behind(problem)
    if solver.startswith("ceres"):
        import pycolmap  # noqa: F401  what the import itself holds is no part of the solve
    elif solver.startswith("scipy"):
        import scipy.optimize
        import scipy.sparse  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if solver.startswith("longtake"):
        seconds, cost, iterations = solve_longtake(problem, threads)
    elif solver.startswith("ceres"):
        seconds, cost, iterations = solve_ceres(problem, threads, solver.split()[1])
    else:
        seconds, cost, iterations = solve_scipy(problem)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "cost": cost,
        "iterations": iterations,
        "peak_mb": usage.ru_maxrss / 1024,
        "solve_mb": (usage.ru_maxrss - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=SOLVERS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bundle.json")
    parser.add_argument("--one", choices=SOLVERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.problem, args.threads[0])))
        return

    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin while they wait ruin a shared machine
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for repeat in range(args.repeats):
        for solver in args.solvers:
            for threads in dict.fromkeys(args.threads):
                if solver.startswith("scipy") and (repeat or threads != args.threads[0]):
                    continue  # one thread is all it uses, and it takes a minute
                command = [sys.executable, __file__, str(args.problem), "--one", solver, "--threads", str(threads)]
                text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
                runs.setdefault((solver, threads), []).append(json.loads(text.splitlines()[-1]))
    ours = min(run["seconds"] for (solver, _), all_runs in runs.items() if solver == "longtake" for run in all_runs)
    rows = []
    print(f"{'solver':24} {'threads':>7} {'seconds':>8} {'(median)':>9} {'CPU s':>7} {'/ ours':>7}", end=" ")
    print(f"{'iter':>5} {'ms/iter':>8} {'cost':>11} {'solve MB':>8} {'peak MB':>8}")
    for (solver, threads), all_runs in runs.items():
        best = min(all_runs, key=lambda run: run["seconds"])
        row = {
            "solver": solver,
            "threads": threads,
            "runs": len(all_runs),
            **best,
            "median_seconds": float(np.median([run["seconds"] for run in all_runs])),
            "time_over_ours": best["seconds"] / ours,
        }
        rows.append(row)
        print(
            f"{solver:24} {threads:7d} {row['seconds']:8.3f} {row['median_seconds']:9.3f} "
            f"{row['cpu_seconds']:7.3f} {row['time_over_ours']:7.2f} "
            f"{row['iterations']:5d} {1e3 * row['seconds'] / row['iterations']:8.1f} {row['cost']:11.3f} "
            f"{row['solve_mb']:8.0f} {row['peak_mb']:8.0f}"
        )
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = ("torch", "numpy", "scipy", "pycolmap")
    record = {
        "problem": args.problem.name,
        "tolerance": TOLERANCE,
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
