"""Kills trainings and promotions at random moments, over and over, and looks at what is left each time.

python -m tests.stress.kills --store sqlite --kills 200

In each round a training is started with ``--resume auto`` and killed by SIGKILL at a random moment, again and
again, until it comes to its end first; the same training without a kill must give the same. Then a promotion
is killed likewise, and must leave the best run as champion.
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import yaml
from mlflow.entities import Run as MlflowRun

from src import promote, store
from src.tracking.store import open_store
from src.training.run_folder import RunFolders
from src.verification.run_digest import run_digest
from tests.conftest import clean_environment
from tests.flows.processes import TINY
from tests.forked import Forked
from tests.images import write_npz
from tests.stress.whole import is_temporary, unreadable

OPTIONS = [*TINY, "--epochs", "3", "--modality", "A", "--set", "training.ema_decay=0.9"]
OPTIONS += ["--set", "training.checkpoint_every_minutes=1e-9"]
FIRST_SECONDS = 5.0
"""How long a training and a promotion are thought to take until one has come to its end."""


@dataclass
class Tally:
    """What came of the kills so far.

    Attributes:
        trainings: Trainings that were killed, each until it came to its end.
        identical: How many of them gave what an uninterrupted one gives.
        in_training: Kills of trainings.
        resumed: How many of these belong to trainings that ended identical.
        in_promotion: Kills of promotions.
        in_a_write: Kills in the midst of writing a file, which is left under a temporary name.
        different: What was not identical.
        unreadable: Files under their own names that could not be read.
        left_over: Temporary files that were still there when training and promotion had come to their ends.
        wrong_status: Runs whose status was not the truth after ``src.store doctor --apply``.
        wrong_best: Champions that were not the best run.
    """

    trainings: int = 0
    identical: int = 0
    in_training: int = 0
    resumed: int = 0
    in_promotion: int = 0
    in_a_write: int = 0
    different: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    wrong_status: list[str] = field(default_factory=list)
    wrong_best: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All of them."""
        return self.in_training + self.in_promotion

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be."""
        return self.different + self.unreadable + self.left_over + self.wrong_status + self.wrong_best

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.in_training} in {self.trainings} trainings, {self.in_promotion} in "
            f"promotions, {self.in_a_write} of them while a file was written: {self.resumed} of "
            f"{self.in_training} resumed to identical weights, metrics and tables; {len(self.unreadable)} "
            f"unreadable files, {len(self.left_over)} left over, {len(self.wrong_best)} wrong best, "
            f"{len(self.wrong_status)} wrong status"
        )


class Stress:
    """Rounds of kills in one folder, with one store."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.tally = Tally()
        self._random = random.Random(seed)
        self._seconds = {"train": FIRST_SECONDS, "promote": FIRST_SECONDS}
        self._since = 0.0
        self._temps: set[Path] = set()
        write_npz(folder / "small.npz")

    def round(self, number: int) -> None:
        """Kills one training and the promotion after it."""
        self._since = time.time()
        options = [*OPTIONS, "--set", f"training.seed={number}"]
        killed, whole = (RunFolders(Path("outputs"), f"{name}-{number}") for name in ("killed", "whole"))
        resuming = [*options, *_named(killed), "--resume", "auto"]
        kills = self._kill("train", resuming, 8, lambda: _is_finished(killed))
        if not _is_finished(killed):
            self._end("train", resuming)
        self._end("train", [*options, *_named(whole)])
        self._compare(kills, run_digest(killed), run_digest(whole))
        self.tally.in_promotion += self._kill("promote", ["--force"], 2)
        self._end("promote", ["--force"])
        self._check_champion()
        self.tally.unreadable += unreadable(self.folder)
        self.tally.left_over += map(str, self._find_temps())

    def _kill(
        self, command: str, options: list[str], at_most: int, is_done: Callable[[], bool] = lambda: False
    ) -> int:
        """Starts it again and again until it comes to its end before its kill does; returns the kills."""
        for kills in range(at_most):
            process = Forked(command, self.folder, options)
            try:
                _check(process, process.wait(self._random.uniform(0, self._seconds[command])))
                return kills
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._look()
            if is_done():  # killed right after it had said so
                return kills + 1
        return at_most

    def _end(self, command: str, options: list[str]) -> None:
        started = time.monotonic()
        process = Forked(command, self.folder, options)
        _check(process, process.wait(300))
        self._seconds[command] = time.monotonic() - started

    def _look(self) -> None:
        """Counts what a kill has left, lets the doctor in, and checks the status of every run."""
        before, self._temps = self._temps, self._find_temps()
        self.tally.in_a_write += not self._temps <= before
        self.tally.unreadable += unreadable(self.folder, self._since)
        if not _runs():
            return
        _call(store.main, "doctor", "--apply")
        *earlier, last = _runs()
        # A run that was killed before it got folders stays KILLED: nothing of it can be resumed.
        begun = [run.info.status for run in earlier if "experiment.name" in run.data.params]
        if last.info.status not in ("KILLED", "FINISHED") or any(status != "FINISHED" for status in begun):
            self.tally.wrong_status.append(f"{begun}, {last.info.status}")

    def _find_temps(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if is_temporary(path)}

    def _compare(self, kills: int, killed: dict[str, str], whole: dict[str, str]) -> None:
        different = [
            f"{name}: {killed[name]}, not {whole[name]}" for name in whole if killed[name] != whole[name]
        ]
        self.tally.trainings += 1
        self.tally.in_training += kills
        self.tally.identical += not different
        self.tally.resumed += kills * (not different)
        self.tally.different += different

    def _check_champion(self) -> None:
        version = mlflow.MlflowClient().get_model_version_by_alias("shufflenet_v2_x0_5_A", "champion")
        record = yaml.safe_load(Path("config/best_hparams/shufflenet_v2_x0_5_A.yaml").read_text())["mlflow"]
        name = "best_val_auc"  # a run that was killed before it got folders has none
        scores = {run.info.run_id: run.data.metrics[name] for run in _runs() if name in run.data.metrics}
        is_best = scores[version.run_id or ""] == max(scores.values())
        if not is_best or record["run_id"] != version.run_id or _call(promote.main, "--check") != 0:
            self.tally.wrong_best.append(f"champion {version.run_id}, {record}, {scores}")


def _named(folders: RunFolders) -> list[str]:
    return ["--set", f"experiment.name={folders.name}"]


def _is_finished(folders: RunFolders) -> bool:
    return any(run.info.run_name == folders.name and run.info.status == "FINISHED" for run in _runs())


def _runs() -> list[MlflowRun]:
    """In the order in which they were begun."""
    if not any(Path(name).exists() for name in ("mlflow.db", "mlruns")):
        return []
    open_store()
    return sorted(mlflow.MlflowClient().search_runs(["0"]), key=lambda run: run.info.start_time)


def _check(process: Forked, status: int) -> None:
    if status != 0:
        raise SystemExit(f"exit status {status}: {process.log.read_text()}")


def _call(command: Callable[[list[str]], int], *options: str) -> int:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return command(list(options))


@contextlib.contextmanager
def working_in(folder: Path, kind: str) -> Iterator[None]:
    """Within the block the working folder and the store, of this process and of its children, are these."""
    before = dict(os.environ)
    os.environ |= clean_environment(folder / "torch") | {"MLFLOW_ALLOW_FILE_STORE": "true"}
    os.environ["MLFLOW_TRACKING_URI"] = {"sqlite": f"sqlite:///{folder}/mlflow.db"}.get(
        kind, f"{folder}/mlruns"
    )
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs rounds until there were enough kills; returns 1 where anything was wrong."""
    parser = argparse.ArgumentParser("python -m tests.stress.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--store", choices=("sqlite", "file"), default="sqlite")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="kills-")).resolve()
    with working_in(folder, args.store):
        Forked("promote", folder, ["--help"]).wait()  # the server of forks imports now, not in a round
        stress, number = Stress(folder, args.seed), 0
        while stress.tally.kills < args.kills and not stress.tally.wrong:
            stress.round(number)
            number += 1
            print(f"{args.store}: {stress.tally}", flush=True)
    if stress.tally.wrong:
        print("\n".join([*stress.tally.wrong, f"all of it is kept in {folder}"]))
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
