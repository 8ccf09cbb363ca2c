"""Tables from a finished run's ledger. Everything here was recorded by the run itself: nothing is measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from actors.reward_trainer import RewardEvaluation
from benchmarks.table import Cell, Table
from configs.schema.ppo import PPOStage
from orchestrator.ledger import LedgerEntry, SupervisedEntry
from orchestrator.report.phases import PHASES, step_seconds

MEMORY = "peak_memory_bytes/"
BUSY = "busy_s/"
MIB = 2**20


def after_first(entries: Sequence[LedgerEntry]) -> Sequence[LedgerEntry]:
    """The steps that count: the first one warms up, unless it is all there is."""
    return entries[1:] or entries


def tokens_by_phase(entry: LedgerEntry, epochs: int) -> dict[str, int]:
    """What each phase worked through. Generation is counted by the tokens it wrote, the others by whole trajectories; an update reads
    them once per epoch."""
    written = sum(sum(wave.num_loss_tokens) for wave in entry.waves)
    whole = sum(sum(wave.lengths) for wave in entry.waves)
    return {"generate": written, "score": whole, "experience": whole, "update": whole * epochs}


def phase_table(entries: Sequence[LedgerEntry], config: PPOStage) -> Table:
    """Seconds and tokens/s of each phase, the rest of a step, and the share of it in which no group works."""
    counted = after_first(entries)
    rows: list[tuple[Cell, ...]] = []
    for phase in PHASES:
        seconds = median(entry.seconds[phase] for entry in counted)
        tokens = [tokens_by_phase(entry, config.ppo.epochs).get(phase) for entry in counted]
        rates = [
            number / max(entry.seconds[phase], 1e-9)
            for number, entry in zip(tokens, counted, strict=True)
            if number is not None
        ]
        rows.append((phase, seconds, median(rates) if rates else None))
    between = step_seconds(counted)
    if between:
        phases = [sum(entry.seconds.values()) for entry in counted[:-1]]
        rest = median(whole - inside for whole, inside in zip(between, phases, strict=True))
        written = [tokens_by_phase(entry, 1)["generate"] / s for entry, s in zip(counted[:-1], between, strict=True)]
        rows.append(("rest: ledger, checkpoint, next prompts", rest, None))
        rows.append(("whole step", median(between), median(written)))
    idle = median(entry.metrics["idle_frac"] for entry in counted)
    return Table(
        title="Phases of a PPO step",
        columns=("phase", "seconds", "tokens/s"),
        rows=tuple(rows),
        note=(
            f"Medians over {len(counted)} of {len(entries)} steps (the first left out where there are more). generate and whole step "
            "count the tokens written, the others whole trajectories, an update once per epoch. Policy and critic update at the same "
            "time; what is left of the critic's update goes on beside the sync. score is what is left of scoring when generation has "
            "ended: waves are scored while the engines go on. Share of the time from the first generation to the last update in which "
            f"no rank generates, scores or updates: {idle:.3f} (building experience counts as idle)."
        ),
    )


def busy_table(entries: Sequence[LedgerEntry]) -> Table | None:
    """Seconds of a step in which a role's ranks work; None for a ledger without them."""
    counted = after_first(entries)
    roles = [name.removeprefix(BUSY) for name in counted[-1].metrics if name.startswith(BUSY)]
    if not roles:
        return None
    rows = tuple((role, median(entry.metrics[BUSY + role] for entry in counted)) for role in roles)
    note = "Median over steps of the seconds in which any rank of the role works; roles overlap."
    return Table(title="Work by role", columns=("role", "seconds of a step"), rows=rows, note=note)


def sync_table(entries: Sequence[LedgerEntry]) -> Table:
    """Weight syncs: sending and loading alone, and with the probe that proves them."""
    counted = after_first(entries)
    send = median(entry.metrics["sync/seconds"] for entry in counted)
    num_bytes = counted[-1].metrics["sync/bytes"]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("MiB sent", num_bytes / MIB),
        ("send, load and check, ms", send * 1000),
        ("MiB/s", num_bytes / MIB / max(send, 1e-9)),
        ("with the probe, ms", median(entry.seconds["sync"] for entry in counted) * 1000),
        ("largest probe gap", max(entry.metrics["sync/probe_gap"] for entry in entries)),
    )
    return Table(
        title="Weight sync", columns=("figure", "value"), rows=rows, note=f"Medians over {len(counted)} syncs."
    )


def memory_table(metrics: Mapping[str, float]) -> Table | None:
    """Peak memory by role, from a step's metrics; None for a ledger without them."""
    rows = tuple((name.removeprefix(MEMORY), value / MIB) for name, value in metrics.items() if name.startswith(MEMORY))
    if not rows:
        return None
    note = (
        "Of the rank that needed most, up to the last step: resident memory of its process on CPU, libraries included; its GPU "
        "allocator's on CUDA."
    )
    return Table(title="Peak memory by role", columns=("role", "MiB"), rows=rows, note=note)


def steps_table(entries: Sequence[LedgerEntry]) -> Table:
    """How the run went, step by step."""
    columns = ("step", "reward", "KL", "log-prob gap", "entropy", "clip frac", "tokens/answer", "tokens/s", "seconds")
    rows = []
    for entry in entries:
        m = entry.metrics
        # the policy has no update while the critic warms up
        updated = "policy/entropy" in m
        rows.append(
            (
                entry.step,
                m["score"],
                m.get("kl"),  # without a reference there is none
                m["logprob_gap"],
                m["policy/entropy"] if updated else None,
                m["policy/clip_frac"] if updated else None,
                m["response_tokens"],
                m["tokens_per_s"],
                sum(entry.seconds.values()),
            )
        )
    note = (
        "reward: mean score of the step's answers. KL: nats per trajectory against the reference. log-prob gap: largest |rollout - old| / "
        "max(1, |old|) of a token. tokens/s: of generation. seconds: of the phases."
    )
    return Table(title="Steps", columns=columns, rows=tuple(rows), note=note)


def supervised_table(entries: Sequence[SupervisedEntry]) -> Table:
    """A reward model's training, about twenty lines of it."""
    columns = ("step", "loss", "pair accuracy", "grad norm", "tokens/s", "held-out accuracy")
    every = -(-len(entries) // 20)
    rows = tuple(
        (entry.step, *(entry.metrics.get(name) for name in _SUPERVISED))
        for entry in entries
        if entry.step % every == 0 or entry.step in (1, len(entries)) or _SUPERVISED[-1] in entry.metrics
    )
    rates = median(entry.metrics["tokens_per_s"] for entry in entries)
    note = (
        f"{len(entries)} steps, median {rates:,.0f} tokens/s forward and backward. Pair accuracy is that of the step's own pairs, before "
        "its update."
    )
    return Table(title="Reward model", columns=columns, rows=rows, note=note)


_SUPERVISED = ("loss", "pair_accuracy", "grad_norm", "tokens_per_s", "held_out/pair_accuracy")


def evaluation_table(evaluation: RewardEvaluation) -> Table:
    """A reward model on groups that it never trained on."""
    rows: tuple[tuple[Cell, ...], ...] = (
        ("pairs", evaluation.num_pairs),
        ("pair accuracy", evaluation.pair_accuracy),
        ("expected calibration error", evaluation.ece),
        ("correlation of score and length", evaluation.length_correlation),
        ("mean score", evaluation.mean),
        ("deviation of scores", evaluation.std),
    )
    return Table(title="Reward model, held out", columns=("figure", "value"), rows=rows)
