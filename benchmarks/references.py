"""Reference scores of the team tasks: uniform random actions, and the scripted expert.

    python benchmarks/references.py [episodes]

Prints a table of mean return and standard error, and writes benchmarks/references.json. These are the two scores
that `marl.environments.REFERENCES` states.
"""

import json
import math
import sys
from pathlib import Path

import torch

from core.rollout import rollout
from marl.behaviours import QUALITIES, scripted_team
from marl.environments import TaskConfig


def main(episodes: int) -> None:
    torch.set_num_threads(1)
    task = TaskConfig("mpe/spread")
    rows = []
    for quality in QUALITIES[task.name]:
        scores = rollout(scripted_team(task.name, quality), task.make, range(episodes)).trajectories.scores
        row = {
            "task": task.name,
            "rules": task.rules,
            "quality": quality,
            "episodes": episodes,
            "return_mean": round(float(scores.mean()), 4),
            "standard_error": round(float(scores.std()) / math.sqrt(episodes), 4),
        }
        rows.append(row)
        print("{task} {rules} {quality:11} {return_mean:8.3f} +- {standard_error:.3f}".format(**row), flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
