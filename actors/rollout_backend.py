"""vLLM behind one door: the one module that knows its interfaces. What is used of them is pinned by a contract test.

In one process on one device (`uni` executor, `VLLM_ENABLE_V1_MULTIPROCESSING=0`, set by `rollout.engine_environment` before the process
starts); with tensor parallelism one process a GPU under the `mp` executor. Tensor parallelism has not been run, for want of GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind

from actors.context import RankContext
from actors.errors import SyncFailed, UserError
from actors.models.checks import name_for_libraries
from configs.schema.rollout import RolloutConfig

SUPPORTED_VLLM = ("0.32.0",)
"""Versions whose interfaces were read and tested."""

WORKER_EXTENSION = "actors.weight_sync.worker.WeightReceiver"
MAX_NUM_SEQS = 256
"""Requests decoded at once; more wait in vLLM's queue."""

_CANARY_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One response wanted."""

    prompt: tuple[int, ...]
    """Token ids."""
    seed: int
    """63 bits; the response depends on nothing else beside the weights (to the bit only in the same batch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. No top-p, top-k, penalties or least length: log-probabilities are of the distribution sampled from."""

    temperature: float
    max_tokens: int
    """Longest response, end token included."""
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What was sampled."""

    tokens: tuple[int, ...]
    """End token included."""
    logprobs: tuple[float, ...]
    """Of each token, under the distribution that it was sampled from."""
    truncated: bool
    """Ended by the length limit, not by an end token."""
    num_cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""


def check_version(version: str) -> None:
    """UserError for a vLLM whose interfaces were not tested."""
    if version.split("+")[0] not in SUPPORTED_VLLM:
        raise UserError(f"vLLM {version} is not supported; allowed: {', '.join(SUPPORTED_VLLM)}")


class VLLMBackend:
    """One vLLM engine."""

    def __init__(
        self, model: str, rollout: RolloutConfig, context: RankContext, *, max_model_len: int, own_weights: bool
    ) -> None:
        """`own_weights`: the model's, from disk. Else it starts from noise, and whoever made it answers only after a weight sync."""
        check_version(vllm.__version__)
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            raise UserError(
                "VLLM_ENABLE_V1_MULTIPROCESSING must be 0 in a rollout engine's environment (rollout.engine_environment)"
            )
        on_cuda = context.device == "cuda"
        memory: dict[str, Any] = (
            {"gpu_memory_utilization": rollout.gpu_memory_frac, "enable_sleep_mode": True}
            if on_cuda
            else {"kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30)}
        )
        try:
            self._llm = vllm.LLM(
                model=name_for_libraries(model, weights=own_weights),
                skip_tokenizer_init=True,  # token ids in, token ids out
                generation_config="vllm",  # not the model's own sampling defaults
                # a sync brings every weight and proves it, so none is read from disk
                load_format="auto" if own_weights else "dummy",
                dtype={"fp32": "float32", "bf16": "bfloat16"}[rollout.dtype],
                seed=context.seed,
                max_model_len=max_model_len,
                max_num_seqs=min(MAX_NUM_SEQS, max(8, rollout.prompts_per_wave * rollout.responses_per_prompt)),
                tensor_parallel_size=rollout.tensor_parallel,
                distributed_executor_backend="uni" if rollout.tensor_parallel == 1 else "mp",
                enforce_eager=rollout.enforce_eager,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                worker_extension_cls=WORKER_EXTENSION,
                disable_log_stats=True,
                **memory,
            )
        except ValueError as error:  # what vLLM raises for a model or memory that it cannot serve
            raise UserError(f"vLLM cannot serve {model}: {error}") from error
        self._on_cuda = on_cuda
        self._canary = self._make_canary(max_model_len)
        self._canary_hits()  # the first answer takes seconds, which belong to the start

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response for each request, in their order. Nothing else runs in the engine meanwhile."""
        params = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                seed=request.seed,
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(sampling.end_token_ids),
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(request.prompt)) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [_response(output, sampling) for output in outputs]

    def stream(self, request: Request, sampling: Sampling) -> Iterator[tuple[int, ...]]:
        """One response as it is sampled: the tokens that are new. Closing the iterator ends the request. Nothing else runs meanwhile."""
        engine = self._llm.llm_engine
        params = vllm.SamplingParams(
            temperature=sampling.temperature,
            seed=request.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(sampling.end_token_ids),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = vllm.TokensPrompt(prompt_token_ids=list(request.prompt))
        name = engine.add_request(f"stream-{request.seed}", prompt, params)
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    yield tuple(output.outputs[0].token_ids)
        finally:
            engine.abort_request([name], internal=True)

    def reset_prefix_cache(self) -> None:
        """Empties the prefix cache. SyncFailed where vLLM refuses, as it does while requests run."""
        if not self._llm.reset_prefix_cache():
            raise SyncFailed("vLLM did not reset its prefix cache")

    def prime_canary(self) -> None:
        """Puts the canary prompt's keys and values into the prefix cache, so that `check_canary` has something to find."""
        self._canary_hits()

    def check_canary(self) -> None:
        """SyncFailed where the prefix cache still answers a prompt that it knew before it was reset."""
        if hits := self._canary_hits():
            raise SyncFailed(
                f"the prefix cache was not reset: {hits} tokens of a known prompt were answered from old weights"
            )

    def workers(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of `WeightReceiver` in every worker process; results by worker."""
        return self._llm.collective_rpc(method, args=args)

    def sleep(self) -> bool:
        """Gives GPU memory back: weights go to host memory, the key-value cache is dropped. False on CPU, which has nothing to give."""
        if self._on_cuda:
            self._llm.sleep(level=1)
        return self._on_cuda

    def wake(self) -> bool:
        """Takes the memory again. False on CPU."""
        if self._on_cuda:
            self._llm.wake_up()
        return self._on_cuda

    def _make_canary(self, max_model_len: int) -> Request:
        """A prompt that fills cache blocks, or the longest one possible where not even one fits (then nothing is ever cached)."""
        block_size = self._llm.llm_engine.vllm_config.cache_config.block_size
        length = min(_CANARY_BLOCKS * block_size + 1, max_model_len - 1)
        return Request(prompt=(1,) * length, seed=0)

    def _canary_hits(self) -> int:
        sampling = Sampling(temperature=1.0, max_tokens=1, end_token_ids=())
        return self.generate([self._canary], sampling)[0].num_cached_tokens


def _response(output: Any, sampling: Sampling) -> Response:
    completion = output.outputs[0]
    tokens, flat = tuple(completion.token_ids), completion.logprobs
    assert tuple(flat.token_ids) == tokens, "one log-probability for each token, and its own"
    return Response(
        tokens=tokens,
        logprobs=tuple(flat.logprobs),
        truncated=tokens[-1] not in sampling.end_token_ids,
        num_cached_tokens=output.num_cached_tokens or 0,
    )
