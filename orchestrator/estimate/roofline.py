"""How long the parts of a step take on a kind of GPU: the slowest of compute, memory, links and launches.

compute = operations / (peak x share) · memory = bytes / (bandwidth x share) · network = bytes x (n - 1) / n / (link x share)

What DeepSpeed overlaps (gathers and reductions of stages 1 to 3) counts as the slower of the two, everything else is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.gpus import GPUKind
from configs.schema.engine import EngineConfig
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.efficiencies import Efficiencies
from orchestrator.estimate.memory import held
from orchestrator.estimate.work import BYTES, Batch, Head, ModelWork, Passes, flops

GRADIENT_BYTES = 4
"""Of a gradient on its way: the engine reduces in fp32."""
ADAM_BYTES = 30
"""A parameter of one AdamW step: master and two moments read and written in fp32, the gradient read, the bf16 weight written."""
MAX_NUM_SEQS = 256
"""Sequences that an engine decodes at once, at most (actors/rollout_backend.py)."""
PROBE_PROMPTS = 4
"""Of the probe that proves a weight sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long, and why."""

    seconds: float
    bound: str
    """`compute`, `memory`, `network`, `overhead`."""
    note: str = ""

    @staticmethod
    def slowest(note: str = "", **seconds: float) -> Duration:
        """Of things that go on at the same time."""
        bound = max(seconds, key=lambda name: seconds[name])
        return Duration(seconds=seconds[bound], bound=bound, note=note)

    def then(self, *others: Duration) -> Duration:
        """One after the other; bound by the longest of them."""
        every = (self, *others)
        longest = max(every, key=lambda each: each.seconds)
        note = "; ".join(each.note for each in every if each.note)
        return Duration(seconds=sum(each.seconds for each in every), bound=longest.bound, note=note)

    def times(self, count: float) -> Duration:
        return Duration(seconds=self.seconds * count, bound=self.bound, note=self.note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The GPUs of one group."""

    kind: GPUKind
    gpus_per_node: int
    efficiencies: Efficiencies = field(default_factory=Efficiencies)

    def link_bytes_per_s(self, num_gpus: int) -> float:
        """Of one GPU in a collective of `num_gpus`. Beyond a node, what enters one does so once, over all its links together."""
        within = self._within_node()
        network = self.kind.network_bytes_per_s * self.gpus_per_node
        return (within if num_gpus <= self.gpus_per_node else min(within, network)) * self.efficiencies.collective

    def sending_bytes_per_s(self, num_gpus: int) -> float:
        """Of one GPU that sends to others, alone of its node: over its own link."""
        within = self._within_node()
        far = min(within, self.kind.network_bytes_per_s)
        return (within if num_gpus <= self.gpus_per_node else far) * self.efficiencies.collective

    def _within_node(self) -> float:
        return self.kind.nvlink_bytes_per_s or self.kind.pcie_bytes_per_s

    def flops_per_s(self, share: float, dtype: str) -> float:
        return self.kind.bf16_flops * share * (self.efficiencies.fp32 if dtype == "fp32" else 1.0)

    def stream_bytes_per_s(self) -> float:
        return self.kind.memory_bytes_per_s * self.efficiencies.streaming

    def pcie_bytes_per_s(self) -> float:
        return self.kind.pcie_bytes_per_s * self.efficiencies.pcie


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A model on the ranks of one role."""

    work: ModelWork
    engine: EngineConfig
    num_ranks: int
    head: Head
    hardware: Hardware

    @property
    def weight_bytes(self) -> float:
        return self.work.total_parameters * BYTES[self.engine.dtype]

    def collective_s(self, num_bytes: float) -> float:
        """An all-gather or a reduce-scatter of `num_bytes` over the ranks; an all-reduce is two."""
        return num_bytes * (self.num_ranks - 1) / self.num_ranks / self.hardware.link_bytes_per_s(self.num_ranks)

    def forward(self, batch: Batch) -> Duration:
        """Without gradients, one rank's batch."""
        return self._passes(
            batch, Passes.forward(), share=self.hardware.efficiencies.scoring, network_bytes=self._gathers(1)
        )

    def update(self, batch: Batch) -> Duration:
        """One optimizer step: forward and backward of a minibatch's share, reductions, AdamW."""
        stage, checkpointing = self.engine.zero_stage, self.engine.activation_checkpointing
        passes = Passes.training(checkpointing=checkpointing)
        gradients = self.work.total_parameters * GRADIENT_BYTES
        # stages 2 and 3 reduce in every micro-batch; forward, backward and recomputation each gather
        moved = self._gathers(3 if checkpointing else 2) + (gradients if stage >= 2 else 0.0)
        learned = self._passes(batch, passes, share=self.hardware.efficiencies.training, network_bytes=moved)
        # an all-reduce is two; DeepSpeed's BF16_Optimizer, which is stage 1 in bf16, makes one where a half of it would do
        summed = 2 * gradients if stage == 0 or self.engine.dtype == "bf16" else gradients
        once = {0: summed, 1: summed + self.weight_bytes, 2: self.weight_bytes, 3: 0.0}[stage]
        reduced = Duration(seconds=self.collective_s(once), bound="network")
        return learned.then(reduced, self._optimizer())

    def move(self) -> Duration:
        """Of what a rank holds, one way between GPU and host."""
        items = held(self.work.total_parameters, self.engine, self.num_ranks, "cuda")
        moved = sum(item.amount for item in items)
        return Duration(
            seconds=moved / self.hardware.pcie_bytes_per_s(), bound="network", note=f"{moved / 1e9:.1f} GB over PCIe"
        )

    def _gathers(self, count: int) -> float:
        return count * self.weight_bytes if self.engine.zero_stage == 3 else 0.0

    def _passes(self, batch: Batch, passes: Passes, *, share: float, network_bytes: float) -> Duration:
        work, hardware, count = self.work, self.hardware, batch.num_micro_batches
        operations = flops(work, batch, passes=passes, head=self.head, attention=self.engine.attention)
        return Duration.slowest(
            note=f"{count} micro-batches of up to {batch.sequences_per_micro_batch * batch.length:,.0f} tokens",
            compute=operations / hardware.flops_per_s(share, self.engine.dtype),
            memory=count * passes.body * self.weight_bytes / hardware.stream_bytes_per_s(),
            overhead=count * passes.body * work.num_layers * hardware.efficiencies.eager_layer_s,
            network=count * self.collective_s(network_bytes),
        )

    def _optimizer(self) -> Duration:
        shard = self.work.total_parameters / (self.num_ranks if self.engine.zero_stage > 0 else 1)
        if not self.engine.offload_optimizer:
            return Duration(seconds=shard * ADAM_BYTES / self.hardware.stream_bytes_per_s(), bound="memory")
        on_node = min(self.num_ranks, self.hardware.gpus_per_node)
        copied = shard * (GRADIENT_BYTES + BYTES[self.engine.dtype]) / self.hardware.pcie_bytes_per_s()
        stepped = shard * on_node / self.hardware.efficiencies.cpu_adam
        return Duration(seconds=copied + stepped, bound="overhead", note=f"AdamW in host memory {stepped:.1f} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """vLLM engines, each on `rollout.tensor_parallel` GPUs."""

    work: ModelWork
    rollout: RolloutConfig
    kv_tokens: float
    """What one engine's KV cache holds."""
    hardware: Hardware

    @property
    def weight_bytes(self) -> float:
        """Of one GPU of an engine."""
        return self.work.total_parameters * BYTES[self.rollout.dtype] / self.rollout.tensor_parallel

    def at_once(self, num_sequences: int, length: float) -> int:
        """Sequences that an engine decodes side by side: as its cache holds them at their full length."""
        held = int(self.kv_tokens // length)
        return max(1, min(num_sequences, MAX_NUM_SEQS, held))

    def generate(self, num_prompts: int, prompt_tokens: float, response_tokens: float) -> Duration:
        """One wave on one engine. A prompt is read once, its further answers find it in the prefix cache."""
        num_sequences = num_prompts * self.rollout.responses_per_prompt
        batch = self.at_once(num_sequences, prompt_tokens + response_tokens)
        # as answers end others take their places, so rounds need not be whole
        rounds = num_sequences / batch
        decoded = self.decode_step(batch, prompt_tokens + response_tokens / 2).times(rounds * response_tokens)
        whole = decoded.then(self.prefill(num_prompts, prompt_tokens))
        note = f"{num_sequences} answers, {batch} at once"
        return Duration(seconds=whole.seconds, bound=whole.bound, note=note)

    def prefill(self, num_prompts: int, prompt_tokens: float) -> Duration:
        """Of all prompts, in one go: so many tokens keep a GPU busy however they are cut."""
        tokens = num_prompts * prompt_tokens
        attended = 4 * self.work.attention_width * self.work.num_layers * num_prompts * prompt_tokens**2 / 2
        operations = 2 * self.work.body_parameters * tokens + attended
        peak = (
            self.hardware.flops_per_s(self.hardware.efficiencies.prefill, self.rollout.dtype)
            * self.rollout.tensor_parallel
        )
        return Duration.slowest(compute=operations / peak, network=self._all_reduces(tokens))

    def decode_step(self, batch: float, context: float) -> Duration:
        """One token for each of `batch` sequences that hold `context` tokens on the average."""
        work, hardware, size = self.work, self.hardware, self.rollout.tensor_parallel
        dtype = self.rollout.dtype
        read = work.read_parameters(batch) * BYTES[dtype] + batch * context * work.kv_bytes_per_token(dtype)
        operations = batch * (
            2 * (work.body_parameters + work.head_parameters) + 4 * work.attention_width * work.num_layers * context
        )
        bandwidth = hardware.kind.memory_bytes_per_s * hardware.efficiencies.decode * size
        on_gpu = Duration.slowest(
            memory=read / bandwidth,
            compute=operations / (hardware.flops_per_s(hardware.efficiencies.prefill, dtype) * size),
            overhead=work.num_layers * hardware.efficiencies.eager_layer_s if self.rollout.enforce_eager else 0.0,
        )
        around = Duration(seconds=hardware.efficiencies.decode_step_s, bound="overhead")
        return on_gpu.then(around, Duration(seconds=self._all_reduces(batch), bound="network"))

    def move(self) -> Duration:
        """An engine's weights between GPU and host, when it sleeps and wakes."""
        return Duration(seconds=self.weight_bytes / self.hardware.pcie_bytes_per_s(), bound="network")

    def _all_reduces(self, tokens: float) -> float:
        """Seconds of tensor parallelism for `tokens` tokens: two all-reduces a layer of their hidden states."""
        size = self.rollout.tensor_parallel
        if size == 1:
            return 0.0
        num_bytes = tokens * self.work.hidden * BYTES[self.rollout.dtype]
        moved = 2 * num_bytes * (size - 1) / size / self.hardware.link_bytes_per_s(size)
        return 2 * self.work.num_layers * (moved + self.hardware.efficiencies.all_reduce_s)


def weight_sync(
    policy: Sharded, engines: Engines, *, channel: str, bucket_bytes: float, num_gpus: int, probe_tokens: int
) -> Duration:
    """From the policy's ranks to every engine, and its proof.

    Gathering and sending overlap. `num_gpus` are all GPUs of the run: they tell whether weights have to leave a node.
    """
    hardware, sent = policy.hardware, policy.weight_bytes
    gathered = policy.collective_s(sent) if policy.engine.zero_stage == 3 else 0.0
    links = {
        "nccl": min(hardware.sending_bytes_per_s(num_gpus), engines.hardware.sending_bytes_per_s(num_gpus)),
        "ipc": hardware.stream_bytes_per_s(),
        "cpu": hardware.efficiencies.host_channel,
    }
    num_buckets = -(-sent // bucket_bytes)
    moved = Duration.slowest(
        note=f"{sent / 1e9:.1f} GB by {channel}",
        network=max(gathered, sent / links[channel]),
        overhead=num_buckets * hardware.efficiencies.bucket_s,
    )
    probed = engines.decode_step(PROBE_PROMPTS, probe_tokens).times(probe_tokens)
    return moved.then(probed)
