"""Import torchvision, also with a CPU-only torch; all other modules import it from here.

torchvision's Linux wheel is built against CUDA. With a CPU-only torch its compiled operators do not load,
and its import fails when it registers their shapes. This project does not need these operators, which are
for detection. If the import fails for this reason, it is repeated without the registration.
"""

import importlib
import sys
from types import ModuleType

_FAKE_KERNELS = "torchvision._meta_registrations"


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules[_FAKE_KERNELS] = ModuleType(_FAKE_KERNELS)
    return importlib.import_module("torchvision")


torchvision = _import()
"""The imported package; take submodules from it (``torchvision.models``)."""


def submodule(name: str) -> ModuleType:
    """Import a submodule that torchvision loads lazily, such as ``transforms.v2``."""
    return importlib.import_module(f"torchvision.{name}")
