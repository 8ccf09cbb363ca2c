"""Stage `rank`: waves of prompts, each answered several times and ranked; at the end one file of rankings.

prompts ─► rollout.generate ─► trajectories (by reference) ─► annotator.rank ─► rankings/00000001.jsonl ─► ledger ─► ... ─► export

A step is a wave. Engines work on the next waves while one is ranked.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from actors.annotator import Annotator, RankedFile
from actors.group import Call
from actors.rollout import Rollout
from actors.tasks import GenerationUnit, WaveShard, WaveSummary, WrittenFile
from configs.schema.rank import RankStage
from orchestrator.launch import Launched
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.metrics import peak_memory
from orchestrator.progress import Progress
from orchestrator.run_dir import EXPORT_FOLDER, RANKINGS_FILE, rankings_file

AHEAD = 2
"""Waves that each engine has been asked for, the one it works on included."""


class RankLoop:
    """All waves of a stage."""

    def __init__(
        self, config: RankStage, launched: Launched, run_dir: Path, num_prompts: int, progress: Progress
    ) -> None:
        self.config = config
        self.groups = launched.groups
        self.engines, self.annotators = launched.groups["rollout"], launched.groups["annotator"]
        self.waiter = launched.waiter
        self.run_dir = run_dir
        self.progress = progress
        self.ledger = Ledger(run_dir, SupervisedEntry)
        size = config.rollout.prompts_per_wave
        self.waves = [range(start, min(start + size, num_prompts)) for start in range(0, num_prompts, size)]
        self.step = 0
        self.stepping = False
        self.stop_requested = False

    @property
    def finished(self) -> bool:
        return self.step == len(self.waves)

    def run(self) -> None:
        """From wherever the run directory stands to the export."""
        self.step = self.ledger.last_step()
        self.progress.begin(len(self.waves), done=self.step)
        self.stepping = True
        under_way: deque[Call] = deque()
        while not self.finished and not self.stop_requested:
            self.waiter.step = self.step + 1
            for wave in range(self.step + len(under_way), min(self.step + AHEAD * len(self.engines), len(self.waves))):
                under_way.append(self._generate(wave))
            entry = self._rank(under_way.popleft())
            self.ledger.commit(entry)
            self.step = entry.step
            self.progress.step(entry.step, entry.metrics, entry.digest)
        if self.finished:
            with self.progress.phase("export"):
                self._export()

    def _generate(self, wave: int) -> Call:
        """On engine wave % engines, always the same. A request's seed depends on the run's, the wave and its place in it."""
        prompts = self.waves[wave]
        unit = GenerationUnit(
            step=wave + 1,
            wave=0,
            prompt_indices=tuple(prompts),
            prompt_slots=tuple(range(len(prompts))),
            responses_per_prompt=self.config.rollout.responses_per_prompt,
            seed=self.config.run.seed,
            policy_version=0,
        )
        return self.engines.call_rank(wave % len(self.engines), Rollout.generate, unit, two_results=True)

    def _rank(self, call: Call) -> SupervisedEntry:
        step = self.step + 1
        with self.progress.phase("generate"):
            summary: WaveSummary = self.waiter.wait([call])[0]
        shard = WaveShard(step=step, wave=0, indices=tuple(range(len(summary.lengths))), micro_batches=())
        num_answers = self.config.rollout.responses_per_prompt
        with self.progress.phase("rank"):
            ranked: RankedFile = self.waiter.wait(
                [
                    self.annotators.call_rank(
                        step % len(self.annotators), Annotator.rank, shard, num_answers, rankings_file(step), call.big
                    )
                ]
            )[0]
        tokens = sum(summary.num_loss_tokens)
        metrics = {
            "score": ranked.mean,
            "tied_frac": ranked.tied_frac,
            "distinct_frac": ranked.distinct_frac,
            "response_tokens": tokens / len(summary.lengths),
            "truncated_frac": sum(summary.truncated) / len(summary.lengths),
            "tokens_per_s": tokens / max(summary.busy.seconds, 1e-9),
        }
        metrics |= peak_memory(self.groups, self.waiter)
        return SupervisedEntry(step=step, digest=ranked.file.sha256, metrics=metrics)

    def _export(self) -> None:
        files = [
            WrittenFile(name=rankings_file(step), sha256=self.ledger.read(step).digest, num_bytes=0)
            for step in range(1, self.step + 1)
        ]
        out = str(self.run_dir / EXPORT_FOLDER / RANKINGS_FILE)
        self.waiter.wait([self.annotators.call_rank(0, Annotator.combine, files, out)])
