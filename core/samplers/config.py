"""Samplers by name, as configurations have them."""

from dataclasses import dataclass, fields
from typing import Any, cast

from core.samplers.base import Sampler
from core.samplers.consistency import Consistency
from core.samplers.ddim import DDIM
from core.samplers.dpm_solver import DPMSolver
from core.samplers.heun import Heun

SAMPLERS: dict[str, Any] = {
    "ddim": DDIM,
    "ddpm": DDIM,  # with eta 1
    "dpm": DPMSolver,
    "heun": Heun,
    "consistency": Consistency,
}


@dataclass
class SamplerConfig:
    """A sampler by name, and its grid; what is None is the sampler's own default.

    Attributes:
        name: "ddim", "ddpm", "dpm" (DPM-Solver++), "heun" or "consistency".
        repeats: of the last step, which a filter of constraints may ask for.
        eta: of ddim. large: of ddpm. order, sde, singlestep: of dpm. churn: of heun. See the samplers in `core`.
    """

    name: str = "ddim"
    steps: int = 5
    spacing: str | None = None
    stop: float = 0.0
    repeats: int = 0
    order: int | None = None
    eta: float | None = None
    large: bool | None = None
    sde: bool | None = None
    singlestep: bool | None = None
    churn: float | None = None

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Sampler:
        if self.name not in SAMPLERS:
            raise ValueError(f"unknown sampler.name {self.name!r}: choose one of {', '.join(SAMPLERS)}")
        make = SAMPLERS[self.name]
        known = {field.name for field in fields(make)}
        options = self._given()
        for name in options:
            if name not in known or (self.name, name) == ("ddpm", "eta"):
                raise ValueError(f"sampler.{name} means nothing to sampler.name={self.name}")
        if self.name == "ddpm":
            options["eta"] = 1.0
        return cast(Sampler, make(self.steps, stop=self.stop, repeats=self.repeats, **options))

    def _given(self) -> dict[str, object]:
        names = ("spacing", "order", "eta", "large", "sde", "singlestep", "churn")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __str__(self) -> str:
        defaults = {field.name: field.default for field in fields(SAMPLERS[self.name])}
        extras = {name: value for name, value in self._given().items() if value != defaults[name]}
        words = [str(extras.pop("spacing"))] if "spacing" in extras else []
        words += [
            f"{name} {number(value)}" if not isinstance(value, bool) else name
            for name, value in extras.items()
            if value
        ]
        words += [f"{name} {number(value)}" for name in ("stop", "repeats") if (value := getattr(self, name))]
        return ", ".join([f"{self.name}-{self.steps}", *words])


def number(value: Any) -> str:
    """A number as short as can be with all its digits: a label tells settings apart."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
