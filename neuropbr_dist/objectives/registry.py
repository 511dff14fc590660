"""Custom reconstruction losses: registered by name, switched on by `loss.custom`.

A file named by `loss.custom_module`:

    from neuropbr_dist.objectives import ALBEDO, register_loss

    @register_loss("albedo_mse")
    def albedo_mse(pred, target):
        return (pred[:, ALBEDO] - target[:, ALBEDO]).square().mean((1, 2, 3))

and in the config `loss.custom = {"albedo_mse": 0.2}`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import Tensor

from neuropbr_dist.errors import UserError, running
from neuropbr_dist.files import realpath

CustomLoss = Callable[[Tensor, Tensor], Tensor]
"""`(pred, target)`, both `(B, 8, H, W)` float32 -> `(B,)`, one value per sample."""

_losses: dict[str, CustomLoss] = {}
_modules: dict[Path, ModuleType] = {}


def register_loss(name: str) -> Callable[[CustomLoss], CustomLoss]:
    """Return a decorator that registers a custom loss under a name.

    Raises:
        UserError: the name is taken.
    """

    def register(function: CustomLoss) -> CustomLoss:
        if name in _losses:
            raise UserError(f"custom loss {name!r} is registered twice; choose another name")
        _losses[name] = function
        return function

    return register


def registered_losses() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_losses)


def custom_loss(name: str) -> CustomLoss:
    """Return the loss registered under `name`, with its result's shape checked at each call.

    Raises:
        UserError: nothing is registered under the name, or (when called) the result
            is not of shape `(B,)`.
    """
    if name not in _losses:
        known = ", ".join(registered_losses()) or "none"
        raise UserError(
            f"loss.custom names {name!r}, which no @register_loss registered; registered: {known} "
            "(loss.custom_module names the file that registers them)"
        )
    function = _losses[name]

    def checked(pred: Tensor, target: Tensor) -> Tensor:
        result = function(pred, target)
        if not isinstance(result, Tensor) or result.shape != pred.shape[:1]:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise UserError(
                f"custom loss {name!r} returned {got}; it must return one value per sample, "
                f"shape ({pred.shape[0]},): take the mean over channels and pixels only"
            )
        return result

    return checked


def load_custom_module(path: str | Path) -> ModuleType:
    """Import the Python file that registers custom losses; a file is run once.

    Raises:
        UserError: there is no such `.py` file, or it raises.
    """
    file = realpath(Path(path).expanduser())
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"loss.custom_module: {path} is not a Python file; give the path of a .py file")
    if file not in _modules:
        spec = importlib.util.spec_from_file_location(f"neuropbr_custom_{file.stem}", file)
        assert spec is not None and spec.loader is not None  # as the suffix is .py
        module = importlib.util.module_from_spec(spec)
        with running(file):
            spec.loader.exec_module(module)
        _modules[file] = module
    return _modules[file]
