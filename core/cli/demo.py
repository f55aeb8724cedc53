"""`convoy demo`: data, training, evaluation, the guidance ablation, a report."""

import json
from pathlib import Path

from core.acting import GuidanceConfig
from core.cli.cells import distinct
from core.cli.collect import collect
from core.cli.commands import Collect, Demo, Evaluate, Train, register_schemas
from core.cli.compose import configure
from core.cli.evaluate import evaluate
from core.cli.pool import Job, Report, run_jobs
from core.cli.report import report_page
from core.cli.show import print_protocol, print_rows
from core.cli.train import train
from core.cli.trainings import interruptible
from core.config import compose_config, to_object
from core.data import read_provenance
from core.errors import UserError
from core.evaluations import Row
from core.files import check_writable, write_text
from core.progress import console
from core.runs import Run


def command(arguments: list[str]) -> None:
    demo = configure("demo", arguments)
    if demo is None:
        return
    output = Path(demo.output).expanduser()
    check_writable(output)
    methods = [demo.planner, *demo.baselines]
    trainings = [_training(demo, output, dataset, method) for method in methods for dataset in demo.datasets]
    console.print(
        f"Collecting {' and '.join(demo.datasets)} data, then training and evaluating {', '.join(methods)} on each. "
        f"Interrupted, the same command goes on where it stopped."
    )
    run_jobs([_collection(demo, output, dataset) for dataset in demo.datasets], demo.workers)
    results = run_jobs([_experiment(demo, config) for config in trainings], demo.workers)
    rows = sorted((row for part in results for row in part), key=lambda row: demo.datasets.index(row.dataset))
    write_text(output / "summary.json", json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    runs = [Run.open(Path(config.run or "")) for config in trainings]
    evaluated = list(zip(runs, results, strict=True))
    print_rows(evaluated)
    print_protocol(evaluated)
    report_page(output / "report.html", runs, rows, title="Convoy: the demo", reproduce=["make demo"])
    console.print(f"wrote {output / 'summary.json'} and {output / 'report.html'}", highlight=False)


def _collection(demo: Demo, output: Path, dataset: str) -> Job:
    register_schemas()
    chosen = [f"quality={dataset}", f"episodes={demo.collected}", f"seed={demo.seed}", "overwrite=true"]
    config = to_object(compose_config("collect", chosen))
    assert isinstance(config, Collect)
    config.data = str(output / "datasets")
    return Job(f"collect {dataset}", demo.collected * config.task.max_cycles, _collect, (config,))


def _collect(config: Collect, report: Report) -> None:
    dataset_id = config.task.dataset_id(config.quality)
    try:
        found = read_provenance(dataset_id, Path(config.data or ""))
        if (found.seed, found.episodes) == (config.seed, config.episodes):
            return
    except UserError:
        pass
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        report(done, "")

    collect(config, progress)


def _training(demo: Demo, output: Path, dataset: str, method: str) -> Train:
    register_schemas()
    chosen = [f"algo={method}", f"dataset={dataset}", f"method={method}", f"trainer.seed={demo.seed}"]
    config = to_object(compose_config("train", [*chosen, *demo.overrides]))
    assert isinstance(config, Train)
    config.data = str(output / "datasets")
    config.run = str(output / "runs" / f"{dataset}-{method}")
    return config


def _experiment(demo: Demo, config: Train) -> Job:
    name = f"{config.method} on {config.dataset}"
    return Job(name, config.trainer.steps, _train_and_evaluate, (demo, config))


def _train_and_evaluate(demo: Demo, config: Train, report: Report) -> list[Row]:
    def progress(step: int, metrics: dict[str, float]) -> None:
        report(step, f"loss {metrics['loss']:.4f}")

    with interruptible() as stop:
        run = train(config, Path(config.run or ""), progress, stop)
    report(config.trainer.steps, "evaluating")
    cells = [
        Evaluate(run=str(run.folder), episodes=demo.episodes, guidance=GuidanceConfig(scale, demo.returns))
        for scale in demo.scales
    ]
    return evaluate(run, distinct(run, cells))
