"""vLLM by itself, in a process of its own: no Ray, nothing of ours around it but the same prompts, seeds and settings.

`python -m benchmarks.bare_vllm CONFIG MODEL` answers one JSON line on stdout for each JSON line on stdin:
{"step": 7, "waves": [[prompt index, ...], ...], "slots": [[slot, ...], ...]} gives {"seconds": ..., "tokens": ..., "digest": ...}.
Each wave is handed to vLLM when the one before has been answered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from array import array
from typing import Any, TextIO

from actors.data.prompts import PromptDataset
from actors.data.tokenizer import end_token_ids, load_tokenizer
from actors.digests import digest_of
from actors.rollout import request_seed
from actors.rollout_backend import MAX_NUM_SEQS
from configs.load import load_config
from configs.schema.ppo import PPOStage


class BareVLLM:
    """An engine with the model's weights from disk."""

    def __init__(self, config: PPOStage, model: str) -> None:
        import vllm

        self.vllm = vllm
        self.config = config
        rollout = config.rollout
        tokenizer = load_tokenizer(model)
        self.prompts = PromptDataset.load(config.data, tokenizer)
        self.stop = sorted({*end_token_ids(model, tokenizer), *rollout.stop_token_ids})
        self.llm = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype={"fp32": "float32", "bf16": "bfloat16"}[rollout.dtype],
            max_model_len=config.data.max_prompt_tokens
            + max(rollout.max_response_tokens, config.weight_sync.probe_tokens),
            max_num_seqs=min(MAX_NUM_SEQS, max(8, rollout.prompts_per_wave * rollout.responses_per_prompt)),
            distributed_executor_backend="uni",
            enforce_eager=rollout.enforce_eager,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            kv_cache_memory_bytes=int(rollout.kv_cache_gib * 2**30),
            disable_log_stats=True,
        )

    def answer(self, step: int, waves: list[list[int]], slots: list[list[int]]) -> dict[str, Any]:
        """Generates the waves one after the other."""
        started = time.monotonic()
        waves_outputs = []
        for prompts, places in zip(waves, slots, strict=True):
            requests = [
                self.vllm.TokensPrompt(prompt_token_ids=list(self.prompts.row(index).token_ids)) for index in prompts
            ]
            params = [self._sampling(request_seed(self.config.run.seed, step, place, 0)) for place in places]
            waves_outputs.append(self.llm.generate(requests, params, use_tqdm=False))
        seconds = time.monotonic() - started
        num_tokens = sum(len(output.outputs[0].token_ids) for outputs in waves_outputs for output in outputs)
        # of whole trajectories, wave by wave, as `actors.rollout.summarise` takes them
        digests = [
            digest_of(
                hashlib.sha256(array("q", [*one.prompt_token_ids, *one.outputs[0].token_ids]).tobytes()).hexdigest()
                for one in outputs
            )
            for outputs in waves_outputs
        ]
        return {"seconds": seconds, "tokens": num_tokens, "digest": digest_of(digests)}

    def _sampling(self, seed: int) -> Any:
        rollout = self.config.rollout
        return self.vllm.SamplingParams(
            temperature=rollout.temperature,
            seed=seed,
            max_tokens=rollout.max_response_tokens,
            stop_token_ids=self.stop,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )


def serve(engine: BareVLLM, requests: TextIO, answers: TextIO) -> None:
    """Until stdin ends."""
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        print(json.dumps(engine.answer(**json.loads(line))), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.bare_vllm")
    parser.add_argument("config")
    parser.add_argument("model")
    arguments = parser.parse_args()
    # vLLM prints too: what it says goes where errors go
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    config = load_config(arguments.config)
    assert isinstance(config, PPOStage) and config.rollout.responses_per_prompt == 1
    serve(BareVLLM(config, arguments.model), sys.stdin, answers)


if __name__ == "__main__":
    main()
