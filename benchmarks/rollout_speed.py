"""Rollouts inside the running system against bare vLLM, alternating: same prompts, seeds, lengths, settings and weights."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from actors.data.order import prompts_of_step
from actors.digests import digest_of
from actors.rollout import engine_environment
from benchmarks.table import Cell, Table
from configs.schema.ppo import PPOStage
from orchestrator.launch import Launched
from orchestrator.plan_records import PPOPlan
from orchestrator.ppo_step import PPOStep

START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 600.0
SYSTEM, BARE, AT_ONCE = "in the system", "bare vLLM, the same waves", "bare vLLM, all prompts at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One batch of prompts answered."""

    seconds: float
    tokens: int
    digest: str

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class BareProcess:
    """`benchmarks.bare_vllm` and the pipes to it."""

    def __init__(self, config_file: Path, model: Path, environment: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.bare_vllm", str(config_file), str(model)]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, **environment, "PYTHONPATH": path}
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        self._answer(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def answer(self, step: int, waves: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Speed:
        """Seconds as the process itself counts them: from its having the prompts to its having all answers."""
        assert self._process.stdin is not None
        request = {"step": step, "waves": [list(wave) for wave in waves], "slots": [list(wave) for wave in slots]}
        with suppress(BrokenPipeError):  # a dead process is told of by what it does not answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return Speed(**self._answer(ANSWER_TIMEOUT_S))

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise TimeoutError(f"bare vLLM did not answer within {timeout_s:g} s; its log: {self._log}")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bare vLLM ended; its log: {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class InSystem:
    """The running engines, asked as a PPO step asks them."""

    def __init__(
        self, config: PPOStage, plan: PPOPlan, launched: Launched, *, num_prompts: int, policy_version: int
    ) -> None:
        self.config = config
        self.plan = plan
        self.num_prompts = num_prompts
        self._steps = PPOStep(config, plan, launched, num_prompts)
        self._waiter = launched.waiter
        self._policy_version = policy_version

    def waves(self, step: int) -> list[list[int]]:
        """Dataset rows of each wave of the step."""
        prompts = prompts_of_step(
            step - 1,
            prompts_per_step=self.plan.prompts_per_step,
            num_prompts=self.num_prompts,
            seed=self.config.run.seed,
            shuffle=self.config.data.shuffle,
        )
        return [[prompts[slot] for slot in slots] for slots in self.plan.waves]

    def answer(self, step: int) -> Speed:
        """Seconds as the driver counts them: from the first call to the last wave's summary."""
        started = time.monotonic()
        summaries = self._waiter.wait(self._steps.generate(step, self._policy_version))
        seconds = time.monotonic() - started
        digests = [summary.token_digest for summary in summaries]
        return Speed(seconds=seconds, tokens=sum(sum(s.num_loss_tokens) for s in summaries), digest=digest_of(digests))


def compare(system: InSystem, bare: BareProcess, *, first_step: int, rounds: int) -> Table:
    """`rounds` rounds after one of warm-up. The order of the ways turns round from one to the next.

    Every engine gets each prompt once, so that nothing is answered from a prefix cache: bare vLLM, which answers twice a round, gets
    the prompts of later steps the second time.
    """
    slots = system.plan.waves
    at_once = [[slot for wave in slots for slot in wave]]
    speeds: dict[str, list[Speed]] = {SYSTEM: [], BARE: [], AT_ONCE: []}
    for number in range(rounds + 1):
        step, later = first_step + number, first_step + rounds + 1 + number
        for name in list(speeds) if number % 2 == 0 else list(speeds)[::-1]:
            if name == SYSTEM:
                speed = system.answer(step)
            elif name == BARE:
                speed = bare.answer(step, system.waves(step), slots)
            else:
                speed = bare.answer(later, [[index for wave in system.waves(later) for index in wave]], at_once)
            speeds[name].append(speed)
    return speed_table({name: measured[1:] for name, measured in speeds.items()}, slots)


def speed_table(speeds: Mapping[str, Sequence[Speed]], slots: Sequence[Sequence[int]]) -> Table:
    """Medians, ratios of each round, and whether both sides sampled the same tokens."""
    bare = speeds[BARE]
    rows: list[tuple[Cell, ...]] = []
    for name, measured in speeds.items():
        ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(measured, bare, strict=True)]
        rows.append((name, median(one.tokens_per_s for one in measured), median(ratios), min(ratios), max(ratios)))
    same = sum(one.digest == other.digest for one, other in zip(speeds[SYSTEM], bare, strict=True))
    lengths = {one.tokens for measured in speeds.values() for one in measured}
    return Table(
        title="Rollouts inside the system against bare vLLM",
        columns=("way", "tokens/s", "against bare", "lowest", "highest"),
        rows=tuple(rows),
        note=(
            f"{len(bare)} rounds, each {sum(map(len, slots))} new prompts in waves of {len(slots[0])}, "
            f"{' to '.join(f'{number:,}' for number in sorted({min(lengths), max(lengths)}))} tokens written; every role of the run is "
            "loaded and idle. In the system: from the driver's first call to the last wave's summary. Ratios are taken within a round. "
            f"The tokens are the same to the last one in {same} of {len(bare)} rounds."
        ),
    )


def bare_process(config: PPOStage, plan: PPOPlan, config_file: Path, model: Path, log: Path) -> BareProcess:
    """Bare vLLM with as many threads as one engine of the system."""
    environment = engine_environment(config.rollout, plan.roles["rollout"].threads, config.cluster.device)
    return BareProcess(config_file, model, environment, log)
