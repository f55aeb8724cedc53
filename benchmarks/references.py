"""Scores of the scripted teams in our own tasks: what normalises a return, and what each quality of data returns.

    python benchmarks/references.py [episodes]

For both rule sets and every prey (the published one where ../shared/data/mpe_prey holds it), mean return and standard
error of each scripted quality; and spread for teams of two to six. Prints a table, writes benchmarks/references.json.
`marl.environments.REFERENCES` states the scores of random and expert.
"""

import json
import math
import sys
from pathlib import Path

import torch

from core.files import write_text
from core.rollout import rollout
from marl.behaviours import SCRIPTS, scripted_team
from marl.environments import TaskConfig

_PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mpe_prey"


def tasks() -> list[TaskConfig]:
    """Every task of ours, under both rules, with each prey."""
    found = [TaskConfig("mpe/spread", rules) for rules in ("mpe2", "omar")]
    found += [TaskConfig("mpe/spread", agents=agents) for agents in (2, 4, 5, 6)]
    for scenario in ("tag", "world"):
        published = _PUBLISHED / f"mpe_prey_simple_{scenario}.npz"
        for rules in ("mpe2", "omar"):
            found += [TaskConfig(f"mpe/{scenario}", rules, prey=prey) for prey in ("flight", "learned")]
        if published.is_file():
            found.append(TaskConfig(f"mpe/{scenario}", "omar", prey=str(published)))
        else:
            print(f"not run: {scenario} with the published prey, which is not at {published}")
    return found


def main(episodes: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for task in tasks():
        with task.make() as environments:
            for quality in SCRIPTS[task.name, task.rules]:
                team = scripted_team(task.name, quality, task.rules)
                data = rollout(team, environments, range(episodes), parallel=2000).trajectories
                row = {
                    "task": task.name,
                    "rules": task.rules,
                    "agents": task.agents,
                    "prey": task.prey_name,
                    "quality": quality,
                    "episodes": episodes,
                    "return_mean": round(float(data.scores.mean()), 4),
                    "standard_error": round(float(data.scores.std()) / math.sqrt(episodes), 4),
                }
                rows.append(row)
                line = "{task} {rules:4} {agents} {prey:9} {quality:10} {return_mean:8.3f} +- {standard_error:.3f}"
                print(line.format(**row), flush=True)
    write_text(Path(__file__).with_suffix(".json"), json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
