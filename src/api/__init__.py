"""The Python interface: train, promote, and apply models, as the commands do.

    from mlproject.api import train, promote, load

Nothing is printed unless ``verbose=True``; what a command prints as a warning is a `MlprojectWarning`. Every
error that a command reports in one message is a `MlprojectError`. Process-wide settings (environment
variables, torch's threads, signal handlers, MLflow's active run, ...) are after each call as they were before
it. During a call they are the project's, so that calls in several threads wait for each other.

Ctrl-C, SIGTERM and the other stop signals of a command end a run KILLED and resumable, and then do what they
do in the caller's program. Python allows this in the main thread only: no signal reaches another thread.
"""

from ..errors import (
    ClaimError,
    ConfigError,
    DataError,
    MlprojectError,
    MlprojectWarning,
    ModelError,
    StoreError,
    TrackingError,
    TrainingError,
    UserError,
)
from ..utils.config import Config
from .classifier import Classifier, load
from .promoting import Promotion, PromotionError, promote
from .training import Run, train

__all__ = [
    "ClaimError",
    "Classifier",
    "Config",
    "ConfigError",
    "DataError",
    "MlprojectError",
    "MlprojectWarning",
    "ModelError",
    "Promotion",
    "PromotionError",
    "Run",
    "StoreError",
    "TrackingError",
    "TrainingError",
    "UserError",
    "load",
    "promote",
    "train",
]
