"""The machine's load as metrics of the run, for a run at a server."""

import os
import threading
from collections.abc import Callable, Mapping

from ..utils.cli import warn

PREFIX = "system/"
"""Starts the names of these metrics."""


def wants_system_metrics() -> bool:
    """Whether the machine's load is recorded: unless MLflow's variable says no."""
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as SWITCH

    # The monitor is a thread that some machines forbid.
    return bool(SWITCH.get()) if SWITCH.name in os.environ else True


class Monitor:
    """Measures what MLflow's own monitor measures, as often, and hands it to the run.

    MLflow's sends by itself: at the first request that fails it ends.
    """

    def __init__(self, run_id: str, log: Callable[[Mapping[str, float], int], None]) -> None:
        """Starts to measure.

        Args:
            run_id: The run; where it was measured before, the steps go on.
            log: Takes metrics and their step.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._source = SystemMetricsMonitor(run_id, resume_logging=True)
        self._log = log
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._measure()
        except Exception as error:  # of drivers, of a full disk: training goes on, or says so itself
            warn(f"the machine's load is no longer recorded: {type(error).__name__}: {error}")

    def _measure(self) -> None:
        source, prefix = self._source, PREFIX
        if source.node_id:
            prefix += f"{source.node_id}/"
        step = source._logging_step
        while True:
            for _ in range(source.samples_before_logging):
                source.collect_metrics()
                if self._is_over.wait(source.sampling_interval):
                    return
            measured = source.aggregate_metrics()
            self._log({prefix + name: float(value) for name, value in measured.items()}, step)
            step += 1
            for monitor in source.monitors:
                monitor.clear_metrics()

    def finish(self) -> None:
        """Ends; a measurement that takes long is not waited for."""
        self._is_over.set()
        self._thread.join(2)
