"""Weight syncs and their proof. A sync that reports success proves nothing; see `docs/weight-sync.md` for what each check can see.

    policy.send_weights ─► engines (checksums, untouched parameters, prefix cache) ─► rollout.probe ─► policy.probe ─► verdict

At start comes the drill: perturbed weights are synced first, and the engines' answers must become the perturbed policy's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.group import Call
from actors.policy import Policy
from actors.rollout import Rollout
from actors.weight_sync.reports import ProbeReport, SentReport, check_drill, check_probe
from configs.schema.rollout import WeightSyncConfig
from orchestrator.plan_records import PPOPlan

if TYPE_CHECKING:
    from orchestrator.launch import Launched

EXACT_TOLERANCE = 1e-4
"""Of fp32 on CPU: both sides compute the same sums in another order."""
LOOSE_TOLERANCE = 0.5
"""Of bf16, and of other kernels on GPU. The largest gap is mostly rounding: on SmolLM2-135M in bf16 it was 0.06 to 0.17 where the mean was
0.03 to 0.05. An old tied head shows as 1 and more."""
DRILL_VERSION = -1
"""Policy version of perturbed weights: nobody can ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """A sync that was proved."""

    sent: SentReport
    probe: ProbeReport

    @property
    def digest(self) -> str:
        """Of every tensor sent, by name."""
        return self.sent.digest

    def metrics(self) -> dict[str, float]:
        return {
            "sync/seconds": self.sent.seconds,
            "sync/bytes": float(self.sent.num_bytes),
            "sync/probe_gap": self.probe.max_gap_scaled,
        }


class WeightSync:
    """Brings the policy's weights to every engine."""

    def __init__(self, config: WeightSyncConfig, plan: PPOPlan, launched: Launched, *, exact: bool) -> None:
        self.config = config
        self.plan = plan
        self.waiter = launched.waiter
        self.policy = launched.groups["policy"]
        self.rollout = launched.groups["rollout"]
        default = EXACT_TOLERANCE if exact else LOOSE_TOLERANCE
        self.tolerance = default if config.tolerance is None else config.tolerance

    def connect(self) -> None:
        """Policy's ranks and engines meet."""
        engines = list(self.rollout.actors)
        workers = max(1, self.plan.roles["rollout"].gpus_per_rank)
        self._wait(self.policy.call(Policy.connect_engines, engines, self.plan.sync_channel, workers))

    def start(self, policy_version: int) -> SyncResult:
        """The first sync, after the drill where the config asks for it."""
        if self.config.drill:
            self._drill()
        return self.sync(policy_version)

    def _drill(self) -> None:
        self._wait(self.policy.call(Policy.perturb))
        self._send(DRILL_VERSION)
        answers = self._answers(DRILL_VERSION)
        with_perturbed = self._compare(answers)
        self._wait(self.policy.call(Policy.restore))
        check_drill(with_perturbed, self._compare(answers), self.tolerance)

    def sync(self, policy_version: int) -> SyncResult:
        """Sends the weights; returns when every engine has proved them.

        Raises:
            SyncFailed: naming what does not agree. The engines are then of no more use.
        """
        sent = self._send(policy_version)
        probe = self._compare(self._answers(policy_version))
        check_probe(probe, self.tolerance)
        return SyncResult(sent=sent, probe=probe)

    def _send(self, policy_version: int) -> SentReport:
        reports = self._wait(self.policy.call(Policy.send_weights, policy_version))
        return reports[0]

    def _answers(self, policy_version: int) -> list[Call]:
        """Each engine's answers to the probe. They stay where they are: only references come here. An engine that fails is named."""
        answers = self.rollout.call(Rollout.probe, policy_version, self.config.probe_tokens, two_results=True)
        self._wait(answers)
        return answers

    def _compare(self, answers: list[Call]) -> ProbeReport:
        """The gap between engines and policy; every rank of the policy computes all of it, so any rank's report will do."""
        return self._wait(self.policy.call(Policy.probe, *(call.big for call in answers)))[0]

    def _wait(self, calls: list[Call]) -> list[Any]:
        # the sync has its own, shorter timeout inside; this one is for ranks that no longer answer at all
        return self.waiter.wait(calls, timeout_s=2 * self.config.timeout_s)
