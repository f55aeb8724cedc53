"""With one agent, the planner is Decision Diffuser: it learns from the best of mixed data what is asked for."""

import pytest
import torch

from core.acting import Acting, GuidanceConfig
from core.cli.commands import register_schemas
from core.config import compose_config, to_object
from core.rollout import rollout
from core.samplers import SamplerConfig
from core.training import Trainer, TrainerConfig
from marl import MADiff, TaskConfig


@pytest.mark.slow
def test_a_single_agent_learns_to_do_what_is_asked(tmp_path):
    register_schemas()
    overrides = ["algo=decision_diffuser", "algo.width=32", "algo.multipliers=[1]", "algo.horizon=4"]
    config = to_object(compose_config("train", overrides)).algo
    assert not config.attention
    task = TaskConfig(agents=1)
    with task.make() as environments:
        mixed, expert, random = (
            task.collect(quality, environments, 400, 0, parallel=400).trajectories
            for quality in ("mixed", "expert", "random")
        )
        torch.manual_seed(0)
        planner = MADiff(config, environments.spec)
        trainer = Trainer(
            planner, planner.prepare(mixed), TrainerConfig(steps=700, ema=0.99, device="cpu", warmup=50), tmp_path
        )
        trainer.run()
        trainer.ema.copy_to(planner)
        planner.eval()

        def score(returns):
            acting = Acting(SamplerConfig(steps=2), GuidanceConfig(1.5, returns))
            scores = rollout(planner.policy(acting), environments, range(1000, 1200)).trajectories.scores.mean()
            return float((scores - random.scores.mean()) / (expert.scores.mean() - random.scores.mean()))

        best, worst = score(0.95), score(0.05)
    data = float((mixed.scores.mean() - random.scores.mean()) / (expert.scores.mean() - random.scores.mean()))
    assert best > 0.7  # of the way from random to the expert, of which the data go less
    assert data < 0.6
    assert worst < best - 0.3
