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
ERROR = "error"
"""Why a run did not finish."""

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
