"""What a weight sync and its probe report, and the verdicts over the reports. Loads no torch: the orchestrator reads these."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.errors import SyncFailed

DRILL_CONTRAST = 3.0
"""The drill's perturbed weights must move the answers by at least this many times the gap that remains, or it proves nothing."""
DRILL_FLOOR = 1e-4
"""The least gap that counts as remaining, in nats: a sync that changed next to nothing proves nothing, however exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentReport:
    """One sync as the policy's rank 0 sent it."""

    policy_version: int
    num_tensors: int
    num_bytes: int
    num_buckets: int
    digest: str
    """`sync_digest` of the checksums."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReceipt:
    """One sync as one worker process of an engine received it."""

    checksums: dict[str, str]
    """Of every received tensor, by its Hugging Face name."""
    untouched: tuple[str, ...]
    """vLLM parameters that got nothing or only a part."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReceipt:
    """One sync as one engine received and proved it."""

    policy_version: int
    num_tensors: int
    num_bytes: int
    digest: str
    """`sync_digest` of the received checksums: equals the sender's."""
    seconds: float
    """From the first call to the proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """How far vLLM's log-probabilities of its own tokens are from the policy's."""

    num_tokens: int
    max_gap: float
    """max |vllm - policy|; infinite where a number is not finite."""
    max_gap_scaled: float
    """max |vllm - policy| / max(1, |policy|); infinite where a number is not finite."""
    mean_gap: float
    """mean |vllm - policy|"""
    worst: str
    """The token of `max_gap_scaled`, in words."""


def sync_digest(checksums: Mapping[str, str]) -> str:
    """sha256 over the tensors' names and checksums, in order of names."""
    lines = "".join(f"{name} {checksums[name]}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def verify(sent: Mapping[str, str], received: Mapping[str, str], untouched: Sequence[str]) -> None:
    """Raises SyncFailed, naming tensors, unless exactly what was sent was received and every engine parameter got all of its values."""
    lost, extra = sorted(sent.keys() - received.keys()), sorted(received.keys() - sent.keys())
    changed = sorted(name for name in sent.keys() & received.keys() if sent[name] != received[name])
    if not sent:
        raise SyncFailed("the sync carried no tensor")
    for names, what in (
        (lost, "sent but not received"),
        (extra, "received but not sent"),
        (changed, "changed on the way (sent and received checksums differ)"),
        (list(untouched), "not, or not wholly, overwritten in the engine"),
    ):
        if names:
            raise SyncFailed(f"{_some(names)}: {what}")


def merge_probes(reports: Sequence[ProbeReport]) -> ProbeReport:
    """One report over several ranks' shares of one probe."""
    worst = max(reports, key=lambda report: report.max_gap_scaled)
    num_tokens = sum(report.num_tokens for report in reports)
    return ProbeReport(
        num_tokens=num_tokens,
        max_gap=max(report.max_gap for report in reports),
        max_gap_scaled=worst.max_gap_scaled,
        mean_gap=math.fsum(report.mean_gap * report.num_tokens for report in reports) / max(1, num_tokens),
        worst=worst.worst,
    )


def check_probe(report: ProbeReport, tolerance: float) -> None:
    """Raises SyncFailed where engine and policy do not agree on the probe within `tolerance` (of `max_gap_scaled`)."""
    if report.num_tokens == 0:
        raise SyncFailed("the probe has no token, so it proves nothing")
    if not report.max_gap_scaled <= tolerance:
        raise SyncFailed(
            f"engine and policy disagree on the probe: |vllm - policy| / max(1, |log p|) is {report.max_gap_scaled:.3g}, "
            f"allowed is {tolerance:.3g} ({report.num_tokens} tokens, mean gap {report.mean_gap:.3g}, worst: {report.worst})"
        )


def check_drill(with_perturbed: ProbeReport, with_real: ProbeReport, tolerance: float) -> None:
    """Judges the drill: the engine answered with perturbed weights; the policy scored these answers with both sets of weights.

    Raises SyncFailed unless the perturbed policy agrees within `tolerance` and the real one is, in the mean over tokens, at least
    `DRILL_CONTRAST` times as far away: without that contrast an engine that ignored the sync, or a part of it, would have agreed as
    well. Means, because in bf16 the largest gap of either is mostly rounding.
    """
    check_probe(with_perturbed, tolerance)
    needed = DRILL_CONTRAST * max(with_perturbed.mean_gap, DRILL_FLOOR)
    if with_real.mean_gap < needed:
        raise SyncFailed(
            f"the drill's perturbed weights moved the answers by {with_real.mean_gap:.3g} in the mean, less than the {needed:.3g} that "
            f"would tell them from the gap that remains ({with_perturbed.mean_gap:.3g}): the drill proves nothing"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
