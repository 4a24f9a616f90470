"""The names under which things are found again: tags, metrics, artifacts, aliases."""

MODEL = "model"
MODALITY = "modality"
ROLE = "role"
"""What a run is that trains no candidate: ``promote``, ..."""
DATA_FINGERPRINT = "data.fingerprint"
SPLIT_FINGERPRINT = "split.fingerprint"
ALLOWED_LEAKS = "data.allowed_leaks"
"""Images and patients that training shares with another split, where the user has allowed it."""
CONFIG_SHA256 = "config.sha256"
SEED = "seed"
EVALUATED = "evaluated."
"""Starts the names of what an evaluation was of: run, version, split."""
ERROR = "error"
"""Why a run did not finish."""
ENVIRONMENT = "env."
"""Starts the names of what a result depends on beside config and data."""
HEARTBEAT = "heartbeat"
"""Which process works on a run, and when it last did."""

DELIVERY = "delivery"
"""On a logged model: which one of its run it is, so that none is made twice."""

BEST_VAL_AUC = "best_val_auc"
"""What promotion ranks by."""

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
PREDICTIONS = "predictions"
LOGGED_MODEL = "model"

CHAMPION = "champion"
PREVIOUS = "previous"


def registered_name(model: str, modality: str) -> str:
    """The registered model of a model on a modality."""
    return f"{model}_{modality}"
