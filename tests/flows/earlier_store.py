"""Make a store with whatever version of this project is on PYTHONPATH: run by test_earlier_store.py.

``plan.json`` in the working folder holds the arguments of ``src.train`` and the data of each modality. Each
is trained, promoted and used to predict, then trained once more until a signal stops it.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

from src import predict, promote, train

_LOGS = Path("outputs/logs")
_EPOCHS_BEFORE = 1


def _interrupt_next_run() -> None:
    """Send SIGTERM to this process once the next run has trained an epoch."""
    before = set(_LOGS.iterdir())
    while True:
        new = [folder / "training_history.csv" for folder in set(_LOGS.iterdir()) - before]
        if any(path.exists() and path.read_bytes().count(b"\n") > _EPOCHS_BEFORE for path in new):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.002)


def main() -> None:
    """Follow the plan."""
    plan = json.loads(Path("plan.json").read_text())
    for one in plan.values():
        assert train.main(one["train"]) == 0
    assert promote.main([]) == 0
    for modality, one in plan.items():
        options = ["--model", one["model"], "--modality", modality, "--input", one["data"]]
        assert predict.main([*options, "--output", f"{modality}.csv"]) == 0
        threading.Thread(target=_interrupt_next_run, daemon=True).start()
        assert train.main(one["train"]) == 128 + signal.SIGTERM


if __name__ == "__main__":
    main()
