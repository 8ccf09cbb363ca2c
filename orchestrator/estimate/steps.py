"""The time of a step: the tasks that a stage's step consists of, as `orchestrator/ppo_step.py` and the other loops ask for them.

    waves ─► generate (engines) ─┬─► old log-probabilities (policy) ─┐
                                 ├─► log-probabilities (reference)  ─┼─► update (policy) ─► sync (policy, rollout) ─┐
                                 ├─► values (critic)                ─┤                                              ├─► step
                                 └─► scores (reward)                ─┴─► update (critic) ───────────────────────────┘

Waves stream where the engines have GPUs of their own. Else all waves are generated, the engines sleep, policy and critic come back to
their GPUs, and after the updates they leave them again.

Not counted: Python reward functions, files, the driver, evaluations, checkpoints, and that answers differ in length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from configs.errors import Problem
from configs.schema import Stage, SupervisedStage
from configs.schema.engine import EngineConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.run import ClusterConfig
from configs.schema.supervised import PretrainStage, SFTStage
from orchestrator.estimate.records import StepTime
from orchestrator.estimate.roofline import Duration, Engines, Hardware, Sharded, weight_sync
from orchestrator.estimate.schedule import Lane, Span, Task, idle_shares, phase_times, timeline
from orchestrator.estimate.work import Batch, ModelWork
from orchestrator.plan_records import GroupPlan, Plan, PPOPlan, RankPlan, SupervisedPlan

ANSWERS_OF_A_GROUP = 2
"""Of a ranked group, where the data is not read."""
TRAINED = ("policy", "critic")
NOTHING = Duration(seconds=0.0, bound="overhead")
"""Of a task that only waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean tokens, where the user gave them."""

    prompt_tokens: float | None = None
    response_tokens: float | None = None

    def problems(self, stage: Stage) -> list[Problem]:
        """Means that are longer than the stage allows."""
        if isinstance(stage, PPOStage | RankStage):
            limits = {
                "--prompt-tokens": (self.prompt_tokens, "data.max_prompt_tokens", stage.data.max_prompt_tokens),
                "--response-tokens": (
                    self.response_tokens,
                    "rollout.max_response_tokens",
                    stage.rollout.max_response_tokens,
                ),
            }
        else:
            both = "--prompt-tokens and --response-tokens"
            given_both = (self.prompt_tokens or 0) + (self.response_tokens or 0)
            limits = {both: (given_both, "data.max_tokens", stage.data.max_tokens)}
        return [
            Problem(key=name, got=f"got {given:g}", allowed=f"at most {key} of stage {stage.stage} ({limit})")
            for name, (given, key, limit) in limits.items()
            if given is not None and given > limit
        ]

    def of(self, prompt_limit: int, response_limit: int) -> tuple[float, float]:
        return self.prompt_tokens or prompt_limit, self.response_tokens or response_limit

    def sequence(self, limit: int) -> float:
        """Of a supervised stage: prompt and answer together, as long as the stage allows where one of them is not given."""
        if self.prompt_tokens is None or self.response_tokens is None:
            return limit
        return self.prompt_tokens + self.response_tokens

    def in_words(self) -> str:
        if self.prompt_tokens is None and self.response_tokens is None:
            return "every prompt and answer is as long as the config allows; --prompt-tokens and --response-tokens give means"
        given = {"prompt": self.prompt_tokens, "answer": self.response_tokens}
        texts = [
            f"every {name} has {tokens:g} tokens" if tokens else f"every {name} is as long as the config allows"
            for name, tokens in given.items()
        ]
        return ", ".join(texts) + "; a wave really lasts as long as its longest answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the time of a step is worked out from, beside config and plan."""

    works: dict[str, ModelWork]
    """By role; `rollout` is the policy's."""
    hardware: dict[str, Hardware]
    """By group."""
    kv_tokens: float | None
    """That one engine's KV cache holds; None in a stage without engines."""
    lengths: Lengths = Lengths()


@dataclass(slots=True)
class _Tasks:
    """The list as it grows."""

    plan: Plan
    every: list[Task] = field(default_factory=list)

    def add(
        self,
        role: str,
        phase: str,
        duration: Duration,
        after: Sequence[int] = (),
        *,
        lanes: Sequence[Lane] | None = None,
    ) -> int:
        lanes = self.lanes(role) if lanes is None else lanes
        self.every.append(Task(role=role, phase=phase, duration=duration, lanes=tuple(lanes), after=tuple(after)))
        return len(self.every) - 1

    def lanes(self, role: str) -> list[Lane]:
        """All of the role's group: one for each bundle only where engines work on bundles of their own."""
        group = self.plan.groups[self.plan.roles[role].group]
        return [(group.name, bundle) for bundle in range(num_lanes(group))]


def num_lanes(group: GroupPlan) -> int:
    return group.num_bundles if "rollout" in group.roles else 1


def step_time(config: Stage, plan: Plan, given: Given) -> StepTime:
    """Of one step of the stage, and of the run where its number of steps is known."""
    num_steps: int | None
    if isinstance(config, PPOStage):
        assert isinstance(plan, PPOPlan)
        tasks, num_steps = tasks_of_ppo(config, plan, given), config.ppo.steps
        prompt, response = given.lengths.of(config.data.max_prompt_tokens, config.rollout.max_response_tokens)
        tokens = plan.trajectories_per_step * (prompt + response)
    elif isinstance(config, RankStage):
        assert isinstance(plan, RankPlan)
        (tasks, tokens), num_steps = _rank(config, plan, given), _rank_steps(config, plan)
    else:
        assert isinstance(plan, SupervisedPlan)
        (tasks, tokens), num_steps = _supervised(config, plan, given), _supervised_steps(config)
    spans = timeline(tasks)
    step_s = max(span.end_s for span in spans)
    return _summed(config.cluster, plan, given, spans, step_s=step_s, tokens=tokens, num_steps=num_steps)


def _summed(
    cluster: ClusterConfig,
    plan: Plan,
    given: Given,
    spans: Sequence[Span],
    *,
    step_s: float,
    tokens: float,
    num_steps: int | None,
) -> StepTime:
    with_gpus = {group.name: group for group in plan.groups.values() if group.gpus_per_bundle}
    taken = sum(group.num_bundles * group.gpus_per_bundle for group in with_gpus.values())
    run_s = None if num_steps is None else num_steps * step_s
    gpu_hours = None if run_s is None else taken * run_s / 3600
    price = cluster.gpu_hour_price
    efficiencies = next(iter(given.hardware.values())).efficiencies
    critical = [
        f"{span.task.phase} ({span.task.role})" for span in spans if span.critical and span.end_s > span.start_s
    ]
    return StepTime(
        phases=phase_times(spans),
        step_s=step_s,
        critical_path=tuple(dict.fromkeys(critical)),
        idle_frac=idle_shares(spans, {name: num_lanes(group) for name, group in with_gpus.items()}),
        tokens_per_s=tokens / step_s,
        num_steps=num_steps,
        run_s=run_s,
        gpu_hours=gpu_hours,
        cost=None if price is None or gpu_hours is None else price * gpu_hours,
        assumptions=(given.lengths.in_words(), *efficiencies.in_words()),
    )


# ---------------------------------------------------------------------------------------------------------------------- ppo


@dataclass(frozen=True, slots=True, kw_only=True)
class _PPO:
    """The models of a PPO step where they run, and the lengths of its trajectories."""

    config: PPOStage
    plan: PPOPlan
    models: dict[str, Sharded]
    engines: Engines
    prompt: float
    response: float

    def batch(self, role: str, num_trajectories: int) -> Batch:
        """Of the rank with the most of them."""
        model = self.models[role]
        each = math.ceil(num_trajectories / model.num_ranks)
        return Batch(num_sequences=each, length=self.prompt + self.response, budget=model.engine.micro_batch_tokens)


def _ppo_models(config: PPOStage, plan: PPOPlan, given: Given) -> _PPO:
    engines_of: dict[str, EngineConfig] = {"policy": config.policy.engine, "critic": config.critic.engine}
    if plan.needs_reference:
        engines_of["reference"] = config.reference.engine
    if config.reward.model is not None:
        engines_of["reward"] = config.reward.model.engine
    models = {
        role: Sharded(
            work=given.works[role],
            engine=engine,
            num_ranks=plan.roles[role].num_ranks,
            head="scalar" if role in ("critic", "reward") else "vocabulary",
            hardware=given.hardware[plan.roles[role].group],
        )
        for role, engine in engines_of.items()
    }
    prompt, response = given.lengths.of(config.data.max_prompt_tokens, config.rollout.max_response_tokens)
    engines = _engines(config, plan, given)
    return _PPO(config=config, plan=plan, models=models, engines=engines, prompt=prompt, response=response)


def _engines(config: PPOStage | RankStage, plan: PPOPlan | RankPlan, given: Given) -> Engines:
    assert given.kv_tokens is not None
    hardware = given.hardware[plan.roles["rollout"].group]
    return Engines(work=given.works["rollout"], rollout=config.rollout, kv_tokens=given.kv_tokens, hardware=hardware)


def tasks_of_ppo(config: PPOStage, plan: PPOPlan, given: Given) -> list[Task]:
    """One step, in the order in which the driver asks for its parts."""
    step, tasks = _ppo_models(config, plan, given), _Tasks(plan)
    # all waves but the last have the same size
    sizes = {len(wave) for wave in plan.waves}
    generation = {size: step.engines.generate(size, step.prompt, step.response) for size in sizes}
    scoring = {size: _scoring(step, size) for size in sizes}
    engines = plan.roles["rollout"]
    generated = [
        tasks.add("rollout", "generate", generation[len(wave)], lanes=[(engines.group, number % engines.num_ranks)])
        for number, wave in enumerate(plan.waves)
    ]
    before = _trainers_turn(step, tasks, generated) if plan.rollout_shares_gpu else []
    scored, gate = [], before
    for number, wave in enumerate(plan.waves):
        # a wave's scoring waits for the generation of those before it too
        gate = [tasks.add("rollout", "wait", NOTHING, [*gate, generated[number]], lanes=[])]
        scored += [tasks.add(role, "score", duration, gate) for role, duration in scoring[len(wave)].items()]
    updated = {role: tasks.add(role, "update", _updates(step, role), scored) for role in TRAINED}
    _sync(step, tasks, updated)
    return tasks.every


def _scoring(step: _PPO, num_prompts: int) -> dict[str, Duration]:
    """Of a wave of so many prompts, by role, in the order in which they are asked."""
    num_trajectories = num_prompts * step.config.rollout.responses_per_prompt
    return {
        role: step.models[role].forward(step.batch(role, num_trajectories))
        for role in ("policy", "reference", "critic", "reward")
        if role in step.models
    }


def _updates(step: _PPO, role: str) -> Duration:
    minibatch = step.models[role].update(step.batch(role, step.plan.trajectories_per_minibatch))
    count = step.plan.updates_per_step
    note = f"{count} updates, each: {minibatch.note}" if count > 1 else minibatch.note
    return replace(minibatch.times(count), note=note)


def _trainers_turn(step: _PPO, tasks: _Tasks, generated: Sequence[int]) -> list[int]:
    """Engines sleep, then policy and critic come back."""
    asleep = tasks.add("rollout", "turn", step.engines.move(), generated)
    return [tasks.add(role, "turn", step.models[role].move(), [asleep]) for role in TRAINED]


def _sync(step: _PPO, tasks: _Tasks, updated: dict[str, int]) -> None:
    """Once the policy's updates are done; where engines share GPUs, once the critic has left its own and they are awake."""
    plan, config = step.plan, step.config.weight_sync
    waits = [updated["policy"]]
    if plan.rollout_shares_gpu:
        away = tasks.add("critic", "turn", step.models["critic"].move(), list(updated.values()))
        waits = [tasks.add("rollout", "turn", step.engines.move(), [away])]
    duration = weight_sync(
        step.models["policy"],
        step.engines,
        channel=plan.sync_channel,
        bucket_bytes=config.bucket_mib * 2**20,
        num_gpus=sum(group.num_bundles * group.gpus_per_bundle for group in plan.groups.values()),
        probe_tokens=config.probe_tokens,
    )
    # both sides are busy with it; in one group that is the same GPUs
    lanes = dict.fromkeys([*tasks.lanes("policy"), *tasks.lanes("rollout")])
    synced = tasks.add("policy", "sync", duration, waits, lanes=list(lanes))
    if plan.rollout_shares_gpu:
        tasks.add("policy", "turn", step.models["policy"].move(), [synced])


# -------------------------------------------------------------------------------------------------------------- other stages


def _supervised(config: SupervisedStage, plan: SupervisedPlan, given: Given) -> tuple[list[Task], float]:
    ranked = not isinstance(config, PretrainStage | SFTStage)
    num_sequences = plan.items_per_step * (ANSWERS_OF_A_GROUP if ranked else 1)
    length = given.lengths.sequence(config.data.max_tokens)
    role = plan.roles[plan.role]
    model = Sharded(
        work=given.works[plan.role],
        engine=config.model.engine,
        num_ranks=role.num_ranks,
        head="scalar" if plan.role == "reward" else "vocabulary",
        hardware=given.hardware[role.group],
    )
    each = math.ceil(num_sequences / role.num_ranks)
    batch = Batch(num_sequences=each, length=length, budget=config.model.engine.micro_batch_tokens)
    tasks = _Tasks(plan)
    tasks.add(plan.role, "update", model.update(batch))
    return tasks.every, num_sequences * length


def _rank(config: RankStage, plan: RankPlan, given: Given) -> tuple[list[Task], float]:
    """A round of as many waves as there are engines: a step is one wave, and that many go on side by side."""
    engines, tasks = _engines(config, plan, given), _Tasks(plan)
    prompt, response = given.lengths.of(config.data.max_prompt_tokens, config.rollout.max_response_tokens)
    wave = engines.generate(plan.prompts_per_wave, prompt, response)
    role = plan.roles["rollout"]
    # each engine's waves follow each other without a gap, so a step takes this part of a wave
    share = wave.times(1 / role.num_ranks)
    tasks.add("rollout", "generate", share)
    return tasks.every, plan.prompts_per_wave * plan.answers_per_prompt * (prompt + response)


def _rank_steps(config: RankStage, plan: RankPlan) -> int | None:
    rows = _rows(config.data.max_rows, config.data.held_out_rows, mixed=bool(config.data.mix))
    return None if rows is None else math.ceil(rows / plan.prompts_per_wave)


def _supervised_steps(config: SupervisedStage) -> int | None:
    """None for documents too, which become as many sequences as they are long."""
    if isinstance(config, PretrainStage):
        return None
    rows = _rows(config.data.max_rows, config.data.held_out_rows, mixed=bool(config.data.mix))
    return None if rows is None else config.training.total_steps(rows)


def _rows(max_rows: int | None, held_out_rows: int, *, mixed: bool) -> int | None:
    """Rows that are learned from, where the config says it: no file is read."""
    return None if max_rows is None or mixed else max_rows - held_out_rows
