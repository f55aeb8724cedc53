"""What the size of a team and the length of a plan cost: python benchmarks/agents.py [--device cuda] [--rounds N]

One forward of the temporal U-Net, without attention and with either of its tokens, against the number of agents A and
the number of time steps T. Time is the median over rounds, the three in turns: on a CPU one thread's own, which leaves
out what other work takes from it. Memory is the most that one forward holds beside weights and input: on a CPU what
PyTorch's allocator tells torch.profiler, on CUDA its own counter. "scores" is arithmetic: the size of the largest
attention's scores A x A, if they are written out. A CPU gets width 32, CUDA the published network. Prints tables and
writes benchmarks/agents.json and docs/agents.png, or agents_cuda, in about a minute.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from core.figures import colour, marker, style
from core.files import write_text
from core.networks import TemporalUNet
from core.runs import versions
from marl.attention import AgentAttention

FEATURES = 18
HEADS = 4
MEBIBYTE = 2**20
ATTENTIONS = ("off", "trajectory", "step")


@dataclass(frozen=True)
class Setting:
    """A network and where it is measured: `agents` at `short` time steps, `steps` for a team of `team`."""

    width: int
    multipliers: tuple[int, ...]
    activation: str
    decoder: str
    batch: int
    agents: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    short: int = 8
    steps: tuple[int, ...] = (8, 16, 32, 64)
    team: int = 32

    def network(self, attention: str) -> nn.Module:
        """With the published widths of attention in the published decoder."""
        torch.manual_seed(0)
        mixer = partial(AgentAttention, heads=HEADS, token=attention, widths=self.decoder)
        return TemporalUNet(
            FEATURES,
            self.short,
            width=self.width,
            multipliers=self.multipliers,
            activation=self.activation,
            decoder=self.decoder,
            condition_dim=1,
            mixer=None if attention == "off" else mixer,
        ).eval()

    def scores(self, attention: str, agents: int, horizon: int) -> float:
        """Mebibytes of the largest attention's scores: at the finest skip that joins the decoder."""
        joined = horizon if self.decoder == "light" else horizon // 2
        rows = {"off": 0, "trajectory": 1, "step": joined}[attention]
        return 4 * self.batch * HEADS * rows * agents**2 / MEBIBYTE


SETTINGS = {
    "cpu": Setting(32, (1, 2), "silu", "light", 16),
    "cuda": Setting(128, (1, 4, 8), "mish", "published", 32, short=24, steps=(8, 24, 48, 96)),
}


@dataclass(frozen=True)
class Row:
    """One forward. memory, scores: in mebibytes."""

    attention: str
    agents: int
    steps: int
    milliseconds: float
    memory: float
    scores: float


def seconds(network: nn.Module, inputs: tuple[Tensor, ...], device: str) -> float:
    """Time of one forward."""
    if device == "cpu":
        begin = time.thread_time()
        network(*inputs)
        return time.thread_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    network(*inputs)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def memory(network: nn.Module, inputs: tuple[Tensor, ...], device: str) -> float:
    """Mebibytes that one forward holds at most, beside weights and input."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(*inputs)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most / MEBIBYTE


def measure(setting: Setting, agents: int, steps: int, device: str, rounds: int) -> list[Row]:
    """One row for each attention."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(setting.batch, steps, agents, FEATURES, generator=generator).to(device)
    inputs = (x, torch.full((setting.batch,), 0.5, device=device), torch.ones(setting.batch, agents, 1, device=device))
    networks = {attention: setting.network(attention).to(device) for attention in ATTENTIONS}
    times: dict[str, list[float]] = {attention: [] for attention in ATTENTIONS}
    with torch.inference_mode():
        for index in range(rounds + 2):
            for attention, network in networks.items():
                took = seconds(network, inputs, device)
                if index > 1:
                    times[attention].append(took)
        return [
            Row(
                attention,
                agents,
                steps,
                round(1000 * statistics.median(times[attention]), 3),
                round(memory(network, inputs, device), 3),
                round(setting.scores(attention, agents, steps), 4),
            )
            for attention, network in networks.items()
        ]


def draw(rows: dict[str, list[Row]], setting: Setting) -> Figure:
    """Time and memory against agents and against time steps; markers of three sizes, since lines may coincide."""
    canvas = Figure(figsize=(8.8, 6.8), layout="constrained")
    panels = canvas.subplots(2, 2, sharex="col")
    for column, (name, title) in enumerate((("agents", f"T = {setting.short}"), ("steps", f"A = {setting.team}"))):
        time_axes, memory_axes = panels[:, column]
        for index, attention in enumerate(ATTENTIONS):
            shown = [asdict(row) for row in rows[name] if row.attention == attention]
            at = [row[name] for row in shown]
            look = {"color": colour(index), "marker": marker(index), "markersize": 9 - 2.5 * index}
            label = "no attention" if attention == "off" else f"token: {attention}"
            time_axes.plot(at, [row["milliseconds"] for row in shown], **look, label=label)
            memory_axes.plot(at, [row["memory"] for row in shown], **look)
            if attention != "off":
                scores = [row["scores"] for row in shown]
                memory_axes.plot(at, scores, ":", color=colour(index))
        for index, attention in enumerate(ATTENTIONS[1:], 1):
            time_axes.plot([], [], ":", color=colour(index), label=f"scores of {attention}, written out")
        for axes, label in ((time_axes, "ms a forward"), (memory_axes, "MiB held at most")):
            axes.set(xscale="log", yscale="log", ylabel="" if column else label)
            axes.set_xticks(at)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if axes is memory_axes else (1, 2, 5)))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_locator(NullLocator())
            axes.grid(True)
        time_axes.set_title(title)
        memory_axes.set_xlabel("agents A" if name == "agents" else "time steps T")
    canvas.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SETTINGS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = SETTINGS[options.device]
    places = {
        "agents": [(agents, setting.short) for agents in setting.agents],
        "steps": [(setting.team, steps) for steps in setting.steps],
    }
    rows: dict[str, list[Row]] = {}
    for name, listed in places.items():
        print(f"| {' | '.join(Row.__dataclass_fields__)} |\n|{' --- |' * len(Row.__dataclass_fields__)}")
        rows[name] = []
        for agents, steps in listed:
            rows[name] += measure(setting, agents, steps, options.device, options.rounds)
            for row in rows[name][-len(ATTENTIONS) :]:
                print(f"| {' | '.join(str(value) for value in asdict(row).values())} |", flush=True)
    result = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "rounds": options.rounds,
        "setting": asdict(setting),
        "versions": versions(),
        "rows": {name: [asdict(row) for row in listed] for name, listed in rows.items()},
    }
    name = "agents" if options.device == "cpu" else "agents_cuda"
    here = Path(__file__).resolve().parent
    write_text(here / f"{name}.json", json.dumps(result, indent=2) + "\n")
    with style():
        draw(rows, setting).savefig(here.parent / "docs" / f"{name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
