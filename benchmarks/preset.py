"""What each choice of the small MADiff preset is worth, one taken back at a time.

    python benchmarks/preset.py [output=FOLDER] [data=FOLDER] [steps=3000] [episodes=512]

All rows train for the same number of steps on the same expert data of mpe/spread and are evaluated on the same
episodes, without guidance (DDIM-5, scale 1). Runs are kept in the output folder, so the command resumes. Writes
benchmarks/preset.json.
"""

import json
import sys
from pathlib import Path

from core.acting import GuidanceConfig
from core.cli.commands import Evaluate, Train, register_schemas
from core.cli.evaluate import evaluate
from core.cli.pool import Job, Report, run_jobs
from core.cli.train import train
from core.config import compose_config, to_object
from core.evaluations import Row

VARIANTS = {
    "small preset": [],
    "training times uniform": ["algo.noise_emphasis=1"],
    "training times uniform, cosine schedule": ["algo.noise_emphasis=1", "algo.schedule=cosine"],
    "next step not emphasised": ["algo.next_step_weight=1"],
    "actions diffused jointly": ["algo.actions=joint"],
}


def measure(name: str, overrides: list[str], episodes: int, report: Report) -> Row:
    register_schemas()
    config = to_object(compose_config("train", ["dataset=expert", *overrides]))
    assert isinstance(config, Train)
    config.method = name
    run = train(config, Path(config.run or ""), lambda step, _: report(step, "training"))
    cell = Evaluate(run=str(run.folder), episodes=episodes, guidance=GuidanceConfig(scale=1.0))
    return evaluate(run, [cell])[0]


def main(*options: str) -> None:
    settings = dict(option.split("=", 1) for option in options)
    output = Path(settings.get("output", "runs/preset"))
    steps, episodes = int(settings.get("steps", 3000)), int(settings.get("episodes", 512))
    common = (
        [f"trainer.steps={steps}", f"data={settings['data']}"] if "data" in settings else [f"trainer.steps={steps}"]
    )
    jobs = [
        Job(
            name,
            steps,
            measure,
            (name, [*common, *changes, f"run='{output / name.replace(' ', '_').replace(',', '')}'"], episodes),
        )
        for name, changes in VARIANTS.items()
    ]
    rows = [row.as_json() for row in run_jobs(jobs)]
    for row in rows:
        print("{method:42} {return_mean:7.2f}  {interval[0]:.2f} to {interval[1]:.2f}".format(**row))
    report = {"command": f"python benchmarks/preset.py steps={steps} episodes={episodes}", "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
