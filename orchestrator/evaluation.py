"""What the policy's answers to held-out prompts are worth, while PPO goes on.

held-out prompts ─► rollout.generate ─► trajectories ─┬─► reference.logprobs ─┐
                                        (by reference)├─► reward.score       ─┼─► critic.appraise ─► evaluations/00000010.json,
                                                      └─► judge.score        ─┘                      the answers beside it

Each evaluation has the same prompts and seeds, so that two differ by their weights alone. The one before the first step is what the
others' answers are compared with. An evaluation comes after its step is committed and is made once: a file created only if absent, as a
ledger entry is. One that was broken off is made when the run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.critic import Critic
from actors.errors import PreceptorError
from actors.group import Call
from actors.reference import Reference
from actors.reward_worker import RewardWorker
from actors.rollout import Rollout
from actors.tasks import AppraisalOrder, AppraisalSummary, GenerationUnit, WaveShard, WaveSummary
from configs.schema.ppo import PPOStage
from orchestrator.batching import Balancer
from orchestrator.ledger import create_only
from orchestrator.metrics import mean
from orchestrator.ppo_step import PPOStep, holders, speaking_of
from orchestrator.wins import win_frac

EVALUATIONS_FOLDER = "evaluations"
ANSWER_KEYS = ("prompt_id", "prompt", "response", "score", "judged", "kl", "truncated")
JUDGE = "judge"
"""The role."""
PREFIX = "held_out/"
"""Of an evaluation's metrics in the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation."""

    step: int
    """0 is before the first."""
    metrics: dict[str, float]
    """`held_out/*`: `score` after weights, clipping and penalties; `judged` what the judge says, where there is one; `kl` nats per answer;
    `win_rate` with its standard error over prompts, after the first evaluation."""
    judged: dict[str, list[float]]
    """Prompt's id to what the judge says of each answer; where there is none, to what pays for it."""
    files: tuple[str, ...] = ()
    """The answers, under the folder of evaluations."""

    def described(self) -> str:
        """In one line."""
        found = {name.removeprefix(PREFIX): value for name, value in self.metrics.items()}
        parts = [f"score {found['score']:.3f}"]
        parts += [f"judged {found['judged']:.3f}"] if "judged" in found else []
        parts += [f"KL {found['kl']:.3f}"] if "kl" in found else []
        if "win_rate" in found:
            error = f" +- {found['win_rate_error']:.3f}" if "win_rate_error" in found else ""
            parts.append(f"win rate {found['win_rate']:.3f}{error} against the first weights")
        return f"held out, step {self.step}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _WaveUnderWay:
    """A wave of answers, and what is being said of them."""

    wave: int
    trajectories: Any
    """By reference."""
    shards: dict[str, list[WaveShard]]
    """By role, rank r's at place r."""
    by_role: dict[str, list[Call]]
    """Of those that pay, in their order, then of judge and reference, where there are such."""


class HeldOut:
    """Evaluations of one PPO run, over its running groups."""

    def __init__(self, config: PPOStage, steps: PPOStep, run_dir: Path, *, num_prompts: int, num_held_out: int) -> None:
        """`num_prompts` are learned from; the `num_held_out` after them are these."""
        self.config = config
        self.steps = steps
        self.folder = run_dir / EVALUATIONS_FOLDER
        size = config.rollout.prompts_per_wave
        starts = range(0, num_held_out, size)
        self.waves = [range(start, min(start + size, num_held_out)) for start in starts]
        self.first_prompt = num_prompts

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after this step (0: before the first)."""
        every, last = self.config.evaluation.every, self.config.ppo.steps
        return bool(self.waves) and (step % every == 0 or step == last)

    def has(self, step: int) -> bool:
        """Whether that of this step has been made."""
        return evaluation_file(self.folder, step).exists()

    def made(self, last: int) -> list[Evaluation]:
        """Of the steps up to `last`, those that have been made, in order.

        Raises:
            PreceptorError: for one that is damaged, and where that before the first step is missing though steps have been made.
        """
        if self.waves and last:
            read_evaluation(self.folder, 0)
        return read_evaluations(self.folder, last)

    def evaluate(self, step: int) -> Evaluation:
        """Evaluates the weights after this step, which the engines hold.

        Raises:
            PreceptorError: where that before the first step is missing or damaged, or where another driver has made this one.
        """
        started = time.monotonic()
        baseline = read_evaluation(self.folder, 0) if step else None
        wait = self.steps.waiter.wait
        generation = [self._generate(step, wave) for wave in range(len(self.waves))]
        # wave by wave: the limit is for each
        summaries: list[WaveSummary] = [summary for call in generation for summary in wait([call])]
        with self.steps.engines_asleep():
            started_waves = [self._score(call, summary) for call, summary in zip(generation, summaries, strict=True)]
            appraised: list[AppraisalSummary] = []
            for wave in started_waves:
                # first who scores, so that a failure is theirs
                wait([call for calls in wave.by_role.values() for call in calls])
                appraised += wait(self._appraise(step, wave))
        evaluation = merged(step, summaries, appraised, baseline, has_judge=JUDGE in self.steps.groups)
        evaluation.metrics[f"{PREFIX}seconds"] = time.monotonic() - started
        try:
            create_only(evaluation_file(self.folder, step), json.dumps(asdict(evaluation), indent=1).encode())
        except FileExistsError:
            raise PreceptorError(
                f"{evaluation_file(self.folder, step)} is there already: another driver works on this run directory; this one stops"
            ) from None
        for path in (self.folder / f"{step:08d}").iterdir():
            # of an attempt that was broken off
            if f"{step:08d}/{path.name}" not in evaluation.files:
                path.unlink()
        return evaluation

    def _generate(self, step: int, wave: int) -> Call:
        """On engine wave % engines, always the same. Step 0 is no PPO step's, so that its seeds are these prompts' alone."""
        engines, slots = self.steps.groups["rollout"], self.waves[wave]
        unit = GenerationUnit(
            step=0,
            wave=wave,
            prompt_indices=tuple(self.first_prompt + slot for slot in slots),
            prompt_slots=tuple(slots),
            responses_per_prompt=self.config.evaluation.responses_per_prompt,
            seed=self.config.run.seed,
            policy_version=step,
        )
        return engines.call_rank(wave % len(engines), Rollout.generate, unit, two_results=True)

    def _score(self, call: Call, summary: WaveSummary) -> _WaveUnderWay:
        steps, groups, trajectories = self.steps, self.steps.groups, call.big
        balancers = {role: Balancer(len(group)) for role, group in groups.items() if role != "rollout"}
        shards = steps.shards(0, summary, [0] * len(summary.lengths), balancers)
        args = {role: [(shard, trajectories) for shard in of_role] for role, of_role in shards.items()}
        by_role = {role: steps.score(role, args[role]) for role in steps.scorers()[0]}
        if JUDGE in groups:
            by_role[JUDGE] = groups[JUDGE].call_each(RewardWorker.score, args[JUDGE], two_results=True)
        if "reference" in groups:
            by_role["reference"] = groups["reference"].call_each(
                Reference.logprobs, args["reference"], two_results=True
            )
        return _WaveUnderWay(wave=summary.wave, trajectories=trajectories, shards=shards, by_role=by_role)

    def _appraise(self, step: int, wave: _WaveUnderWay) -> list[Call]:
        """Every rank of the critic sums up some of the wave's answers, with the columns that speak of these."""
        _, weights = self.steps.scorers()
        holder = {role: holders(wave.shards[role]) for role in wave.by_role}
        orders = []
        for rank, shard in enumerate(wave.shards["critic"]):
            columns = {role: speaking_of(shard, holder[role], calls) for role, calls in wave.by_role.items()}
            reference = columns.pop("reference", [])
            order = AppraisalOrder(
                score_weights=weights,
                num_reference=len(reference),
                num_scores=tuple(len(of_source) for of_source in columns.values()),
                file=f"{EVALUATIONS_FOLDER}/{step:08d}/wave-{wave.wave:04d}-rank-{rank:04d}.jsonl",
            )
            scores = [column for of_source in columns.values() for column in of_source]
            orders.append((shard, order, wave.trajectories, *reference, *scores))
        return self.steps.groups["critic"].call_each(Critic.appraise, orders)


def merged(
    step: int,
    waves: Sequence[WaveSummary],
    appraised: Sequence[AppraisalSummary],
    baseline: Evaluation | None,
    *,
    has_judge: bool,
) -> Evaluation:
    """What all ranks say of all waves, compared with the evaluation before the first step."""
    judged: dict[str, list[float]] = {prompt_id: [] for wave in waves for prompt_id in wave.prompt_ids}
    for part in appraised:
        for prompt_id, number in zip(part.prompt_ids, part.judged, strict=True):
            judged[prompt_id].append(number)
    lengths = [float(length) for wave in waves for length in wave.num_loss_tokens]
    metrics = {
        "score": mean([score for part in appraised for score in part.scores]),
        "response_tokens": mean(lengths),
        "truncated_frac": mean([float(cut) for wave in waves for cut in wave.truncated]),
    }
    if has_judge:
        metrics["judged"] = mean([number for part in appraised for number in part.judged])
    if kl := [value for part in appraised if part.kl is not None for value in part.kl]:
        metrics["kl"] = mean(kl)
    if baseline is not None:
        if baseline.judged.keys() != judged.keys():
            raise PreceptorError(f"the evaluation before the first step has other prompts than that of step {step}")
        metrics["win_rate"], error = win_frac([baseline.judged[one] for one in judged], list(judged.values()))
        if error is not None:
            metrics["win_rate_error"] = error
    return Evaluation(
        step=step,
        metrics={PREFIX + name: value for name, value in metrics.items()},
        judged=judged,
        files=tuple(f"{step:08d}/{part.file.name}" for part in appraised if part.file is not None),
    )


def evaluation_file(folder: Path, step: int) -> Path:
    """Of a step, in the folder of evaluations. The answers are in the folder of the same name."""
    return folder / f"{step:08d}.json"


def read_evaluations(folder: Path, last: int) -> list[Evaluation]:
    """All that are there up to step `last`, in order. Raises PreceptorError, naming the file, for a damaged one."""
    steps = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
    return [read_evaluation(folder, step) for step in steps if step <= last]


def read_answers(folder: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows that the ranks wrote: `prompt_id`, `prompt`, `response`, `score`, `judged`, `kl`, `truncated`.

    Raises:
        PreceptorError: naming a file that is missing or damaged.
    """
    rows = []
    for name in evaluation.files:
        try:
            # not `splitlines`: what a model wrote may hold other line ends than those of the file
            lines = (folder / name).read_text("utf-8").removesuffix("\n").split("\n")
            rows += [{key: row[key] for key in ANSWER_KEYS} for row in map(json.loads, lines)]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PreceptorError(f"{folder / name} is missing or damaged: {type(error).__name__}: {error}") from error
    return rows


def read_evaluation(folder: Path, step: int) -> Evaluation:
    """Raises PreceptorError, naming the file, where it is missing or damaged."""
    path = evaluation_file(folder, step)
    try:
        found = json.loads(path.read_bytes())
        return Evaluation(**{**found, "files": tuple(found["files"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreceptorError(f"evaluation {path} is missing or damaged: {error}") from error
