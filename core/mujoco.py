"""MuJoCo and gymnasium-robotics, which are an extra."""

import io
import warnings
from contextlib import redirect_stderr
from types import ModuleType
from typing import Any

from core.errors import UserError


def import_mujoco() -> ModuleType:
    """gymnasium-robotics' multi-agent MuJoCo; importing it registers its other environments with Gymnasium.

    Raises:
        UserError: the mamujoco extra is not installed.
    """
    try:
        with redirect_stderr(io.StringIO()):  # it has news of other environments
            import mujoco
            from gymnasium_robotics import mamujoco_v1
    except ImportError as error:
        raise UserError("MuJoCo's tasks need the mamujoco extra: pip install 'convoy-rl[mamujoco]'") from error
    hear(mujoco)
    return mamujoco_v1


def hear(mujoco: Any) -> None:
    """Make MuJoCo's warnings Python's: by itself it writes MUJOCO_LOG.TXT to wherever it runs."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:  # in Gymnasium's models
        warnings.warn(f"MuJoCo: {text}", stacklevel=2)
