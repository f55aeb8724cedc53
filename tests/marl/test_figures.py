import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from core.data import Trajectories
from core.rollout import rollout
from marl import TaskConfig, parallel_env, scripted_team
from marl.figures import plan_figure, positions_and_landmarks, rollout_animation

SVG = "{http://www.w3.org/2000/svg}"


def episodes(
    agents: int = 3, seeds: tuple[int, ...] = (0, 1), quality: str = "expert", cycles: int = 25
) -> Trajectories:
    task = TaskConfig(agents=agents, max_cycles=cycles)
    return rollout(scripted_team("mpe/spread", quality), task.make(), seeds).trajectories


def denoising(trajectories: Trajectories, steps: int, horizon: int = 8) -> tuple[Tensor, ...]:
    """Stages [B, T, A, O] from noise to the first steps of each episode."""
    plans = torch.stack([trajectories.observations[first : first + horizon] for first in trajectories.offsets[:-1]])
    noise = torch.randn(plans.shape, generator=torch.Generator().manual_seed(0))
    return tuple(torch.lerp(noise, plans, k / steps) for k in range(steps + 1))


def frames(data: bytes) -> tuple[list[np.ndarray], list[int]]:
    """Frames [H, W, 3] of a GIF and their durations in milliseconds."""
    images, durations = [], []
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "GIF"
        for k in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(k)
            images.append(np.asarray(image.convert("RGB")))
            durations.append(int(image.info["duration"]))
    return images, durations


@pytest.mark.parametrize("agents", [1, 3, 5])
def test_positions_and_landmarks_are_those_of_the_environment(agents):
    environment = parallel_env("mpe/spread", agents=agents)
    observations, _ = environment.reset(seed=3)
    stacked = torch.stack([torch.as_tensor(observations[agent]) for agent in environment.possible_agents])
    positions, landmarks = positions_and_landmarks(stacked[None])
    state = environment.unwrapped.particles.state
    np.testing.assert_allclose(positions[0], state.positions[0], atol=1e-6)
    np.testing.assert_allclose(landmarks[0], state.landmarks[0], atol=1e-6)


def test_too_small_observations_are_refused():
    with pytest.raises(ValueError, match="3 agents have at least 10 entries, got 9"):
        positions_and_landmarks(torch.zeros(3, 9))


@pytest.mark.parametrize(("agents", "steps", "stages"), [(3, 5, 5), (2, 1, 2), (5, 100, 5), (9, 3, 4)])
def test_a_plan_shows_every_agent_at_every_stage(agents, steps, stages):
    figure = plan_figure(denoising(episodes(agents), steps), index=1)
    assert figure.mime == "image/svg+xml"
    root = ElementTree.fromstring(figure.data)
    dots = {e.get("id"): e for e in root.iter(f"{SVG}g") if "-agent-" in (e.get("id") or "")}
    shown = sorted({int(str(name).split("-")[1]) for name in dots})
    assert len(shown) == stages
    assert (shown[0], shown[-1]) == (0, steps)
    assert len(dots) == stages * agents
    for name, group in dots.items():
        assert len(list(group.iter(f"{SVG}use"))) == 8, f"{name} lacks planned steps"
    texts = ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]
    assert {"noise", "agent 1", "landmark"} <= set(texts)
    assert f"{agents} agents over 8 time steps" in figure.caption


def test_a_plan_tells_how_close_it_ends():
    trajectories = episodes()
    figure = plan_figure(denoising(trajectories, 5, horizon=26))
    positions, landmarks = positions_and_landmarks(trajectories.observations[25])
    gaps = torch.cdist(positions, landmarks).amin(dim=1).tolist()
    assert figure.alt.endswith(", ".join(f"{gap:.2f}" for gap in gaps) + ".")


def test_a_plan_without_trace_is_refused():
    with pytest.raises(ValueError, match="trace=True"):
        plan_figure(())


def test_the_same_plan_gives_the_same_figure():
    trace = denoising(episodes(), 5)
    assert plan_figure(trace) == plan_figure(trace)


def test_an_animation_has_a_frame_a_step_and_rests_at_the_end():
    methods = {"expert": episodes(), "medium": episodes(quality="medium"), "a name that is too long for it": episodes()}
    figure = rollout_animation(methods, episode=1)
    assert figure.mime == "image/gif"
    images, durations = frames(figure.data)
    assert len(images) == 26
    assert durations[-1] > 5 * durations[0]
    assert len(figure.data) < 400_000
    assert all((image[0, 0] == 255).all() for image in images)
    final = methods["medium"].scores[1]
    assert f"medium {final:.1f}" in figure.alt
    assert "3 agents over 25 steps" in figure.alt


def test_panels_show_their_own_methods():
    expert = episodes()
    mirrored = replace(expert, observations=-expert.observations)
    pairs = [frames(rollout_animation({"a": expert, "b": other}).data)[0][-1] for other in (expert, mirrored)]
    differ = np.abs(pairs[0].astype(int) - pairs[1]).max(axis=2) > 100
    left, right = (float(half.mean()) for half in np.split(differ, 2, axis=1))
    assert left == 0
    assert right > 0.02


def test_a_shorter_episode_waits_and_long_ones_are_thinned():
    figure = rollout_animation({"long": episodes(cycles=200), "short": episodes(cycles=10)})
    images, _ = frames(figure.data)
    assert 30 < len(images) <= 60
    assert len(figure.data) <= 400_000


def test_large_animations_lose_frames(monkeypatch):
    monkeypatch.setattr("marl.figures._BYTES", 20_000)
    figure = rollout_animation({"expert": episodes()})
    images, durations = frames(figure.data)
    assert len(figure.data) <= 20_000
    assert 2 <= len(images) < 26
    assert durations[0] > 120


def test_touching_agents_get_a_black_rim():
    apart = episodes(agents=2)
    dark = []
    for cost in (0.0, 1.0):
        images, _ = frames(rollout_animation({"a": replace(apart, costs=torch.full_like(apart.costs, cost))}).data)
        dark.append(int((images[10].max(axis=2) < 60).sum()))
    assert dark[1] > dark[0] + 100


def test_animations_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one method"):
        rollout_animation({})
    with pytest.raises(ValueError, match="a has no episode 2: choose one of 0 to 1"):
        rollout_animation({"a": episodes()}, episode=2)


def test_the_same_rollouts_give_the_same_animation():
    rollouts = {"expert": episodes()}
    assert rollout_animation(rollouts) == rollout_animation(rollouts)
