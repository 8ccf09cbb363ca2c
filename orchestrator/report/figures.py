"""What is worth showing of a stage: in words, as one figure, as curves. The terminal and the page take it from here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Stage, stage_models
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.supervised import DPOStage, PretrainStage
from orchestrator.progress import duration
from orchestrator.report.charts import Line
from orchestrator.report.numbers import counted, percent, short
from orchestrator.report.run import Points, RunReport, StageReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Lines that share a scale."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    from_zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Curves, should the ledger have them."""

    title: str
    metrics: dict[str, str]
    """Metric -> its label."""
    unit: str = ""
    from_zero: bool = False


SUPERVISED = (
    Wanted(title="Loss", metrics={"loss": "training", "held_out/loss": "held out"}, unit="nats"),
    Wanted(title="Pair accuracy", metrics={"pair_accuracy": "training", "held_out/pair_accuracy": "held out"}),
    Wanted(title="Reward gap", metrics={"reward_gap": "training", "held_out/reward_gap": "held out"}),
    Wanted(title="Calibration error", metrics={"held_out/ece": "held out"}, from_zero=True),
    Wanted(title="Gradient norm", metrics={"grad_norm": "before clipping"}, from_zero=True),
    Wanted(title="Tokens per second", metrics={"tokens_per_s": "training"}, from_zero=True),
)
RANK = (
    Wanted(
        title="Shares by wave",
        metrics={
            "distinct_frac": "distinct answers",
            "tied_frac": "tied prompts",
            "truncated_frac": "truncated answers",
        },
        from_zero=True,
    ),
    Wanted(title="Tokens per answer", metrics={"response_tokens": "mean of a wave"}, from_zero=True),
)
PPO = (
    Wanted(title="Reward", metrics={"score": "mean score"}),
    Wanted(
        title="Held-out answers", metrics={"held_out/score": "score", "held_out/judged": "judge"}, unit="mean number"
    ),
    Wanted(title="Win rate", metrics={"held_out/win_rate": "held out, against the first weights"}),
    Wanted(
        title="KL from the reference",
        metrics={"kl": "training", "held_out/kl": "held out"},
        unit="nats per answer",
        from_zero=True,
    ),
    Wanted(title="Tokens per answer", metrics={"response_tokens": "mean"}, from_zero=True),
    Wanted(title="Truncated answers", metrics={"truncated_frac": "share"}, from_zero=True),
    Wanted(title="Entropy", metrics={"policy/entropy": "policy"}, unit="nats per token"),
    Wanted(title="Value loss", metrics={"critic/value_loss": "critic"}, from_zero=True),
    Wanted(title="Clip fraction", metrics={"policy/clip_frac": "policy", "critic/value_clip_frac": "critic"}, from_zero=True),
    Wanted(title="Log-probability gap", metrics={"logprob_gap": "largest of a token"}, from_zero=True),
)  # fmt: skip
KL_COEF = Wanted(title="KL coefficient", metrics={"kl_coef": "used"}, from_zero=True)


def curves_of(stage: StageReport) -> list[Curves]:
    """What the ledger has of what is worth showing. One number is no curve, unless the stage has a single step."""
    wanted: Sequence[Wanted] = SUPERVISED
    if isinstance(stage.config, RankStage):
        wanted = RANK
    elif isinstance(stage.config, PPOStage):
        sources = _reward_sources(stage.config)
        wanted = [*PPO[:1], *([sources] if sources else []), *PPO[1:]]
        if len({value for _, value in stage.metrics.get("kl_coef", ())}) > 1:
            wanted = [*wanted, KL_COEF]
    found = [
        Curves(
            title=one.title,
            unit=one.unit,
            from_zero=one.from_zero,
            lines=tuple(
                Line(label=label, points=stage.metrics[name])
                for name, label in one.metrics.items()
                if stage.metrics.get(name)
            ),
        )
        for one in wanted
    ]
    least = min(2, stage.num_steps)
    return [curves for curves in found if any(len(line.points) >= least for line in curves.lines)]


def _reward_sources(config: PPOStage) -> Wanted | None:
    """What each source of rewards says, in the ledger's order; None for a single one, which the reward shows."""
    model = ["reward model"] if config.reward.model is not None else []
    sources = [*model, *(one.function for one in config.reward.functions)]
    if len(sources) < 2:
        return None
    return Wanted(title="Reward by source", metrics={f"reward/{at}": source for at, source in enumerate(sources)})


# --------------------------------------------------------------------------------------------------------------------- words


def headline(stage: StageReport) -> str:
    """The one figure of a stage, or two; nothing where it has not come that far."""
    if stage.num_steps == 0:
        return ""
    if isinstance(stage.config, RankStage):
        return _rank_headline(stage)
    if isinstance(stage.config, PPOStage):
        kl = stage.metrics.get("kl", ())
        wins = stage.metrics.get("held_out/win_rate", ())
        parts = [f"reward {_change(stage.metrics['score'])}"]
        parts += [f"KL {short(kl[-1][1])}"] if kl else []
        parts += [f"held-out win rate {percent(wins[-1][1])}"] if wins else []
        return ", ".join(parts)
    if stage.evaluation is not None:
        found = stage.evaluation
        pairs = f"held-out accuracy {percent(found.pair_accuracy)} of {counted(found.num_pairs, 'pair')}"
        return f"{pairs}, ECE {found.ece:.3f}"
    if "held_out/pair_accuracy" in stage.metrics:
        return f"held-out accuracy {percent(stage.metrics['held_out/pair_accuracy'][-1][1])}"
    if "held_out/loss" in stage.metrics:
        return f"held-out loss {_change(stage.metrics['held_out/loss'])}"
    return f"loss {_change(stage.metrics['loss'])}"


def _rank_headline(stage: StageReport) -> str:
    num_answers = sum(len(row.responses) for row in stage.rankings)
    if not num_answers:
        return f"mean {short(stage.metrics['score'][-1][1])}"
    mean = sum(score for row in stage.rankings for score in row.scores) / num_answers
    return f"{counted(len(stage.rankings), 'prompt')}, {counted(num_answers, 'answer')}, mean {short(mean)}"


def _change(points: Points) -> str:
    """`0.21 → 0.55`, from the first step that has a value to the last."""
    first, last = points[0][1], points[-1][1]
    return short(last) if len(points) == 1 else f"{short(first)} → {short(last)}"


def described(stage: StageReport) -> str:
    """What the stage does, in one line."""
    config = stage.config
    data, model = config.data.path, next(iter(stage_models(config).values()))
    if isinstance(config, PPOStage):
        batch = f"{counted(config.ppo.prompts_per_step, 'prompt')} with {counted(config.rollout.responses_per_prompt, 'answer')} each"
        return f"Trains {model} by PPO on prompts of {data} against {_payers(config)}; a step is {batch}."
    if isinstance(config, RankStage):
        answers = counted(config.rollout.responses_per_prompt, "answer")
        return f"Samples {answers} to each prompt of {data} from {model}; {config.annotator.function} ranks them."
    if isinstance(config, PretrainStage):
        return f"Trains {model} on the next token of documents of {data}."
    if isinstance(config, DPOStage):
        return f"Trains {model} by DPO on the rankings of {data}."
    if config.stage == "reward":
        return f"Trains a reward model from {model} on the rankings of {data}."
    return f"Trains {model} on the answers of conversations of {data}."


def _payers(config: PPOStage) -> str:
    model = [f"the reward model {config.reward.model.model}"] if config.reward.model is not None else []
    return " and ".join([*model, *(one.function for one in config.reward.functions)])


def total_steps(config: Stage) -> int | None:
    """Steps of the whole stage, where the config alone says it."""
    return config.ppo.steps if isinstance(config, PPOStage) else None


def steps_text(stage: StageReport) -> str:
    """`12`, or `3 of 12` where it is not finished."""
    total = total_steps(stage.config)
    if stage.state == "finished" or total is None:
        return f"{stage.num_steps:,}"
    return f"{stage.num_steps:,} of {total:,}"


def minutes_text(seconds: float | None) -> str:
    """`12.3`; nothing where it is not known."""
    return "" if seconds is None else f"{seconds / 60:.1f}"


def time_text(seconds: float | None) -> str:
    """`12 min`, `2 h 05 min`; `unknown` where it is not known."""
    return "unknown" if seconds is None else duration(seconds)


def state_text(run: RunReport) -> str:
    """Of the whole run."""
    if run.finished:
        return "finished"
    done = sum(stage.state == "finished" for stage in run.stages)
    return (
        f"not finished: {done} of {counted(len(run.stages), 'stage')} done" if len(run.stages) > 1 else "not finished"
    )


def base_models(run: RunReport) -> list[str]:
    """The models that the run started from."""
    return list(
        dict.fromkeys(
            model
            for stage in run.stages
            for model in stage_models(stage.config).values()
            if not model.startswith("stage:")
        )
    )


def perplexity(stage: StageReport) -> float | None:
    """Of the last held-out loss of a language model."""
    held_out = stage.metrics.get("held_out/loss")
    return math.exp(min(held_out[-1][1], 700.0)) if held_out and not isinstance(stage.config, DPOStage) else None
