"""`preceptor compare`: two models answer the same prompts, one engine after the other, then the judge scores all answers.

prompts ─► rollout_a.answer ─► texts ─┐
   └─────► rollout_b.answer ─► texts ─┴─► judge.judge ─► Compared ─► terminal, HTML, JSON

Each has the machine for itself. Nothing is kept but what the user asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from actors.answerer import Answerer, PromptAnswers
from actors.judge import FunctionJudge, ModelJudge
from actors.preflight import CompareFacts, check_compare
from actors.rollout import engine_environment
from actors.tasks import GenerationUnit
from configs.schema.compare import CompareConfig
from orchestrator.export import only_role
from orchestrator.launch import Launched, RoleSpec
from orchestrator.plan import Plan
from orchestrator.progress import DRIVER_LOG, Progress
from orchestrator.report.answers import AnsweredRow, compare_rows, prompt_text
from orchestrator.report.compared import SOURCES, Compared
from orchestrator.signals import interruptible
from orchestrator.stages import in_cluster, launched_roles, ray_for, same_rows

JUDGED_AT_ONCE = 32
"""Answers of one call to a rank of the judge: each call has the time limit of a call."""


def compare(config: CompareConfig, progress: Progress) -> Compared:
    """Both models' answers to all prompts, judged where there is a judge.

    Raises:
        UserError, ConfigError: for bad input, before any model is loaded.
        PreceptorError: where it failed.
    """
    folder = Path(config.run.dir)
    with interruptible(), progress.log_to(folder / DRIVER_LOG), ray_for(config, progress) as plan:
        with progress.phase("checking prompts and models"):
            facts: CompareFacts = in_cluster(check_compare, config, timeout_s=config.cluster.start_timeout_s)
        left_out = f", {facts.num_dropped} left out for length" if facts.num_dropped else ""
        progress.note(f"{len(facts.ids)} prompts{left_out}")
        answers = [_answers(config, facts, plan, place, progress) for place in range(len(SOURCES))]
        scores = _scores(config, facts, plan, answers, progress)
    rows = tuple(
        tuple(
            AnsweredRow(
                id=one,
                prompt=prompt_text(content),
                responses=answer.texts,
                scores=score,
                num_tokens=answer.num_tokens,
                truncated=answer.truncated,
            )
            for one, content, answer, score in zip(facts.ids, facts.prompts, of_model, of_answers, strict=True)
        )
        for of_model, of_answers in zip(answers, scores, strict=True)
    )
    return Compared(
        config=config,
        rows=rows,
        comparison=compare_rows(
            list(zip(SOURCES, rows, strict=True)),
            tie_margin=config.annotator.tie_margin if config.annotator is not None else 0.0,
            prompts=len(facts.ids),
            answers=config.rollout.responses_per_prompt,
        ),
        normalised=facts.normalised,
    )


def _answers(
    config: CompareConfig, facts: CompareFacts, plan: Plan, place: int, progress: Progress
) -> list[PromptAnswers]:
    """One model's answers to all prompts. A request's seed is made of the run's, its prompt's place and its number: both have the same."""
    role, model, rollout = tuple(plan.roles)[place], config.models[place], config.rollout
    spec = RoleSpec(
        role_class=Answerer,
        args=(rollout, None, config.data, model),
        environment=engine_environment(rollout, plan.roles[role].threads, config.cluster.device),
    )
    with _alone(config, plan, role, spec, progress) as launched, progress.phase(f"answers of {SOURCES[place]}"):
        same_rows(launched, facts.fingerprints[place], config.data.path)
        group = launched.groups[role]
        slots = range(len(facts.ids))
        waves = [slots[start : start + rollout.prompts_per_wave] for start in slots[:: rollout.prompts_per_wave]]
        calls = [
            group.call_rank(
                wave % len(group),
                Answerer.answer,
                GenerationUnit(
                    step=1,
                    wave=wave,
                    prompt_indices=tuple(facts.rows[place][slot] for slot in of_wave),
                    prompt_slots=tuple(of_wave),
                    responses_per_prompt=rollout.responses_per_prompt,
                    seed=config.run.seed,
                    policy_version=0,
                ),
            )
            for wave, of_wave in enumerate(waves)
        ]
        return [answer for call in calls for answer in launched.waiter.wait([call])[0]]


def _scores(
    config: CompareConfig,
    facts: CompareFacts,
    plan: Plan,
    answers: Sequence[Sequence[PromptAnswers]],
    progress: Progress,
) -> list[list[tuple[float, ...]]]:
    """For each model and prompt the scores [K] of its answers; empty ones without a judge."""
    judge: Callable[..., list[float]]
    if config.reward is not None:
        reward = config.reward.model.model_copy(update={"normalise": facts.normalised})
        role, judge = "reward", ModelJudge.judge
        spec = RoleSpec(role_class=ModelJudge, args=(reward, config.data, config.models[0]))
    elif config.annotator is not None:
        role, judge = "annotator", FunctionJudge.judge
        spec = RoleSpec(role_class=FunctionJudge, args=(config.annotator, config.data, config.models[0]))
    else:
        return [[() for _ in of_model] for of_model in answers]
    given = [(one, answer) for of_model in answers for one, answer in zip(facts.ids, of_model, strict=True)]
    columns = (
        [one for one, answer in given for _ in answer.texts],
        [text for _, answer in given for text in answer.texts],
        [truncated for _, answer in given for truncated in answer.truncated],
    )
    with _alone(config, plan, role, spec, progress) as launched, progress.phase("scores"):
        same_rows(launched, "", config.data.path, rows_fingerprint=facts.rows_fingerprint)
        group = launched.groups[role]
        ranks = len(group)
        found: list[float] = []
        for start in range(0, len(columns[0]), ranks * JUDGED_AT_ONCE):
            some = [column[start : start + ranks * JUDGED_AT_ONCE] for column in columns]
            parts = [tuple(column[rank::ranks] for column in some) for rank in range(ranks)]
            of_ranks = launched.waiter.wait(group.call_each(judge, parts))
            found += [of_ranks[place % ranks][place // ranks] for place in range(len(some[0]))]
    scores = iter(found)
    return [[tuple(next(scores) for _ in answer.texts) for answer in of_model] for of_model in answers]


def _alone(
    config: CompareConfig, plan: Plan, role: str, spec: RoleSpec, progress: Progress
) -> AbstractContextManager[Launched]:
    return launched_roles(config, only_role(plan, role), {role: spec}, Path(config.run.dir), progress)
