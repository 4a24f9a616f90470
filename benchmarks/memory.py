"""How much memory a large data set takes: none but the kernel's cache of files, which gives way.

python -m benchmarks.memory --gigabytes 20 [--limit 4]

Makes a folder of images that take so many GB once they are decoded (224 px, RGB), decodes them, and trains
the smallest model for an epoch; before, the same with a tenth of a GB. Prints the peak of each process's own
memory. As root with cgroups of version 1 the training runs within a limit in GB, kernel's cache included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import environment, keep, python, show

SIDE = 224
BYTES = 3 * SIDE * SIDE
OPTIONS = ["--model", "shufflenet_v2_x0_5", "--epochs", "1", "--set", "model.weights=none"]
OPTIONS += ["--set", "data.test_fraction=0", "--set", "data.val_fraction=0.7"]
GROUP = Path("/sys/fs/cgroup/memory/benchmark")


def write_images(root: Path, gigabytes: float) -> int:
    """Small files: coarse noise, a file per image, in two classes; returns how many."""
    random, count = np.random.default_rng(0), int(gigabytes * 1e9 / BYTES)
    for label in "ab":
        (root / "A" / label).mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        image = coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        image.save(root / "A" / "ab"[number % 2] / f"{number}.png", compress_level=1)
    return count


@contextmanager
def limited(gigabytes: float | None) -> Iterator[list[str]]:
    """Return what a command begins with so that it runs within a limit of memory."""
    if gigabytes is None:
        yield []
        return
    GROUP.mkdir()
    try:
        (GROUP / "memory.limit_in_bytes").write_text(str(int(gigabytes * 1e9)))
        yield ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs; exec "$0" "$@"']
    finally:
        GROUP.rmdir()


def own_memory(pid: int) -> int:
    """Bytes that only this process uses, mapped files apart; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def train(folder: Path, data: Path, limit: float | None) -> tuple[float, int]:
    """Trains in a process; returns its seconds and the peak of its own memory.

    Raises:
        SystemExit: It failed, or was killed for its memory.
    """
    peak, started = 0, time.perf_counter()
    with limited(limit) as prefix:
        command = [*prefix, sys.executable, "-m", "src.train", "--data", str(data), *OPTIONS]
        with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL) as process:
            ended = threading.Event()
            while process.poll() is None:
                peak = max(peak, own_memory(process.pid))
                ended.wait(0.2)
    if process.returncode != 0:
        raise SystemExit(f"the training ended with {process.returncode}")
    return time.perf_counter() - started, peak


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--limit", type=float, help="in GB; needs root")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows, measured = [], {}
    for gigabytes in (0.1, args.gigabytes):
        with tempfile.TemporaryDirectory(prefix="memory-", dir=Path.cwd()) as name:
            folder, data = Path(name), Path(name) / "images"
            count = write_images(data, gigabytes)
            started = time.perf_counter()
            python(folder, "-m", "src.train", "--data", str(data), *OPTIONS, "--dry-run")
            decoding = time.perf_counter() - started
            os.sync()
            seconds, peak = train(folder, data, args.limit)
        measured[str(gigabytes)] = {"images": count, "decoding": decoding, "training": seconds, "peak": peak}
        rows.append(
            [f"{gigabytes:g}", f"{count:,}", f"{decoding:.0f}", f"{seconds:.0f}", f"{peak / 1e9:.2f}"]
        )
    show(["GB decoded", "images", "seconds to decode", "seconds to train", "own memory, peak GB"], rows)
    keep(args.json, measured)


if __name__ == "__main__":
    main()
