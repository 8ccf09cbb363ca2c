"""What the ranks of the supervised stages share: one optimizer step on a step's items, held-out evaluation, export.

An item is what one row of the data teaches: a sequence (`pretrain`, `sft`) or a group of ranked answers (`dpo`, `reward`). The
orchestrator knows items by number, length and weight, and says which rank computes which.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from actors.store import run_path, write_whole
from actors.tasks import Busy, RoleReport, UpdateReport
from actors.trainer import Trainer
from configs.schema.supervised import SupervisedSection

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch
    from actors.data.tokenizer import Tokenizer
    from actors.models.wrapped import WrappedModel

DATA_FINGERPRINT = "data_fingerprint"
"""Of the facts that a rank reports."""

MicroBatches = tuple[tuple[int, ...], ...]
"""Numbers of items. All ranks get the same number of micro-batches; an empty one is a dummy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsReport:
    """What there is to train on; the same on every rank.

    Legend: `N` items.
    """

    lengths: tuple[int, ...]
    """[N] tokens of each item: what a micro-batch's budget is spent on."""
    weights: tuple[int, ...]
    """[N] what each item adds to the count that a loss is a mean over: loss tokens of a sequence, 1 for a group of answers."""
    num_train: int
    """Items 0 to this are trained on, the rest is held out."""
    num_dropped: int
    """Rows left out for their length."""
    data_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedShard:
    """One rank's part of one optimizer step."""

    step: int
    micro_batches: MicroBatches
    """An item is never split."""
    global_count: int
    """Weight of all items of the step, over all ranks."""
    lr: float


class Evaluation(Protocol):
    """How good a model is on items that it never trained on."""

    def metrics(self) -> dict[str, float]:
        """Its numbers, for ledger and progress."""

    def described(self) -> str:
        """In one line, for people."""

    @property
    def merit(self) -> float:
        """What the best checkpoint is chosen by: larger is better."""


class MicroBatch:
    """Items, and the same packed."""

    def __init__(self, items: Sequence[int], batch: PackedBatch) -> None:
        self.items = items
        self.batch = batch


class SupervisedTrainer(Trainer, ABC):
    """A model that learns from a data set."""

    evaluation_file: ClassVar[str]
    """What an export's evaluation is written to, within its folder."""
    forward_kwargs: ClassVar[dict[str, Any]] = {}
    """Of the engine's forward."""
    config: SupervisedSection

    def start(self) -> RoleReport:
        """Loads data, model and engine (collective).

        Raises:
            UserError: for bad data, or a model that is none.
        """
        from actors.data.tokenizer import load_tokenizer
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine

        started = time.monotonic()
        model = self.config.model
        assert model.model is not None
        fingerprint = self.load_data(load_tokenizer(model.model))
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = self.load_module(model.model)
        self.engine = Engine(module, engine=model.engine, optimizer=model.optimizer, context=self.context)
        return self.report(started, **{DATA_FINGERPRINT: fingerprint})

    @abstractmethod
    def load_data(self, tokenizer: Tokenizer) -> str:
        """Reads the data; its fingerprint."""

    @abstractmethod
    def load_module(self, model: str) -> WrappedModel:
        """The model's module (collective)."""

    @abstractmethod
    def items(self) -> ItemsReport:
        """What the orchestrator packs micro-batches from. Not collective: any one rank can be asked."""

    @abstractmethod
    def packed(self, items: Sequence[int]) -> PackedBatch:
        """The items as one micro-batch; none give the dummy."""

    @abstractmethod
    def loss(
        self, micro: MicroBatch, outputs: tuple[Tensor, ...], global_count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's contribution to the step's loss, and metrics that add up likewise."""

    @abstractmethod
    def evaluate(self, micro_batches: MicroBatches) -> object:
        """This rank's part of an evaluation of the held-out items (collective)."""

    @abstractmethod
    def summarise(self, parts: Sequence[Any]) -> Evaluation:
        """The evaluation, from all ranks' parts in their order. Not collective: any one rank can be asked."""

    def update(self, shard: SupervisedShard) -> UpdateReport:
        """One optimizer step on the step's items (collective).

        The report's metrics are contributions: summed over ranks they are means over the step.
        """
        started = time.time()
        micro_batches = [MicroBatch(items, self.packed(items)) for items in shard.micro_batches]

        def loss_of(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            return self.loss(micro_batches[index], outputs, shard.global_count)

        metrics = self.engine.forward_backward([micro.batch for micro in micro_batches], loss_of, **self.forward_kwargs)
        norm = self.engine.step(shard.lr)
        return UpdateReport(minibatches=(metrics,), grad_norms=(norm,), busy=Busy.since(started))

    def export_evaluated(self, folder: str, evaluation: Evaluation | None) -> None:
        """Writes a Hugging Face folder, and in it, last, the evaluation, where there is one (collective; rank 0 writes)."""
        assert self.config.model.model is not None
        self.export(folder, self.config.model.model)
        if self.context.rank == 0 and evaluation is not None:
            write_evaluation(run_path(folder) / self.evaluation_file, evaluation)


def write_evaluation(path: Path, evaluation: Any) -> None:
    """Writes an evaluation (a dataclass) as JSON, whole or not at all."""
    write_whole(path, (json.dumps(asdict(evaluation), indent=2, allow_nan=False) + "\n").encode())
