"""What the comparison of all val and test images with all training images takes, by the number of images.

python -m benchmarks.near_duplicates [--images 1000,10000,100000] [--side 64]

The images are noise in one channel, in a file as the project's cache has it. A fresh process reads them,
makes their thumbnails and compares 15 % val and 15 % test with 70 % train, in full; it reports seconds,
seconds of CPU and its peak memory. What was made is removed at the end.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import keep, python, show

MEASURE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from src.data.image_similarity import Comparison, compare
from src.data.image_array import ImageArray
from src.data.join_modalities import Records, text_column

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

array = ImageArray.of_file(Path(sys.argv[1]).open("rb", buffering=0))
count = array.shape[0]
splits = np.random.default_rng(0).permutation(np.arange(count) * 20 // count)
names = text_column(["train" if split < 14 else "val" if split < 17 else "test" for split in splits.tolist()])
nobody = np.full(count, None, object)
rows, labels = np.arange(count)[:, None], np.zeros(count, np.int64)
records = Records(rows, labels, nobody, nobody[:, None], nobody, names, nobody)
train = int((names == "train").sum())
state = Comparison.empty(count - train, train)
before, cpu, started = peak(), time.process_time(), time.perf_counter()
compare(state, records, [array], deadline=float("inf"))
assert state.is_complete
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu,
                  "imports_gb": before, "peak_gb": peak(), "found": int((state.held_out > 0.97).sum())}))
"""


def measure(folder: Path, count: int, side: int) -> dict[str, float]:
    """Return what a process reports that compares so many images."""
    path = folder / f"{count}.npy"
    random = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 1, side, side), version=(1, 0))
    for start in range(0, count, 1000):
        images[start : start + 1000] = random.integers(0, 256, images[start : start + 1000].shape, np.uint8)
    images.flush()
    del images
    measured: dict[str, float] = json.loads(python(folder, "-c", MEASURE, str(path)))
    path.unlink()
    return measured


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.near_duplicates", description=__doc__)
    parser.add_argument("--images", default="1000,10000,100000")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = {int(n): measure(Path(name), int(n), args.side) for n in args.images.split(",")}
    rows = [
        [f"{count:,}", *(f"{part[what]:.2f}" for what in ("seconds", "cpu", "imports_gb", "peak_gb"))]
        for count, part in measured.items()
    ]
    show(["images", "s", "CPU, s", "imports, GB", "peak, GB"], rows)
    keep(args.json, {str(count): part for count, part in measured.items()})


if __name__ == "__main__":
    main()
