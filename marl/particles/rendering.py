"""Frames of the particle scenarios, drawn off-screen."""

from typing import Any

import numpy as np

from marl.particles.environment import State
from marl.particles.worlds import World

#: What is drawn in which colour.
COLOURS = {
    "background": (250, 250, 247),
    "wall": (206, 206, 200),
    "agent": (52, 101, 190),
    "predator": (206, 62, 55),
    "leader": (126, 22, 46),
    "prey": (46, 150, 84),
    "goal": (233, 168, 32),
    "obstacle": (84, 88, 96),
    "food": (233, 168, 32),
    "forest": (120, 180, 110),
    "velocity": (25, 25, 25),
}

#: Half the side of what is shown at least; more where a body has left it.
VIEW = 1.15

_FINER = 3
_FOREST_ALPHA = 110


def frame(state: State, world: World, size: int = 480, index: int = 0) -> np.ndarray:
    """Episode `index` of a state as an image [size, size, 3] uint8, y upwards, the square [-1, 1]^2 outlined."""
    import pygame

    side = size * _FINER
    positions = state.positions[index].double().cpu().numpy()
    velocities = state.velocities[index].double().cpu().numpy()
    landmarks = state.landmarks[index].double().cpu().numpy()
    sizes = np.array(world.sizes)
    view = max(VIEW, float((np.abs(positions).max(axis=1) + sizes).max()) + 0.05)
    scale = side / (2 * view)

    def place(point: np.ndarray) -> tuple[float, float]:
        return (float(point[0]) + view) * scale, (view - float(point[1])) * scale

    canvas = pygame.Surface((side, side), 0, 32)
    canvas.fill(COLOURS["background"])
    corner, width = place(np.array([-1.0, 1.0])), 2 * scale
    pygame.draw.rect(canvas, COLOURS["wall"], (*corner, width, width), 2 * _FINER)
    landmarks_here = np.ones(len(landmarks), bool) if state.kept is None else state.kept[index].cpu().numpy()

    def draw(*kinds: str) -> None:
        for kind, radius, point, here in zip(world.kinds, world.landmark_sizes, landmarks, landmarks_here, strict=True):
            if here and kind in kinds:
                _landmark(canvas, kind, place(point), round(radius * scale))

    draw("obstacle", "food")
    names = ["agent" if world.scenario == "spread" else "predator"] * world.team + ["prey"] * world.prey
    if world.leader:
        names[0] = "leader"
    for name, radius, point, velocity in zip(names, world.sizes, positions, velocities, strict=True):
        pygame.draw.circle(canvas, COLOURS["background"], place(point), round((radius + 0.008) * scale))
        pygame.draw.circle(canvas, COLOURS[name], place(point), round(radius * scale))
        speed = float(np.linalg.norm(velocity))
        if speed > 0.05:
            tip = point + velocity / speed * (radius + 0.08 * min(speed, 1.5))
            start = point + velocity / speed * radius * 0.55
            pygame.draw.line(canvas, COLOURS["velocity"], place(start), place(tip), round(0.014 * scale))
    draw("goal", "forest")  # a covered goal is seen on its agent, and who hides is seen through the forest
    pixels = pygame.surfarray.array3d(canvas).transpose(1, 0, 2).astype(np.float64)
    return pixels.reshape(size, _FINER, size, _FINER, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _landmark(canvas: Any, kind: str, centre: tuple[float, float], radius: int) -> None:
    import pygame

    if kind == "forest":
        layer = pygame.Surface(canvas.get_size(), pygame.SRCALPHA, 32)
        pygame.draw.circle(layer, (*COLOURS[kind], _FOREST_ALPHA), centre, radius)
        canvas.blit(layer, (0, 0))
        return
    pygame.draw.circle(canvas, COLOURS[kind], centre, radius)
    if kind == "goal":
        pygame.draw.circle(canvas, COLOURS["background"], centre, round(radius * 0.4))
