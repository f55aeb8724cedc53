"""What a diffusion policy can say that a Gaussian cannot: python benchmarks/bandits.py

Three one-step tasks with actions in a square and no observation, after the Diffusion-QL paper's (Wang et al. 2023,
figure 1); places and rewards are ours. Each row is what one policy does: the data, a Gaussian of the data's mean and
covariance (the best that a Gaussian can do by maximum likelihood), diffusion cloning, and the diffusion policy that
heeds its critics. Trains nine small policies in about eight minutes on one core, prints the share of each mode and the
mean reward, writes benchmarks/bandits.json and docs/bandits.png.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from core.acting import Acting, SelectionConfig
from core.critics import CriticConfig
from core.data import Trajectories
from core.environments import TeamSpec
from core.figures import PALETTE, style
from core.files import write_text
from core.rollout import Context
from core.samplers import SamplerConfig
from core.training import Trainer, TrainerConfig
from marl import DiffusionPolicy, DiffusionPolicyConfig

ROOT = Path(__file__).resolve().parents[1]
ACTIONS = 4000
SPEC = TeamSpec(1, 1, 2)


@dataclass(frozen=True)
class Bandit:
    """Modes of the data [M, 2], with what is spread around them, and the mean reward of each [M]."""

    modes: Tensor
    spread: float
    rewards: tuple[float, ...]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions [N, 2] and their rewards [N], of deviation 0.5."""
        mode = torch.randint(len(self.modes), (count,), generator=generator)
        noise = torch.randn(count, 3, generator=generator)
        actions = (self.modes[mode] + self.spread * noise[:, :2]).clamp(-1, 1)
        return actions, torch.tensor(self.rewards)[mode] + 0.5 * noise[:, 2]

    def shares(self, actions: Tensor) -> tuple[list[float], float]:
        """Share of the actions within 4 deviations of each mode, and of those that are near none."""
        distance = torch.cdist(actions, self.modes)
        near = (distance.amin(dim=1) < 4 * self.spread)[:, None] & (distance == distance.amin(dim=1, keepdim=True))
        shares = near.float().mean(dim=0)
        return [round(float(share), 4) for share in shares], round(1 - float(shares.sum()), 4)


def _ring(count: int, radius: float) -> Tensor:
    angle = torch.arange(count) * (2 * math.pi / count)
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


BANDITS = {
    "four corners": Bandit(0.8 * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]), 0.05, (0.0, 3.0, 1.5, 5.0)),
    "ring of eight": Bandit(_ring(8, 0.8), 0.05, (0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0)),
    "grid of nine": Bandit(
        torch.cartesian_prod(torch.tensor([-0.7, 0.0, 0.7]), torch.tensor([-0.7, 0.0, 0.7])),
        0.05,
        (0.0, 0.0, 2.0, 0.0, 5.0, 0.0, 2.0, 0.0, 0.0),
    ),
}

#: The settings of each learned policy, of how many candidates it takes the best, and its share of the training steps.
POLICIES: dict[str, tuple[dict[str, object], int, float]] = {
    "diffusion cloning": ({"improvement": "none", "critic": None}, 1, 1.0),
    "with critics (DOM2)": (
        {"eta": 0.1, "hidden": 128, "layers": 2, "sampler": SamplerConfig("ddim", 10)}
        | {"critic": CriticConfig(hidden=64, conservative=0.1)},
        1,
        0.5,
    ),
    "cloning, best of 32 (IDQL)": ({"improvement": "none", "critic": CriticConfig(hidden=64)}, 32, 1.0),
}


def data_of(bandit: Bandit) -> Trajectories:
    """One-step episodes that see nothing."""
    actions, rewards = bandit.draw(ACTIONS, torch.Generator().manual_seed(0))
    rows = torch.arange(2 * ACTIONS)
    acted, earned = torch.zeros(2 * ACTIONS, 1, 2), torch.zeros(2 * ACTIONS, 1)
    acted[rows[::2], 0], earned[rows[::2], 0] = actions, rewards
    seen, ends = torch.zeros(2 * ACTIONS, 1, 1), torch.arange(0, 2 * ACTIONS + 1, 2)
    return Trajectories(seen, acted, earned, torch.zeros_like(earned), ends, torch.ones(ACTIONS, dtype=torch.bool))


def learned(data: Trajectories, settings: dict[str, object], candidates: int, share: float, steps: int) -> Tensor:
    """Actions [N, 2] of a policy trained on the data."""
    torch.manual_seed(0)
    steps = round(share * steps)
    usual = {"hidden": 256, "layers": 3, "prediction": "v", "sampler": SamplerConfig("dpm", 20)}
    config = DiffusionPolicyConfig(**(usual | settings))  # type: ignore[arg-type]
    policy = DiffusionPolicy(config, SPEC)
    training = TrainerConfig(
        steps=steps, batch_size=256, learning_rate=2e-3, ema=0.0, checkpoint_every=steps, device="cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(policy, policy.prepare(data), training, Path(folder)).run()
    acting = policy.eval().policy(Acting(config.sampler, selection=SelectionConfig(candidates)))
    acting.reset(range(ACTIONS))
    return acting.act(torch.zeros(ACTIONS, 1, 1), Context(0, torch.ones(ACTIONS, dtype=torch.bool)))[:, 0]


def gaussian(actions: Tensor) -> Tensor:
    """Draws [N, 2] from the Gaussian of the actions' mean and covariance."""
    mean, root = actions.mean(dim=0), torch.linalg.cholesky(torch.cov(actions.T))
    noise = torch.randn(ACTIONS, 2, generator=torch.Generator().manual_seed(1))
    return (mean + noise @ root.T).clamp(-1, 1)


def measure(
    steps: int, told: Callable[[str], None] = print
) -> tuple[list[dict[str, object]], dict[tuple[str, str], Tensor]]:
    """Rows of the table, and the actions of each row."""
    rows: list[dict[str, object]] = []
    drawn: dict[tuple[str, str], Tensor] = {}
    for name, bandit in BANDITS.items():
        data = data_of(bandit)
        actions = data.actions[data.decisions][:, 0]
        found = {"data": actions, "Gaussian": gaussian(actions)}
        found |= {policy: learned(data, *how, steps) for policy, how in POLICIES.items()}
        for policy, taken in found.items():
            shares, nowhere = bandit.shares(taken)
            reward = sum(share * worth for share, worth in zip(shares, bandit.rewards, strict=True))
            rows.append({"bandit": name, "policy": policy, "shares": shares, "nowhere": nowhere, "reward": reward})
            told(f"{name:14} {policy:34} reward {reward:5.2f}, near no mode {nowhere:6.1%}, modes {shares}")
            drawn[name, policy] = taken
    return rows, drawn


def draw(drawn: dict[tuple[str, str], Tensor], path: Path) -> None:
    """The actions of every row, a square each."""
    policies = list(dict.fromkeys(policy for _, policy in drawn))
    with style():
        figure = Figure(figsize=(2.2 * len(policies), 2.3 * len(BANDITS)), layout="constrained")
        grid = figure.subplots(len(BANDITS), len(policies), sharex=True, sharey=True)
        for row, name in zip(grid, BANDITS, strict=True):
            for axes, policy in zip(row, policies, strict=True):
                points = drawn[name, policy][:1000]
                axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.4, color=PALETTE[0], linewidths=0)
                axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
                best = BANDITS[name].modes[
                    max(range(len(BANDITS[name].rewards)), key=BANDITS[name].rewards.__getitem__)
                ]
                axes.scatter(*best, s=160, facecolors="none", edgecolors=PALETTE[1], linewidths=1.4)
                if name == next(iter(BANDITS)):
                    axes.set_title(policy.replace(" (", "\n("))
            row[0].set_ylabel(name)
        figure.savefig(path, dpi=110)


def main(steps: int = 8000, folder: Path | None = None) -> None:
    torch.set_num_threads(1)
    rows, drawn = measure(steps)
    write_text(
        (folder or ROOT / "benchmarks") / "bandits.json", json.dumps({"steps": steps, "rows": rows}, indent=1) + "\n"
    )
    draw(drawn, (folder or ROOT / "docs") / "bandits.png")


if __name__ == "__main__":
    main()
