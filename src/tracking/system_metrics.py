"""CPU, memory, disk and GPU load as metrics of a run on a server."""

import os
import threading
from collections.abc import Callable, Mapping

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ..utils.cli import warn


def wants_system_metrics() -> bool:
    """Return whether to record system metrics: yes, unless MLflow's variable disables them."""
    switch = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    return bool(switch.get()) if switch.name in os.environ else True


class Monitor:
    """Records the same metrics as MLflow's own monitor, in the background.

    MLflow's monitor stops at the first request that fails, so the run sends the metrics itself.
    """

    def __init__(self, run_id: str, log: Callable[[Mapping[str, float], int], None]) -> None:
        """Start the monitor.

        Args:
            run_id: The run; after a resume, step numbers continue from the last one.
            log: Logs metrics at a step.
        """
        self._source = SystemMetricsMonitor(run_id, resume_logging=True)
        self._source.mlflow_logger = self  # type: ignore[assignment]  # calls `record_metrics` only
        self._log = log
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._measure()
        except Exception as error:  # of drivers or a full disk: training continues or fails by itself
            warn(f"system metrics are no longer recorded: {type(error).__name__}: {error}")

    def _measure(self) -> None:
        source = self._source
        while True:
            for _ in range(source.samples_before_logging):
                source.collect_metrics()
                if self._stopping.wait(source.sampling_interval):
                    return
            source.publish_metrics(source.aggregate_metrics())

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log what MLflow's monitor publishes."""
        self._log({name: float(value) for name, value in metrics.items()}, step)

    def finish(self) -> None:
        """Stop the monitor, without waiting for a measurement that takes long."""
        self._stopping.set()
        self._thread.join(2)
