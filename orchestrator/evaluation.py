"""What the policy's answers to held-out prompts are worth, while PPO goes on.

held-out prompts ─► rollout.generate ─► trajectories ─┬─► reference.logprobs ─┐
                                        (by reference)├─► reward.score       ─┼─► critic.appraise ─► evaluations/00000010.json,
                                                      └─► judge.score        ─┘                      the answers beside it

Each evaluation has the same prompts and seeds, so that two differ by their weights alone. The one before the first step is what the
others' answers are compared with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.critic import Critic
from actors.durable import write_whole
from actors.errors import PreceptorError
from actors.group import Call
from actors.reference import Reference
from actors.reward_worker import RewardWorker
from actors.rollout import Rollout
from actors.tasks import AppraisalOrder, AppraisalSummary, GenerationUnit, WaveSummary
from configs.schema.ppo import PPOStage
from orchestrator.batching import Balancer
from orchestrator.metrics import mean
from orchestrator.ppo_step import PPOStep, speaking_of
from orchestrator.wins import win_frac

EVALUATIONS_FOLDER = "evaluations"
ANSWERS_FILES = "wave-*.jsonl"
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

    def evaluate(self, step: int) -> Evaluation:
        """Evaluates the weights after this step, which the engines hold. What an interrupted attempt has left is overwritten.

        Raises:
            PreceptorError: where the evaluation before the first step is missing or damaged.
        """
        baseline = read_evaluation(self.folder, 0) if step else None
        shutil.rmtree(self.folder / f"{step:08d}", ignore_errors=True)
        generation = [self._generate(step, wave) for wave in range(len(self.waves))]
        summaries: list[WaveSummary] = self.steps.waiter.wait(generation)
        with self.steps.engines_asleep():
            calls = [self._appraise(step, call, summary) for call, summary in zip(generation, summaries, strict=True)]
            appraised: list[AppraisalSummary] = self.steps.waiter.wait([call for of_wave in calls for call in of_wave])
        evaluation = merged(step, summaries, appraised, baseline, has_judge=JUDGE in self.steps.groups)
        write_whole(evaluation_file(self.folder, step), json.dumps(asdict(evaluation), indent=1).encode())
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

    def _appraise(self, step: int, call: Call, summary: WaveSummary) -> list[Call]:
        """Every rank of the critic sums up some of the wave's answers, with the columns that speak of these."""
        steps, groups, trajectories = self.steps, self.steps.groups, call.big
        balancers = {role: Balancer(len(group)) for role, group in groups.items() if role != "rollout"}
        shards = steps.shards(step, summary, [0] * len(summary.lengths), balancers)
        args = {role: [(shard, trajectories) for shard in of_role] for role, of_role in shards.items()}
        scorers, weights = steps.scorers()
        scores = [steps.score(role, args[role]) for role in scorers]
        if JUDGE in groups:
            scorers = [*scorers, JUDGE]
            scores.append(groups[JUDGE].call_each(RewardWorker.score, args[JUDGE], two_results=True))
        reference = (
            groups["reference"].call_each(Reference.logprobs, args["reference"], two_results=True)
            if "reference" in groups
            else []
        )
        orders = []
        for rank, shard in enumerate(shards["critic"]):
            columns = [speaking_of(shard, shards[role], calls) for role, calls in zip(scorers, scores, strict=True)]
            of_reference = speaking_of(shard, shards["reference"], reference) if reference else []
            order = AppraisalOrder(
                score_weights=weights,
                num_reference=len(of_reference),
                num_scores=tuple(len(of_source) for of_source in columns),
                file=f"{EVALUATIONS_FOLDER}/{step:08d}/wave-{summary.wave:04d}-rank-{rank:04d}.jsonl",
            )
            orders.append(
                (shard, order, trajectories, *of_reference, *(one for of_source in columns for one in of_source))
            )
        return groups["critic"].call_each(Critic.appraise, orders)


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
    return Evaluation(step=step, metrics={PREFIX + name: value for name, value in metrics.items()}, judged=judged)


def evaluation_file(folder: Path, step: int) -> Path:
    """Of a step, in the folder of evaluations. The answers are in the folder of the same name."""
    return folder / f"{step:08d}.json"


def read_evaluation(folder: Path, step: int) -> Evaluation:
    """Raises PreceptorError, naming the file, where it is missing or damaged."""
    path = evaluation_file(folder, step)
    try:
        return Evaluation(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise PreceptorError(f"evaluation {path} is missing or damaged: {error}") from error
