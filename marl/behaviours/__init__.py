"""Scripted teams: the behaviours that collected data comes from."""

from dataclasses import replace
from typing import Any

from core.errors import UserError, nearest
from marl.behaviours.chase import ChaseTeam, Pursuit
from marl.behaviours.spread import SpreadTeam, Steering
from marl.behaviours.team import ScriptedTeam

__all__ = ["QUALITIES", "SCRIPTS", "ChaseTeam", "Pursuit", "ScriptedTeam", "SpreadTeam", "Steering", "scripted_team"]


def _spread(expert: Steering, medium: Steering) -> dict[str, Steering | Pursuit]:
    return {
        "expert": expert,
        "medium": medium,
        "random": Steering(assignment="none"),
        "mixed": replace(expert, misled=0.5),
        "multimodal": replace(expert, assignment="random"),
    }


def _chase(expert: Pursuit, noise: float) -> dict[str, Steering | Pursuit]:
    return {
        "expert": expert,
        "medium": replace(expert, noise=noise),
        "random": Pursuit(approach="none"),
        "mixed": replace(expert, misled=0.5),
        "multimodal": replace(expert, approach="sides"),
    }


#: In mpe2 a predator's force is a third of the fork's: it needs foresight, and to brake in time.
_FORESIGHT = Pursuit(kp=16.0, kd=4.0, lead=0.3)

#: The behaviour behind each quality of the dataset of a task and its rules. Under omar, where results are published,
#: expert and medium return what the published data do (with the published prey): noise, like a learner's exploration,
#: brings a good team down to that, and shows how to recover.
SCRIPTS: dict[tuple[str, str], dict[str, Steering | Pursuit]] = {
    ("mpe/spread", "mpe2"): _spread(Steering(), medium=Steering(noise=1.0, delay=2)),
    ("mpe/spread", "omar"): _spread(Steering(noise=0.95), medium=Steering(noise=1.5, delay=3)),
    ("mpe/tag", "mpe2"): _chase(_FORESIGHT, noise=1.0),
    ("mpe/tag", "omar"): _chase(Pursuit(kd=1.0, noise=0.195), noise=0.773),
    ("mpe/world", "mpe2"): _chase(_FORESIGHT, noise=1.0),
    ("mpe/world", "omar"): _chase(Pursuit(kd=1.0, noise=0.453), noise=0.653),
}

#: Names of the qualities that a scripted team has for each task.
QUALITIES: dict[str, tuple[str, ...]] = {task: tuple(scripts) for (task, _), scripts in SCRIPTS.items()}


def scripted_team(task: str, quality: str, rules: str = "mpe2") -> ScriptedTeam[Any]:
    """The team that collects a task's dataset of a quality.

    Raises:
        UserError: a task or rules without a scripted team, or an unknown quality.
    """
    if task not in QUALITIES:
        raise UserError(f"no scripted team for {task!r}: {nearest(task, QUALITIES)}")
    scripts = SCRIPTS.get((task, rules))
    if scripts is None:
        raise UserError(f"unknown rules {rules!r} of {task}: choose one of mpe2, omar")
    if quality not in scripts:
        raise UserError(f"unknown quality {quality!r} of {task}: {nearest(quality, scripts)}")
    script = scripts[quality]
    if isinstance(script, Steering):
        return SpreadTeam(script)
    if task == "mpe/tag":
        return ChaseTeam(script)
    # A predator sees of itself which of two forests it is in, and in mpe2 hears four words of the leader.
    return ChaseTeam(script, prey=2, rest=6, actions=6) if rules == "mpe2" else ChaseTeam(script, rest=2)
