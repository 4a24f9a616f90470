"""Health check of a store and an output folder, by ``python -m src.store doctor``."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ..errors import MlprojectError, UserError
from ..promotion.history import best_hparams_folder
from ..promotion.report import check_consistency
from ..tracking.journal import items
from ..tracking.liveness import DEAD, check_running_runs, mark_killed
from ..tracking.names import RUNNING
from ..tracking.store import (
    http_retries,
    open_store,
    quiet_client,
    resolve_uri,
    shown_uri,
    why_not_writable,
)
from ..tracking.sync import PendingDelivery, find_pending
from ..utils.cli import command, span
from ..utils.console import wide_console
from ..utils.io import find_temps
from ..utils.project import in_project, local_path
from ..utils.runtime import environment


def examine(output: Path | None, *, apply: bool) -> None:
    """Print what is wrong with the store and the output folder.

    Args:
        output: The folder of the runs; None for ``outputs``, which need not exist.
        apply: Mark orphaned runs KILLED, and delete leftover temporary files.

    Raises:
        UserError: The folder does not exist.
        StoreError: The store does not exist, or cannot be read.
        MlprojectError: Something is wrong.
    """
    if output is not None and not output.is_dir():
        raise UserError(f"--output-dir {output}: no such folder; give experiment.output_dir of the runs")
    output = output or in_project("outputs")
    _show_machine(output)
    with http_retries(2), quiet_client():
        open_store(must_exist=True)
        pending = find_pending(output)
        wrong = [
            *_check_store(),
            *_check_runs(pending, apply=apply),
            *_check_temps(output, apply=apply),
            *_check_journals(pending),
            *_check_agreement(),
        ]
    if wrong:
        raise MlprojectError("; ".join(wrong))
    print("nothing is wrong")


def _show_machine(output: Path) -> None:
    """Print disk space, versions and devices, which need no open store."""
    print(f"store      {shown_uri()}")
    places = {"the store": local_path(resolve_uri()), "outputs": output.absolute()}
    print(f"free disk  {'; '.join(_free(name, path) for name, path in places.items() if path)}")
    versions = environment() | {"mlflow": version("mlflow")}
    names = ("python", "torch", "torchvision", "mlflow", "numpy")
    print(f"versions   {', '.join(f'{name} {versions[name]}' for name in names)}")
    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    print(f"devices    {', '.join([f'cpu ({torch.get_num_threads()} threads)', *cards, *mps])}")


def _free(name: str, path: Path) -> str:
    existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
    usage = shutil.disk_usage(existing)
    return f"{decimal(usage.free)} of {decimal(usage.total)} for {name} in {existing}"


def _check_store() -> list[str]:
    why = why_not_writable()
    print(f"writable   {'yes' if why is None else f'no: {why}'}")
    return [] if why is None else [f"{shown_uri()} cannot be written: {why}"]


def _check_runs(pending: Sequence[PendingDelivery], *, apply: bool) -> list[str]:
    runs = check_running_runs(pending)
    dead = [found.run.run_id for found in runs if found.state == DEAD]
    if runs:
        table = Table(RUNNING, "name", "state", "why")
        for found in runs:
            table.add_row(*map(escape, (found.run.run_id, found.run.name, found.state, found.why)))
        wide_console().print(table)
    else:
        print("runs       none is RUNNING")
    if not apply:
        what = f"{len(dead)} of {len(runs)} RUNNING runs dead"
        return [f"{what}: {command('store doctor --apply')} marks them KILLED"] if dead else []
    for run_id in dead:
        is_killed = mark_killed(run_id, pending)
        print(f"run {run_id}: {'marked KILLED' if is_killed else 'not changed, since it is no longer dead'}")
    return []


def _check_temps(output: Path, *, apply: bool) -> list[str]:
    store = local_path(resolve_uri())
    temps = find_temps(output, best_hparams_folder(), *([store.parent] if store else []))
    leftovers = [temp for temp in temps if temp.is_orphaned]
    if temps:
        table = Table("temporary", "size", "age", "")
        for temp in temps:
            state = "left over" if temp.is_orphaned else "in use, or too recent to decide"
            table.add_row(escape(str(temp.path)), decimal(temp.size), span(temp.age), state)
        wide_console().print(table)
    if not apply:
        what = f"{len(leftovers)} of {len(temps)} temporary files left over"
        return [f"{what}: {command('store doctor --apply')} deletes them"] if leftovers else []
    for temp in leftovers:
        temp.remove()
        print(f"{temp.path}: deleted")
    return []


def _check_journals(pending: Sequence[PendingDelivery]) -> list[str]:
    """Report undelivered items that no process is delivering; empty journals with a run id are skipped."""
    waiting = [one for one in pending if not one.is_held and (one.count or one.run_id is None)]
    for one in waiting:
        print(f"{one.results}: {items(one.count)} of run {one.run_id or 'unknown'} not delivered")
    return [f"{command('store sync')} {one.results} delivers them" for one in waiting]


def _check_agreement() -> list[str]:
    found = check_consistency(None, None)
    wrong = {name: problems for name, problems in found.items() if problems}
    print(f"promoted   groups: {len(found)}; where YAML and registry do not agree: {len(wrong)}")
    for name, problems in wrong.items():
        print(f"{name}: {'; '.join(problems)}")
    return [f"not all agree: {', '.join(wrong)}; see {command('promote --check')}"] if wrong else []
