"""The names and signatures of vLLM that we use: an upgrade that changes one fails here, by name, before it fails somewhere odd."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from actors.errors import UserError
from actors.rollout_backend import SUPPORTED_VLLM, WORKER_EXTENSION, check_version

pytestmark = pytest.mark.slow


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_installed_version_is_one_that_was_tested() -> None:
    import vllm

    check_version(vllm.__version__)
    check_version(SUPPORTED_VLLM[0] + "+cpu")


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"vLLM 0\.31\.1 is not supported; allowed: 0\.32\.0"):
        check_version("0.31.1")


def test_llm_takes_what_we_give() -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    ours = {
        "model",
        "skip_tokenizer_init",
        "generation_config",
        "load_format",
        "dtype",
        "seed",
        "max_model_len",
        "max_num_seqs",
        "tensor_parallel_size",
        "distributed_executor_backend",
        "enforce_eager",
        "enable_prefix_caching",
        "logprobs_mode",
        "worker_extension_cls",
        "disable_log_stats",
        "gpu_memory_utilization",
        "enable_sleep_mode",
        "kv_cache_memory_bytes",
    }
    assert ours <= {field.name for field in fields(EngineArgs)}
    assert {"prompts", "sampling_params", "use_tqdm"} <= parameters(LLM.generate)
    assert {"method", "args"} <= parameters(LLM.collective_rpc)
    assert parameters(LLM.reset_prefix_cache) == {"self", "reset_running_requests", "reset_connector"}
    assert "level" in parameters(LLM.sleep)
    assert "tags" in parameters(LLM.wake_up)


def test_sampling_parameters_and_outputs() -> None:
    from vllm import SamplingParams, TokensPrompt
    from vllm.config.model import LogprobsMode
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput, RequestOutput

    ours = {
        "temperature",
        "seed",
        "max_tokens",
        "stop_token_ids",
        "logprobs",
        "flat_logprobs",
        "detokenize",
    }
    assert ours <= parameters(SamplingParams)
    plain = SamplingParams()
    assert (plain.top_p, plain.top_k, plain.min_p) == (1.0, 0, 0.0)
    assert (plain.repetition_penalty, plain.presence_penalty, plain.frequency_penalty) == (1.0, 0.0, 0.0)
    assert "processed_logprobs" in LogprobsMode.__args__
    assert "prompt_token_ids" in TokensPrompt.__annotations__
    assert {"token_ids", "logprobs"} <= {field.name for field in fields(CompletionOutput)}
    assert {"token_ids", "logprobs"} <= {field.name for field in fields(FlatLogprobs)}
    assert "num_cached_tokens" in parameters(RequestOutput.__init__)


def test_layerwise_reload() -> None:
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
        VocabParallelEmbeddingShardIndices,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_processing, get_layerwise_info
    from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
    from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

    assert parameters(initialize_layerwise_reload) == {"model"}
    assert parameters(finalize_layerwise_reload) == {"args", "kwargs"}
    assert list(inspect.signature(finalize_layerwise_processing).parameters) == ["model", "model_config"]
    assert parameters(get_layerwise_info) == {"layer"}
    assert parameters(get_tensor_load_numel) == {"tensor"}
    assert {"load_numel", "load_numel_total", "loaded_weights", "kernel_tensors"} <= {
        field.name for field in fields(LayerReloadingInfo)
    }
    assert callable(LayerReloadingInfo.can_load)
    assert issubclass(UnquantizedEmbeddingMethod, QuantizeMethodBase)
    assert parameters(UnquantizedEmbeddingMethod.process_weights_after_loading) == {"self", "layer"}
    assert {"num_org_elements", "num_added_elements"} <= set(dir(VocabParallelEmbeddingShardIndices))
    assert "embedding_dim" in inspect.getsource(VocabParallelEmbedding.__init__)


def test_worker_and_its_extension() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.worker.gpu_worker import Worker

    extension = resolve_obj_by_qualname(WORKER_EXTENSION)
    ours = [name for name in dir(extension) if not name.startswith("__")]
    assert [name for name in ours if hasattr(Worker, name)] == [], "vLLM refuses an extension that shadows its worker"
    assert {"receiver_begin", "receiver_load", "receiver_finish"} <= set(ours)
    assert callable(Worker.get_model)


def test_what_cuda_ipc_needs() -> None:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor
    from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter

    assert parameters(PackedBufferImporter.rebuild) == {"self", "list_args"}
    assert list(inspect.signature(rebuild_cuda_tensor).parameters)[6] == "storage_device"
