"""What the orchestrator itself costs: the real PPO loop, step and ledger over groups without processes, and what its Ray calls cost.

    python -m benchmarks.control_plane [--out FILE] [--costs FILE] [--ranks 8 64 ...]

Each size runs in a process of its own. `benchmarks/fake_groups.py` says what is real and what is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.fake_groups import Counts, FakeGroup, FakeWaiter, RayCosts, World
from benchmarks.table import Cell, Table, machine_line
from configs.schema.ppo import PPOStage
from orchestrator.launch import Launched
from orchestrator.plan import PPOPlan, make_plan
from orchestrator.ppo_loop import PPOLoop
from orchestrator.progress import Progress

RANKS = (8, 64, 256, 1024, 4096, 8192)
PROMPTS_PER_RANK = 8
STEPS = 2
"""In the first one the orchestrator works in no time; in the second, otherwise the same, its time is on the clock and measured."""
TARGET = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many ranks of each role, and the step's prompts."""

    policy: int
    """Also of reference and reward."""
    critic: int
    engines: int
    prompts: int
    prompts_per_wave: int

    @property
    def num_ranks(self) -> int:
        return 3 * self.policy + self.critic + self.engines

    @property
    def num_waves(self) -> int:
        return -(-self.prompts // self.prompts_per_wave)


def layout(num_ranks: int) -> Layout:
    """A quarter of the ranks each for policy, reference and reward, one rank in 32 (at least one) an engine, the rest for the critic; one
    wave for each engine."""
    quarter, engines = num_ranks // 4, max(1, num_ranks // 32)
    prompts = PROMPTS_PER_RANK * num_ranks
    return Layout(
        policy=quarter,
        critic=num_ranks - 3 * quarter - engines,
        engines=engines,
        prompts=prompts,
        prompts_per_wave=prompts // engines,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step of one size."""

    layout: Layout
    cpu_s: float
    """The orchestrator's own, without what the fakes took."""
    step_s: float
    """On the simulated clock, the orchestrator's work in it."""
    free_s: float
    """Likewise of the first step, in which the orchestrator works in no time."""
    counts: Counts
    most_refs: int
    memory_bytes: int
    """Growth of the process's largest resident memory over the run, fakes included."""
    ledger_bytes: int


class _Silent(Progress):
    """Notes when steps end, says nothing, and puts the orchestrator's time on the clock after the first step."""

    def __init__(self, world: World, costs: RayCosts) -> None:
        super().__init__()
        self._world, self._costs = world, costs
        self.ends: list[tuple[float, float, Counts]] = []
        """CPU seconds without faking, simulated seconds, counts so far."""

    def begin(self, total: int, *, done: int = 0) -> None:
        super().begin(total, done=done)
        self._note()

    def step(self, step: int, metrics: Mapping[str, float], digest: str = "") -> None:
        super().step(step, metrics, digest)
        self._note()
        self._world.costs = self._costs

    def _note(self) -> None:
        own_s = time.process_time() - self._world.faking_s
        self.ends.append((own_s, self._world.now, replace(self._world.counts)))

    def _print(self, text: str) -> None:
        pass


def config_of(size: Layout, run_dir: Path) -> PPOStage:
    """The recipe for 64 GPUs, at another size. What fakes never read is left at its default."""
    engine = {"zero_stage": 3, "dtype": "bf16", "micro_batch_tokens": 8192}
    policy = {"num_ranks": size.policy}
    return PPOStage.model_validate(
        {
            "stage": "ppo",
            "run": {"dir": str(run_dir), "checkpoint_every": 1000},
            "cluster": {"device": "cuda"},
            "data": {"path": "none"},
            "policy": {"model": "none", "engine": engine, "placement": policy},
            "reference": {"engine": engine, "placement": policy},
            "critic": {"engine": engine, "placement": {"num_ranks": size.critic}},
            "reward": {"model": {"model": "none", "engine": engine, "placement": policy}},
            "rollout": {
                "num_engines": size.engines,
                "dtype": "bf16",
                "max_response_tokens": 1024,
                "prompts_per_wave": size.prompts_per_wave,
            },
            "weight_sync": {"drill": False},
            "ppo": {"steps": STEPS, "prompts_per_step": size.prompts, "minibatches": 4},
        }
    )


def run(size: Layout, run_dir: Path, costs: RayCosts) -> tuple[World, _Silent]:
    """`STEPS` steps of the real loop."""
    config = config_of(size, run_dir)
    plan = make_plan(config, None)
    assert isinstance(plan, PPOPlan)
    world = World(run_dir=run_dir)
    launched = Launched(config.cluster, config.run, run_dir)
    launched.waiter = FakeWaiter(world)
    for name, role in plan.roles.items():
        launched.groups[name] = FakeGroup(name, role.num_ranks, world)
        launched.waiter.watch(launched.groups[name])
    progress = _Silent(world, costs)
    PPOLoop(config, plan, launched, run_dir, 4 * size.prompts, progress).run()
    return world, progress


def measure(size: Layout, run_dir: Path, costs: RayCosts) -> Measured:
    """Speaks of the last step of a run."""
    before = peak_bytes()
    world, progress = run(size, run_dir, costs)
    (_, clock_0, _), (cpu_1, clock_1, counts_1), (cpu_2, clock_2, counts_2) = progress.ends
    of_step = {name: value - asdict(counts_1)[name] for name, value in asdict(counts_2).items()}
    return Measured(
        layout=size,
        cpu_s=cpu_2 - cpu_1,
        step_s=clock_2 - clock_1,
        free_s=clock_1 - clock_0,
        counts=Counts(**of_step),
        most_refs=world.refs.most,
        memory_bytes=peak_bytes() - before,
        ledger_bytes=(run_dir / "ledger" / f"{STEPS:08d}.json").stat().st_size,
    )


def peak_bytes() -> int:
    """Largest resident memory of this program so far. `getrusage` would begin with that of the process which started it."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measured_apart(num_ranks: int, costs: RayCosts) -> Measured:
    """In a process of its own, whose memory is its own."""
    task = json.dumps({"num_ranks": num_ranks, "costs": asdict(costs)})
    arguments = [sys.executable, "-m", "benchmarks.control_plane", "--one", task]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"the run of {num_ranks} ranks failed:\n{done.stderr}")
    fields = json.loads(done.stdout.splitlines()[-1])
    fields |= {"layout": Layout(**fields["layout"]), "counts": Counts(**fields["counts"])}
    return Measured(**fields)


def cost_table(rows: Sequence[Measured], costs: RayCosts) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        ray_s = costs.seconds(row.counts)
        share = 1.0 - row.free_s / row.step_s
        mark = "" if share <= TARGET else " **above 2 %**"
        cells.append(
            (
                row.layout.num_ranks,
                row.layout.prompts,
                row.layout.num_waves,
                row.cpu_s,
                ray_s,
                row.step_s,
                f"{(row.cpu_s + ray_s) / row.step_s:.1%}",
                f"{share:.1%}{mark}",
            )
        )
    return Table(
        title="The orchestrator's part of a step",
        columns=("ranks", "prompts", "waves", "own CPU s", "Ray s", "step s", "busy", "share"),
        rows=tuple(cells),
        note=(
            "Own CPU: process time of the second step, from its first prompt to its ledger entry, without what the fakes took. "
            "Ray: calls, results, references and polls of the step times what each was measured to cost. Step: on the simulated "
            "clock, both in it. Busy: both of the step. Share: by how much of the step it would be shorter, had the orchestrator "
            "worked in no time; what else it does goes on while ranks work."
        ),
    )


def count_table(rows: Sequence[Measured]) -> Table:
    return Table(
        title="What the orchestrator holds and asks for",
        columns=(
            "ranks",
            "waves",
            "Ray calls",
            "calls a wave",
            "references passed",
            "references held",
            "memory MiB",
            "ledger entry MiB",
        ),
        rows=tuple(
            (
                row.layout.num_ranks,
                row.layout.num_waves,
                row.counts.calls,
                row.counts.calls / row.layout.num_waves,
                row.counts.passed_refs,
                row.most_refs,
                row.memory_bytes / 2**20,
                row.ledger_bytes / 2**20,
            )
            for row in rows
        ),
        note="References: the most held at a time. Memory: growth of the largest resident memory over two steps, fakes included.",
    )


def ray_table(costs: RayCosts) -> Table:
    return Table(
        title="What Ray costs the driver",
        columns=("what", "microseconds"),
        rows=(
            ("a call, its result awaited and fetched", costs.call_us),
            ("a second result", costs.second_result_us),
            ("a reference among the arguments", costs.passed_ref_us),
            ("a reference polled and not ready", costs.polled_ref_us),
        ),
        note="Process time of the driver, all its threads, on a Ray of this machine with 8 actors that do nothing; medians over batches.",
    )


def ray_costs(file: Path | None) -> RayCosts:
    """Measured now, or earlier and kept in `file`."""
    if file is not None and file.exists():
        return RayCosts(**json.loads(file.read_text("utf-8")))
    from benchmarks.ray_calls import measure_costs

    costs = measure_costs()
    if file is not None:
        file.write_text(json.dumps(asdict(costs)), "utf-8")
    return costs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_plane", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/control-plane.md"), help="Markdown file to write")
    parser.add_argument(
        "--costs", type=Path, help="JSON of Ray's costs: read where it is there, else measured and written"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="sizes to measure")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            costs = RayCosts(**options.one["costs"])
            print(json.dumps(asdict(measure(layout(options.one["num_ranks"]), Path(folder), costs))))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine, costs = machine_line(), ray_costs(options.costs)
    rows = []
    for num_ranks in options.ranks:
        rows.append(measured_apart(num_ranks, costs))
        print(f"{num_ranks} ranks: {rows[-1].cpu_s:.2f} s of its own, {rows[-1].counts.calls:,} calls", flush=True)
        tables = [cost_table(rows, costs), count_table(rows), ray_table(costs)]
        options.out.write_text("\n".join([machine, "", *(table.markdown() for table in tables)]), "utf-8")


if __name__ == "__main__":
    main()
