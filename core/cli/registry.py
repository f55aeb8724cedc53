"""The algorithms and tasks of all packages, by the names that configurations have."""

from typing import Any

import marl
import safe
from core.algorithm import Algorithm
from core.cloning import Cloning
from core.config import from_dict
from core.errors import UserError, nearest
from core.tasks import Task

#: Algorithms by the `name` of their configuration.
ALGORITHMS: dict[str, type[Algorithm]] = {"cloning": Cloning, **marl.ALGORITHMS, **safe.ALGORITHMS}


def algorithm_class(name: str, where: str) -> type[Algorithm]:
    """The class of an algorithm.

    Raises:
        UserError: `where` names one that does not exist.
    """
    if name not in ALGORITHMS:
        raise UserError(f"{where} is a run of an unknown algorithm {name!r}: {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def task_from(values: dict[str, Any], where: str) -> Task:
    """The task that a saved configuration describes.

    Raises:
        UserError: it describes none.
    """
    kind = safe.SafeTaskConfig if str(values.get("name", "")).startswith("safe/") else marl.TaskConfig
    task = from_dict(kind, values, where)
    assert isinstance(task, Task)
    return task
