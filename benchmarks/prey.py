"""Train the prey that the package ships, and say how well the scripted predators catch it.

    python benchmarks/prey.py [SCENARIO-RULES ...]

Writes marl/particles/weights/SCENARIO-RULES.npz. Training ends early on purpose: after a few thousand episodes more
hardly anybody catches it.
"""

import sys
import tempfile
from pathlib import Path

import torch

from core.rollout import rollout
from marl.behaviours import scripted_team
from marl.hunted import learn_prey
from marl.learner_config import LearnerConfig
from marl.particles import Flight, Particles, learned_path, load_prey, save_prey

SEEDS = range(2000)

#: Episodes of training: two prey and four predators need more.
EPISODES = {("tag", "omar"): 600, ("tag", "mpe2"): 600, ("world", "omar"): 1000, ("world", "mpe2"): 2500}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for (scenario, rules), episodes in EPISODES.items():
        if not names or f"{scenario}-{rules}" in names:
            path = learned_path(scenario, rules)
            path.parent.mkdir(exist_ok=True)
            config = LearnerConfig(episodes=episodes, discount=0.95, lookahead=1)
            with tempfile.TemporaryDirectory() as folder:
                save_prey(learn_prey(scenario, rules, config, Path(folder)), path)
            for prey in (Flight(), load_prey("learned", scenario, rules)):
                environments = Particles(scenario, rules, prey=prey)
                scores = {
                    quality: rollout(
                        scripted_team(f"mpe/{scenario}", quality, rules), environments, SEEDS, parallel=len(SEEDS)
                    ).trajectories.scores.mean()
                    for quality in ("random", "medium", "expert")
                }
                print(scenario, rules, prey.name, {name: round(float(score), 1) for name, score in scores.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
