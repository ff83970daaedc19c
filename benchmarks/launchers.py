"""Six fits one after the other, and two at a time: in processes of this machine, and on Ray.

One thread for each; every round begins with empty folders, the launchers in turn. Seconds are those
of the whole command, with the start of its processes and the tables and pictures at its end.

    python -m benchmarks.launchers [ROUNDS]
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

COMPARE = [sys.executable, "-m", "evidence", "compare", "--model", "VAE(latent_dim=10)",
           "--num_epochs", "60", "--compile", "off", "--num_particles", "1000",
           "--guides", "MeanField", "FullRank", "Planar", "--seeds", "2"]  # fmt: skip
LAUNCHERS = {
    "none": [],
    "local, 2 jobs": ["--launcher", "local", "--jobs", "2"],
    "ray, 2 jobs": ["--launcher", "ray", "--jobs", "2"],
}


def seconds(options: list[str]) -> float:
    """Of the comparison, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [*COMPARE, *options, "--out", os.path.join(folder, "run")],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return time.perf_counter() - started


def main(num_rounds: int) -> None:
    """Print a Markdown table of medians, lowest and highest, and the load before and after."""
    load = os.getloadavg()[0]
    found: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    for _ in range(num_rounds):
        for name, options in LAUNCHERS.items():
            found[name].append(seconds(options))
    print("| launcher | seconds of 6 fits | × none |\n|---|---|---|")
    for name, spans in found.items():
        ratio = median(found["none"]) / median(spans)
        span = f"{median(spans):.0f} ({min(spans):.0f}–{max(spans):.0f})"
        print(f"| {name} | {span} | {ratio:.2f} |")
    print(f"\nload of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
