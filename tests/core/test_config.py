from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import configs
import marl
from core.cli.commands import register_schemas
from core.cli.compose import configure, configure_grid
from core.cli.registry import ALGORITHMS
from core.cli.trainings import build
from core.cloning import CloningConfig
from core.config import compose_all, compose_config, differences, from_dict, grid, to_object
from core.data import Provenance
from core.environments import TeamSpec
from core.errors import UserError
from core.samplers import SamplerConfig
from core.training import TrainerConfig

PRESETS = sorted(path.stem for path in (Path(configs.__file__).parent / "algo").glob("*.yaml"))

MISTAKES = [
    # keys
    ("train", "trainer.stpes=3", "unknown option 'trainer.stpes': did you mean 'trainer.steps'?"),
    ("train", "algo.widht=3", "unknown option 'algo.widht': did you mean 'algo.width'?"),
    ("train", "algo.inverse.sorce=data", "did you mean 'algo.inverse.source'?"),
    ("train", "epochs=3", "unknown option 'epochs': "),
    ("train", "algo=bc algo.width=3", "unknown option 'algo.width': did you mean"),
    ("collect", "episode=3", "unknown option 'episode': did you mean 'episodes'?"),
    ("evaluate", "run=x guidance.scal=1,2", "did you mean 'guidance.scale'?"),
    ("evaluate", "run=x sampler=dpm sampler.oder=1", "did you mean 'sampler.order'?"),
    ("demo", "colected=3", "did you mean 'collected'?"),
    # choices of groups
    ("train", "algo=madif", "unknown algo 'madif': did you mean 'madiff'?"),
    ("train", "algo=schema_madiff", "unknown algo 'schema_madiff': did you mean 'madiff'?"),
    ("train", "algo=null", "unknown algo"),
    ("train", "trainer=smal", "unknown trainer 'smal': did you mean 'small'?"),
    ("train", "task=mpe/spred", "unknown task 'mpe/spred': did you mean 'mpe/spread'?"),
    ("collect", "task=spread", "unknown task 'spread': did you mean 'mpe/spread'?"),
    ("evaluate", "run=x sampler=ddim,ddmi", "unknown sampler 'ddmi': did you mean 'dd"),
    # types
    ("train", "trainer.steps=ten", "trainer.steps=ten: Value 'ten' of type 'str' could not be converted to Integer"),
    ("train", "trainer.steps=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
    ("train", "algo.multipliers=[a]", "algo.multipliers"),
    ("train", "algo.multipliers=2", "algo.multipliers"),
    ("train", "algo.width=null", "algo.width"),
    ("train", "algo.attention=perhaps", "algo.attention=perhaps"),
    ("collect", "overwrite=perhaps", "overwrite=perhaps: Value 'perhaps' is not a valid bool"),
    ("evaluate", "run=x sampler.steps=5,x", "sampler.steps=x"),
    # ranges
    ("train", "trainer.steps=0", "trainer.steps must be at least 1, got 0"),
    ("train", "trainer.ema=1", "trainer.ema lies in [0, 1), got 1.0"),
    ("train", "trainer.learning_rate=nan", "trainer.learning_rate must be positive"),
    ("train", "algo.horizon=1", "algo.horizon must be at least 2"),
    ("train", "algo.multipliers=[0]", "algo.multipliers must be positive integers"),
    ("train", "algo.prediction=eps", "unknown algo.prediction 'eps': choose one of noise, x0, v"),
    ("train", "algo.inverse.noise_below=2", "inverse.noise_below lies in (0, 1], got 2.0"),
    ("train", "algo.inverse.source=dta", "unknown inverse.source 'dta'"),
    ("train", "algo=bc_best algo.best=0", "algo.best is a share in (0, 1], got 0.0"),
    ("train", "algo.name=bc", "algo.name"),
    ("collect", "episodes=0", "episodes must be at least 1, got 0"),
    ("collect", "seed=-1", "seed must be at least 0, got -1"),
    ("collect", "task.agents=-1", "task.agents must be at least 0 and task.max_cycles at least 1"),
    ("collect", "task.rules=mpe", "unknown task.rules 'mpe': choose one of mpe2"),
    ("evaluate", "run=x guidance.returns=0.5,2", "guidance.returns is a rank in [0, 1], got 2.0"),
    ("evaluate", "run=x guidance.scale=-1", "guidance.scale must be at least 0, got -1.0"),
    ("evaluate", "run=x sampler.steps=0", "a sampler needs steps >= 1, got 0"),
    ("evaluate", "run=x sampler=dpm sampler.order=4", "DPMSolver has orders 1, 2 and 3, got 4"),
    ("evaluate", "run=x sampler=heun sampler.order=2", "sampler.order means nothing to sampler.name=heun"),
    ("evaluate", "run=x temperature=-1", "temperature must be at least 0, got -1.0"),
    ("evaluate", "run=x seed=-1", "seed must be at least 0, got -1"),
    ("demo", "episodes=0", "episodes must be at least 1"),
    ("demo", "workers=-1", "workers"),
    # malformed
    ("train", "fast", "'fast' is not an option: write name=value"),
    ("train", "--fast", "'--fast' is not an option: write name=value"),
    ("train", "algo.multipliers=[1,2", "algo.multipliers"),
    ("train", "trainer.=3", "trainer.=3"),
    ("train", "=3", "=3"),
    ("train", "+algo=bc", "algo=bc"),
    ("train", "+fast=3", "fast"),
    ("train", "++algo.fast=3", "algo.fast"),
    ("train", "algo@other=bc", "algo@other"),
    ("train", "~algo=madiff", "algo"),
    ("train", "algo=glob(*)", "glob(*)"),
    ("evaluate", "", "run"),
]


@pytest.mark.parametrize(("verb", "arguments", "message"), MISTAKES, ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_nearest(verb, arguments, message):
    with pytest.raises(UserError) as caught:
        configure_grid(verb, arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", ["algo=bc,madiff", "trainer.seed=1,2,3", "dataset=expert,mixed"])
def test_a_verb_without_a_grid_refuses_commas(arguments):
    """Training the first of several in silence would be worse than training none."""
    with pytest.raises(UserError, match=r"comma|one value|grid"):
        configure("train", [arguments])


@pytest.mark.parametrize("name", ["~/runs/a", "/tmp/a b", "../a-b_c.d", "runs/2026-11-21 08:00"])
def test_any_path_is_a_value(name):
    assert configure("evaluate", [f"run={name}"]).run == name


def test_grid_varies_the_last_fastest():
    cells = list(grid(["a=1,2", "b=x", "c.d=0.5,[1,2],z"]))
    assert cells == [
        ["a=1", "b=x", "c.d=0.5"],
        ["a=1", "b=x", "c.d=[1,2]"],
        ["a=1", "b=x", "c.d=z"],
        ["a=2", "b=x", "c.d=0.5"],
        ["a=2", "b=x", "c.d=[1,2]"],
        ["a=2", "b=x", "c.d=z"],
    ]
    assert list(grid([])) == [[]]
    assert list(grid(["a=range(1,4)", "b='x,y'"])) == [["a=1", "b='x,y'"], ["a=2", "b='x,y'"], ["a=3", "b='x,y'"]]


def test_a_grid_of_evaluations():
    cells = configure_grid("evaluate", ["run=x", "sampler=ddim,dpm", "sampler.steps=1,10", "guidance.scale=0,1.2"])
    assert [(str(cell.sampler), cell.guidance.scale) for cell in cells] == [
        ("ddim-1", 0.0), ("ddim-1", 1.2), ("ddim-10", 0.0), ("ddim-10", 1.2),
        ("dpm-1", 0.0), ("dpm-1", 1.2), ("dpm-10", 0.0), ("dpm-10", 1.2),
    ]  # fmt: skip
    assert all(cell.run == "x" and cell.guidance.returns == 0.9 for cell in cells)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_builds(preset):
    config = configure("train", [f"algo={preset}"])
    assert config.algo == ALGORITHMS[config.algo.name].config_class(**vars(config.algo))
    if config.algo.name == "distilled":  # its teacher's run says what it plans with
        config.algo.planner = marl.MADiffConfig()
    with torch.device("meta"):
        algorithm = build(config.algo, TeamSpec(3, 18, 2))
    assert isinstance(algorithm, ALGORITHMS[config.algo.name])
    phases = [parameter for phase in algorithm.phases() for parameter in phase.parameters]
    assert {id(parameter) for parameter in phases} == {
        id(parameter) for parameter in algorithm.parameters() if parameter.requires_grad
    }


def test_presets_are_what_they_say():
    def train(*arguments):
        return configure("train", arguments)

    assert train() == train("algo=madiff")
    assert train().algo == marl.MADiffConfig()
    assert train().trainer == TrainerConfig()
    assert train("algo=bc").algo == CloningConfig()
    assert train("algo=bc_returns").algo == CloningConfig(condition=True)
    assert train("algo=bc_best").algo == CloningConfig(best=0.1)
    assert train("algo=bc").trainer.steps == 8000
    published = train("algo=madiff_published")
    assert (published.algo.width, published.trainer.steps, published.trainer.learning_rate) == (128, 1_000_000, 2e-4)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(published.algo, TeamSpec(3, 18, 2)).parameters())
    assert size == pytest.approx(64.3e6, rel=2e-3)  # the paper's network, and the inverse dynamics


def test_an_option_wins_over_its_preset_wherever_it_stands():
    for arguments in (["algo=bc", "trainer.steps=7"], ["trainer.steps=7", "algo=bc"]):
        config = configure("train", arguments)
        assert (config.trainer.steps, config.trainer.batch_size) == (7, 256)
    assert configure("train", ["algo=bc", "trainer=small"]).trainer == TrainerConfig()


SAMPLER_PRESETS = [
    ("ddim", "ddim-5"),
    ("ddpm", "ddpm-5"),
    ("dpm", "dpm-5"),
    ("heun", "heun-5"),
    ("consistency", "consistency-1"),
]


@pytest.mark.parametrize(("preset", "name"), SAMPLER_PRESETS)
def test_sampler_presets(preset, name):
    sampler = configure("evaluate", ["run=x", f"sampler={preset}"]).sampler
    assert isinstance(sampler, SamplerConfig)
    assert str(sampler) == name
    assert sampler.build().steps == int(name[-1])


@pytest.mark.parametrize("verb", ["collect", "train", "evaluate", "demo"])
def test_help_and_configuration(verb, capsys):
    assert configure_grid(verb, ["--help"]) == []
    assert f"convoy {verb} [name=value ...]" in capsys.readouterr().out
    assert configure_grid(verb, ["--cfg"]) == []
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.keys() == compose_config(verb, []).keys()


def test_from_dict_checks_a_saved_configuration():
    saved = {"name": "madiff", "width": 32, "inverse": {"hidden": 8}}
    config = from_dict(marl.MADiffConfig, saved, "config.yaml")
    assert config == marl.MADiffConfig(width=32, inverse=marl.InverseConfig(hidden=8))
    for values, message in (
        ({"widht": 3}, "config.yaml does not fit MADiffConfig: .*widht"),
        ({"width": "wide"}, "config.yaml does not fit MADiffConfig"),
        ({"horizon": 0}, "algo.horizon must be at least 2, .*got 0"),
        ({"inverse": {"source": "x"}}, "unknown inverse.source 'x'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            from_dict(marl.MADiffConfig, values, "config.yaml")
        assert "\n" not in str(caught.value)


def test_differences():
    saved = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 0}
    assert differences(saved, saved) == []
    assert differences(saved, {"a": 1, "b": {"c": 3, "d": [1]}, "new": {"x": 1}}) == [
        "b.c was 2, is 3",
        "b.d was [1, 2], is [1]",
        "gone was 0, is None",
        "new was None, is {'x': 1}",
    ]


def test_registering_twice_and_composing_after_a_mistake():
    register_schemas()
    register_schemas()
    with pytest.raises(UserError):
        configure("train", ["algo=madif"])
    assert configure("collect", []).episodes == 2000
    assert Provenance().behaviour == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("evaluate", ["run=x", "sampler=ddim,dpm", "sampler.steps=1,2", "guidance.scale=0,1.5", "temperature=0.5"]),
        ("sweep", ["algo=bc,madiff_published", "trainer.steps=3,4", "options=[a,b]", "task.max_cycles=4"]),
        ("train", ["algo=madiff", "algo.multipliers=[1,4]", "algo.inverse.hidden=3", "data='x y'"]),
    ],
)
def test_a_grid_is_composed_as_its_combinations_are(name, arguments):
    combinations = list(grid(arguments))
    together = compose_all(name, combinations)
    alone = [compose_config(name, combination) for combination in combinations]
    assert [OmegaConf.to_yaml(config) for config in together] == [OmegaConf.to_yaml(config) for config in alone]
    assert [to_object(config) for config in together] == [to_object(config) for config in alone]


@pytest.mark.parametrize("override", ["sampler.stpes=3", "sampler.steps=three", "sampler=dddim", "nothing=1"])
def test_a_grid_has_the_errors_of_its_combinations(override):
    with pytest.raises(UserError) as alone:
        compose_config("evaluate", ["run=x", override])
    with pytest.raises(UserError) as together:
        compose_all("evaluate", [["run=x"], ["run=x", override]])
    assert str(together.value) == str(alone.value)
