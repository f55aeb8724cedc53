"""What the inverse dynamics should read, and what it should be trained on.

    python benchmarks/inverse_dynamics.py RUN [data=FOLDER] [episodes=512]

One trained MADiff run plans for all rows; only the model that turns its plans into actions differs, each trained for
the same 6,000 steps of 256 joint transitions. Rows: the true successors as published; the same from the agent's own
velocity and position alone; successors with Gaussian noise of 0.1, or with the planner's own error, measured entry by
entry; the planner's own successors, sampled. The last row sees no plan at all.
All are evaluated on the same episodes. Writes benchmarks/inverse_dynamics.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from core.acting import Acting
from core.cli.cells import task_of
from core.cli.commands import data_root
from core.data import read_dataset
from core.networks import mlp
from core.progress import bar
from core.rollout import rollout
from core.runs import Run
from core.statistics import mean_interval
from marl import InverseDynamics, MADiff

STEPS, BATCH, PLANNED = 6000, 256, 16384
OWN = [0, 1, 2, 3]  # mpe/spread: velocity and position


class Transitions:
    """Normalised transitions of the data, and what the planner makes of them."""

    def __init__(self, planner: MADiff, run: Run, data: Path):
        trajectories = read_dataset(run.config["dataset"]["id"], data).trajectories
        rows = trajectories.decisions
        observations = planner.normaliser(trajectories.observations)
        self.observations, self.successors = observations[rows], observations[rows + 1]
        self.actions = trajectories.actions[rows]
        generator = torch.Generator().manual_seed(0)
        self.chosen = torch.randperm(len(rows), generator=generator)[:PLANNED]
        raw = trajectories.observations[rows[self.chosen]]
        parts = [planner.plan(part, sampler=None, seed=i) for i, part in enumerate(raw.split(1024))]
        self.planned = planner.normaliser(torch.cat([plan.observations[:, 1] for plan in parts]))
        self.error = (self.planned - self.successors[self.chosen]).square().mean(dim=(0, 1)).sqrt()


class Blind(nn.Module):
    """Reads the current observation and nothing of the plan."""

    def __init__(self, observation_dim: int, action_dim: int):
        super().__init__()
        self.net = mlp(observation_dim, action_dim)

    def forward(self, observations: Tensor, successors: Tensor) -> Tensor:
        return self.net(observations)


def train(model: nn.Module, observations: Tensor, successors: Callable[[Tensor], Tensor], actions: Tensor) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        index = torch.randint(len(observations), (BATCH,), generator=generator)
        loss = (model(observations[index], successors(index)) - actions[index]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def main(folder: str, *options: str) -> None:
    settings = dict(option.split("=", 1) for option in options)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of every row's initial weights
    run = Run.open(Path(folder))
    planner = MADiff.load(folder)
    data = Transitions(planner, run, data_root(settings.get("data")))
    task = task_of(run)
    size, actions = planner.spec.observation_dim, planner.spec.action_dim

    def noisy(scale: Tensor | float) -> Callable[[Tensor], Tensor]:
        return lambda index: data.successors[index] + scale * torch.randn(len(index), *data.successors.shape[1:])

    some = (data.observations[data.chosen], lambda index: data.planned[index], data.actions[data.chosen])
    everything = (data.observations, lambda index: data.successors[index], data.actions)
    variants: dict[str, tuple[nn.Module | None, tuple | None]] = {
        "as trained with the run": (planner.inverse, None),
        "true successors, all entries (published)": (InverseDynamics(size, actions), everything),
        "true successors, own velocity and position": (InverseDynamics(size, actions, entries=OWN), everything),
        "successors + noise 0.1": (InverseDynamics(size, actions), (data.observations, noisy(0.1), data.actions)),
        "successors + the planner's error": (
            InverseDynamics(size, actions),
            (data.observations, noisy(data.error), data.actions),
        ),
        "the planner's successors": (InverseDynamics(size, actions), some),
        "no plan (cloning)": (Blind(size, actions), everything),
    }
    episodes = int(settings.get("episodes", 512))
    rows = []
    with bar("inverse dynamics", len(variants)) as advance:
        for name, (model, training) in variants.items():
            torch.manual_seed(0)
            if training is not None and model is not None:
                train(model, *training)
            planner.inverse = model  # type: ignore[assignment]
            seeds = range(1_000_000, 1_000_000 + episodes)
            scores = rollout(planner.policy(Acting()), task.make(), seeds).trajectories.scores
            mean, interval = mean_interval(scores)
            references = task.references
            rows.append(
                {
                    "inverse dynamics": name,
                    "return_mean": mean,
                    "interval": interval,
                    "normalised_score": references.normalise(mean) if references else None,
                    "episodes": episodes,
                }
            )
            print(f"{name:45} {mean:7.2f}  {interval[0]:.2f} to {interval[1]:.2f}", flush=True)
            advance(1)
    report = {"run": run.config, "planner_error": data.error.tolist(), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
