"""The rollout role: one vLLM engine that answers prompts with a known version of the policy's weights.

Legend: `B` trajectories, `T` their tokens together.

The driver imports this module for its method names, so torch and vLLM are imported inside methods, in the engine's own process.

States: `new` -> start -> `unsynced` -> begin_update -> `updating` -> finish_update -> `ready` -> begin_update -> ...
Anything that goes wrong between begin and finish leads to `broken`, and so does asking an engine in `updating` for an answer: its weights
are partly overwritten. Out of `broken` leads only killing the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from actors.context import RankContext
from actors.digests import digest_of
from actors.errors import SyncFailed, UserError
from actors.role import Role
from actors.tasks import Busy, GenerationUnit, WaveSummary
from actors.weight_sync.reports import SyncReceipt, WorkerReceipt, sync_digest, verify
from configs.schema.data import PromptDataConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig

if TYPE_CHECKING:
    from actors.algorithms.records import Trajectories
    from actors.data.prompts import PromptDataset, PromptRow
    from actors.rollout_backend import Request, Response, Sampling, VLLMBackend
    from actors.weight_sync.bucket import Bucket
    from actors.weight_sync.nccl import GroupAddress

State = Literal["new", "unsynced", "updating", "ready", "broken"]

PROBE_PROMPTS = 4
"""The dataset's first rows answer for all in the probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """An engine that has started."""

    num_prompts: int
    data_fingerprint: str
    vocab_size: int
    end_token_ids: tuple[int, ...]
    seconds: float
    peak_memory_bytes: int


def engine_environment(rollout: RolloutConfig, threads: int, device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """Environment of an engine's process, to be set before it imports anything: vLLM reads most of it at import."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device == "cpu" and rollout.enforce_eager:
        # vLLM compiles a function of its sampler even so: 20 s of C++ compilation at the first answer, for nothing that shows
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if device == "cpu":
        # engines and trainers share the cores: vLLM's own binding would put every engine on the same ones
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if rollout.tensor_parallel > 1:
        environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    return environment


def request_seed(*parts: int | str) -> int:
    """63-bit seed of one request, from the run's seed, the step, the prompt's slot and the sample's number."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Rollout(Role):
    """One engine, and the prompts that it answers."""

    def __init__(
        self,
        context: RankContext,
        rollout: RolloutConfig,
        weight_sync: WeightSyncConfig | None,
        data: PromptDataConfig,
        model: str,
    ) -> None:
        super().__init__(context)
        self.state: State = "new"
        self.policy_version: int | None = None
        self._rollout = rollout
        self._weight_sync = weight_sync
        self._data = data
        self._model = model
        self._updating_to: int | None = None
        self._update_start = 0.0
        self._backend: VLLMBackend
        self._prompts: PromptDataset
        self._end_token_ids: tuple[int, ...] = ()

    # ---- start

    def start(self) -> RolloutReport:
        """Reads the prompts and starts vLLM. With weight syncs the first one brings the weights; without, the model's own are loaded, as
        policy version 0."""
        from actors.data.prompts import PromptDataset
        from actors.data.tokenizer import end_token_ids, load_tokenizer
        from actors.models.checks import read_model_config, window
        from actors.rollout_backend import VLLMBackend

        start = time.monotonic()
        tokenizer, config = load_tokenizer(self._model), read_model_config(self._model)
        self._prompts = PromptDataset.load(self._data, tokenizer)
        self._end_token_ids = tuple(sorted({*end_token_ids(self._model, tokenizer), *self._rollout.stop_token_ids}))
        probe_tokens = self._weight_sync.probe_tokens if self._weight_sync is not None else 0
        answer, positions = max(self._rollout.max_response_tokens, probe_tokens), window(config)
        if positions is not None and self._prompts.longest + answer > positions:
            raise UserError(
                f"the longest prompt ({self._prompts.longest} tokens) and rollout.max_response_tokens (weight_sync.probe_tokens where that "
                f"is more) make {self._prompts.longest + answer} tokens, but {self._model} has {positions} positions; "
                "allowed: at most as many"
            )
        length = self._data.max_prompt_tokens + answer
        length = length if positions is None else min(length, positions)
        own_weights = self._weight_sync is None
        self._backend = VLLMBackend(
            self._model, self._rollout, self.context, max_model_len=length, own_weights=own_weights
        )
        self.state, self.policy_version = ("ready", 0) if own_weights else ("unsynced", None)
        return RolloutReport(
            num_prompts=len(self._prompts),
            data_fingerprint=self._prompts.fingerprint,
            vocab_size=config["vocab_size"],
            end_token_ids=self._end_token_ids,
            seconds=time.monotonic() - start,
            peak_memory_bytes=self.peak_memory_bytes(),
        )

    # ---- answers

    def generate(self, unit: GenerationUnit) -> tuple[Trajectories, WaveSummary]:
        """Answers each of the unit's prompts as often as it says; trajectories are prompt-major.

        Raises SyncFailed where the engine does not hold exactly the unit's `policy_version`.
        """
        self._need_ready()
        if unit.policy_version != self.policy_version:
            raise SyncFailed(
                f"the engine holds policy version {self.policy_version}, the unit asks for version {unit.policy_version}"
            )
        started = time.time()
        samples = range(unit.responses_per_prompt)
        rows = [self._prompts.row(index) for index in unit.prompt_indices for _ in samples]
        places = list(itertools.product(unit.prompt_slots, samples))
        seeds = [request_seed(unit.seed, unit.step, slot, sample) for slot, sample in places]
        if self.context.deterministic:
            # what is cached decides how many tokens are computed at once, and that decides the last bits
            self._backend.reset_prefix_cache()
        responses = self._backend.generate(_requests(rows, seeds), self._sampling())
        ids = tuple(f"{unit.step:08d}/{slot:06d}/{sample:03d}" for slot, sample in places)
        trajectories = make_trajectories(ids, rows, responses, unit.policy_version)
        return trajectories, summarise(trajectories, wave=unit.wave, busy=Busy.since(started))

    def probe(self, step: int, num_tokens: int) -> tuple[Trajectories, None]:
        """Answers to the dataset's first prompts, one each, sampled as in training: the policy's own log-probabilities must agree."""
        self._need_ready()
        assert self.policy_version is not None
        rows = [self._prompts.row(index) for index in range(min(PROBE_PROMPTS, len(self._prompts)))]
        seeds = [request_seed(self.context.seed, step, "probe", slot) for slot in range(len(rows))]
        responses = self._backend.generate(_requests(rows, seeds), self._sampling(max_tokens=num_tokens))
        ids = tuple(f"{step:08d}/probe/{slot:03d}" for slot in range(len(rows)))
        return make_trajectories(ids, rows, responses, self.policy_version), None

    # ---- weights

    def connect_cpu(self) -> None:
        """Makes ready for buckets as Ray objects."""
        self._connect("receiver_connect_cpu")

    def connect_broadcast(self, address: GroupAddress) -> None:
        """Joins the sender's broadcast group."""
        self._connect("receiver_connect_broadcast", address)

    def connect_ipc(self) -> None:
        """Makes ready for CUDA IPC handles."""
        self._connect("receiver_connect_ipc")

    def begin_update(self, policy_version: int) -> None:
        """Opens a sync to `policy_version`."""
        if self.state not in ("unsynced", "ready"):
            raise self._break(f"a weight sync began in state {self.state!r}")
        self._update_start = time.monotonic()
        with self._breaking("begin_update"):
            self._backend.prime_canary()
            self.state, self._updating_to = "updating", policy_version
            self._backend.workers("receiver_begin")

    def load_bucket(self, bucket: Bucket, source: Any) -> None:
        """Loads one bucket. `source` is its bytes, IPC handles, or None where it comes by broadcast."""
        self._need_updating()
        with self._breaking(f"bucket {bucket.index}"):
            self._backend.workers("receiver_load", bucket, source)

    def finish_update(self, policy_version: int, sent: Mapping[str, str]) -> SyncReceipt:
        """Closes a sync and proves it: checksums against those `sent`, every engine parameter overwritten, prefix cache reset."""
        self._need_updating()
        with self._breaking("finish_update"):
            if policy_version != self._updating_to:
                raise SyncFailed(f"the sync began for policy version {self._updating_to} and ends for {policy_version}")
            receipts: list[WorkerReceipt] = self._backend.workers("receiver_finish")
            for receipt in receipts:
                verify(sent, receipt.checksums, receipt.untouched)
            self._backend.reset_prefix_cache()
            self._backend.check_canary()
        self.state, self.policy_version, self._updating_to = "ready", policy_version, None
        return SyncReceipt(
            policy_version=policy_version,
            num_tensors=len(receipts[0].checksums),
            num_bytes=receipts[0].num_bytes,
            digest=sync_digest(receipts[0].checksums),
            seconds=time.monotonic() - self._update_start,
        )

    # ---- memory

    def sleep(self) -> bool:
        """Gives the GPU's memory to the roles that share it; False on CPU, where there is none to give."""
        return self._backend.sleep()

    def wake(self) -> bool:
        """Takes the GPU's memory again; False on CPU."""
        return self._backend.wake()

    # ---- inside

    def _sampling(self, *, max_tokens: int | None = None) -> Sampling:
        from actors.rollout_backend import Sampling

        return Sampling(
            temperature=self._rollout.temperature,
            max_tokens=self._rollout.max_response_tokens if max_tokens is None else max_tokens,
            end_token_ids=self._end_token_ids,
        )

    def _connect(self, method: str, *args: Any) -> None:
        if self.state not in ("unsynced", "ready"):
            raise self._break(f"a sender connected in state {self.state!r}")
        self._backend.workers(method, *args)

    def _need_ready(self) -> None:
        if self.state == "updating":
            self._break("it was asked for answers in the middle of a weight sync")
        if self.state != "ready":
            raise SyncFailed(f"the engine is {self.state!r}: it answers only after a whole weight sync")

    def _need_updating(self) -> None:
        if self.state != "updating":
            raise self._break(f"a weight sync went on in state {self.state!r}")

    def _break(self, why: str) -> SyncFailed:
        if self.state in ("unsynced", "ready", "updating"):
            self.state, self.policy_version = "broken", None
        return SyncFailed(f"the engine is of no more use: {why}")

    @contextlib.contextmanager
    def _breaking(self, what: str) -> Iterator[None]:
        """Whatever is raised inside leaves the engine broken and comes out as SyncFailed."""
        try:
            yield
        except SyncFailed:
            self._break(what)
            raise
        except Exception as error:  # vLLM may raise anything, and whatever it is, the weights are half overwritten
            raise self._break(f"{what}: {type(error).__name__}: {error}") from error


def _requests(rows: Sequence[PromptRow], seeds: Sequence[int]) -> list[Request]:
    from actors.rollout_backend import Request

    return [Request(prompt=tuple(row.token_ids), seed=seed) for row, seed in zip(rows, seeds, strict=True)]


def make_trajectories(
    ids: tuple[str, ...], rows: Sequence[PromptRow], responses: Sequence[Response], policy_version: int
) -> Trajectories:
    """Prompts and responses as one flat record; every response token was chosen by `policy_version`."""
    import torch

    from actors.algorithms.records import Trajectories, VersionSpan, cumulative

    tokens: list[int] = []
    logprobs: list[float] = []
    loss_mask: list[bool] = []
    for row, response in zip(rows, responses, strict=True):
        tokens += [*row.token_ids, *response.tokens]
        logprobs += [*[0.0] * len(row.token_ids), *response.logprobs]
        loss_mask += [*[False] * len(row.token_ids), *[True] * len(response.tokens)]
    starts = [len(row.token_ids) for row in rows]
    ends = [start + len(response.tokens) for start, response in zip(starts, responses, strict=True)]
    return Trajectories(
        ids=ids,
        prompt_ids=tuple(row.id for row in rows),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        cu_lengths=cumulative(ends),
        loss_mask=torch.tensor(loss_mask, dtype=torch.bool),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        truncated=torch.tensor([response.truncated for response in responses], dtype=torch.bool),
        version_spans=tuple(
            (VersionSpan(start=start, end=end, policy_version=policy_version),)
            for start, end in zip(starts, ends, strict=True)
        ),
        turn_offsets=tuple((start,) for start in starts),
    )


def summarise(trajectories: Trajectories, *, wave: int, busy: Busy) -> WaveSummary:
    """What the orchestrator may know of the trajectories."""
    lengths = trajectories.lengths
    tokens, mask = trajectories.tokens.split(lengths), trajectories.loss_mask.split(lengths)
    return WaveSummary(
        wave=wave,
        lengths=tuple(lengths),
        num_loss_tokens=tuple(int(one.sum()) for one in mask),
        prompt_ids=trajectories.prompt_ids,
        truncated=tuple(trajectories.truncated.tolist()),
        token_digest=digest_of(hashlib.sha256(one.numpy().astype("<i8").tobytes()).hexdigest() for one in tokens),
        busy=busy,
    )
