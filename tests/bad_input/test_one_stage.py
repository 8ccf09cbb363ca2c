"""One stage. Each case starts from a config that passes and spoils one thing.

All go through `run --dry-run`, which makes the same checks as `run`; `tests/resilience` runs the rest (occupied and unwritable run
directories, failing rewards) for real.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.commands.base import BAD_INPUT, FINE
from tests.bad_input.jobs import Job
from tests.tiny_models import make_letter_tokenizer, make_tiny_causal_lm


def test_the_config_that_is_spoilt_below_passes(job: Job) -> None:
    assert job.run() == FINE
    assert not (job.folder / "run").exists()


def test_a_reward_model_may_have_another_tokenizer(job: Job) -> None:
    make_letter_tokenizer(job.folder / "reward")
    assert job.run("critic.init_from=policy") == FINE
    assert job.run("critic.init_from=policy", "reward.model.chat_template=false") == FINE


def no_file(job: Job) -> list[str]:
    job.prompts.unlink()
    return []


def empty_file(job: Job) -> list[str]:
    job.prompts.write_text("")
    return []


def malformed_row(job: Job) -> list[str]:
    job.prompts.write_text('{"prompt": "hello"}\n{"prompt": \n')
    return []


def row_without_prompt(job: Job) -> list[str]:
    job.prompts.write_text('{"prompt": "hello"}\n{"question": "hello"}\n')
    return []


def long_prompt(job: Job) -> list[str]:
    job.prompts.write_text(json.dumps({"prompt": "yes " * 100}) + "\n")
    return []


def longer_than_window(job: Job) -> list[str]:
    job.edit("policy/config.json", max_position_embeddings=20)
    return []


def no_chat_template(job: Job) -> list[str]:
    (job.folder / "policy" / "chat_template.jinja").unlink(missing_ok=True)
    path = job.folder / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    return []


def no_end_token(job: Job) -> list[str]:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = job.folder / "policy" / name
        if path.exists():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    return []


def critic_from_a_reward_model_of_another_tokenizer(job: Job) -> list[str]:
    make_letter_tokenizer(job.folder / "reward")
    return []


def reward_model_of_letters_and_a_small_window(job: Job) -> list[str]:
    make_letter_tokenizer(job.folder / "reward")
    job.edit("reward/config.json", max_position_embeddings=21)
    return ["critic.init_from=policy"]


def reward_model_of_letters_without_a_template(job: Job) -> list[str]:
    make_letter_tokenizer(job.folder / "reward")
    (job.folder / "reward" / "chat_template.jinja").unlink()
    return ["critic.init_from=policy"]


def critic_from_a_reward_model_of_another_template_and_a_smaller_window(job: Job) -> list[str]:
    """As text the prompts would fit, but the critic reads the policy's tokens."""
    (job.folder / "reward" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    job.edit("reward/config.json", max_position_embeddings=21)
    return []


def reward_model_without_a_tokenizer(job: Job) -> list[str]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (job.folder / "reward" / name).unlink()
    return []


def no_model(job: Job) -> list[str]:
    return [f"policy.model={job.folder / 'nowhere'}"]


def reward_model_as_policy(job: Job) -> list[str]:
    return [f"policy.model={job.folder / 'reward'}"]


def policy_as_reward_model(job: Job) -> list[str]:
    return [f"reward.model.model={job.folder / 'policy'}"]


def encoder_as_policy(job: Job) -> list[str]:
    job.edit("policy/config.json", architectures=["BertForMaskedLM"], model_type="bert")
    return []


def reference_of_another_vocabulary(job: Job) -> list[str]:
    make_tiny_causal_lm(job.folder / "reference", tied=True, vocab_size=110)
    return [f"reference.model={job.folder / 'reference'}"]


def reference_of_a_permuted_vocabulary(job: Job) -> list[str]:
    shutil.copytree(job.folder / "policy", job.folder / "reference")
    permute(job.folder / "reference")
    return [f"reference.model={job.folder / 'reference'}"]


def critic_of_another_tokenizer(job: Job) -> list[str]:
    shutil.copytree(job.folder / "reward", job.folder / "critic")
    permute(job.folder / "critic")
    return [f"critic={{init_from: model, model: {job.folder / 'critic'}}}"]


def permute(model: Path) -> None:
    """Two words of the vocabulary change places."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["yes"], words["no"] = words["no"], words["yes"]
    path.write_text(json.dumps(tokenizer))


def critic_of_a_smaller_window(job: Job) -> list[str]:
    shutil.copytree(job.folder / "reward", job.folder / "critic")
    job.edit("critic/config.json", max_position_embeddings=21)
    return [f"critic={{init_from: model, model: {job.folder / 'critic'}}}"]


def reference_of_a_smaller_window(job: Job) -> list[str]:
    shutil.copytree(job.folder / "policy", job.folder / "reference")
    job.edit("reference/config.json", max_position_embeddings=21)
    return [f"reference.model={job.folder / 'reference'}"]


def reward_model_of_a_smaller_window(job: Job) -> list[str]:
    job.edit("reward/config.json", max_position_embeddings=21)
    return []


def reward_model_without_statistics(job: Job) -> list[str]:
    (job.folder / "reward" / "preceptor_reward.json").unlink()
    return []


def occupied(job: Job) -> list[str]:
    (job.folder / "run").mkdir()
    (job.folder / "run" / "thesis.txt").write_text("do not lose")
    return []


CASES: list[tuple[Callable[[Job], list[str]] | list[str], list[str]]] = [
    (["ppo.stepz=3"], ["ppo.stepz", "unknown key", "steps"]),
    (["ppo.steps=many"], ["ppo.steps", "'many'", "whole number"]),
    (["rollout.temperature=-1"], ["rollout.temperature", "-1", "at least 0.01"]),
    (["cluster.device=cuda"], ["cluster.device", "no GPU"]),
    (["cluster.num_cpus=4096"], ["cluster.num_cpus", "4096", "cores"]),
    (["policy.placement.threads_per_rank=4096"], ["policy.placement.threads_per_rank", "4096"]),
    (["ppo.prompts_per_step=3", "ppo.minibatches=2"], ["ppo.minibatches", "got 2", "3"]),
    (["policy.engine.micro_batch_tokens=32"], ["policy.engine.micro_batch_tokens", "32", "80"]),
    (["policy.engine.dtype=bf16"], ["policy.engine.zero_stage", "1, 2 or 3"]),
    (
        ["reward.model=null", "critic.init_from=policy", 'reward.functions=[{function: "no_such:pays"}]'],
        ["no_such", "reward.functions.0"],
    ),
    (no_file, ["prompts.jsonl", "no"]),
    (empty_file, ["data.path", "prompts.jsonl", "no rows"]),
    (malformed_row, ["prompts.jsonl:2", "JSON"]),
    (row_without_prompt, ["prompts.jsonl:2", "'prompt'", "question"]),
    (long_prompt, ["prompts.jsonl:1", "tokens", "data.max_prompt_tokens: 64"]),
    (longer_than_window, ["policy.model: the longest prompt", "window", "20"]),
    (critic_of_a_smaller_window, ["critic.model: the longest prompt", "window", "21"]),
    (reference_of_a_smaller_window, ["reference.model: the longest prompt", "window", "21"]),
    (reward_model_of_a_smaller_window, ["reward.model.model: the longest prompt", "window", "21"]),
    (no_chat_template, ["chat_template", "no chat template"]),
    (no_end_token, ["end token", "eos_token"]),
    (
        critic_from_a_reward_model_of_another_tokenizer,
        [
            "critic.init_from: got 'reward'",
            "the tokenizers",
            "policy",
            "reward",
            "differ: 128 and 102 tokens",
            "'policy', or 'model'",
        ],
    ),
    (
        reward_model_of_letters_and_a_small_window,
        ["reward.model.model", "prompts.jsonl:1", "the prompt and the shortest answer have", "1 to 21, the window"],
    ),
    (
        reward_model_of_letters_without_a_template,
        ["reward.model.chat_template", "no chat template", "reward.model.chat_template: false"],
    ),
    (
        critic_from_a_reward_model_of_another_template_and_a_smaller_window,
        ["reward.model.model: the longest prompt", "window", "21"],
    ),
    (reward_model_without_a_tokenizer, ["reward.model.model", "cannot load its tokenizer"]),
    (critic_of_another_tokenizer, ["critic.model: the tokenizers", "differ", "'yes' and 'no'"]),
    (reference_of_a_permuted_vocabulary, ["reference.model: the tokenizers", "differ", "'yes' and 'no'"]),
    (no_model, ["policy.model", "nowhere", "does not exist"]),
    (reward_model_as_policy, ["policy.model", "LlamaForSequenceClassification", "ForCausalLM"]),
    (policy_as_reward_model, ["reward.model.model", "LlamaForCausalLM", "ForSequenceClassification"]),
    (encoder_as_policy, ["policy.model", "BertForMaskedLM", "ForCausalLM"]),
    (reference_of_another_vocabulary, ["reference.model", "110", "128"]),
    (reward_model_without_statistics, ["reward.model.model", "preceptor_reward.json", "normalise"]),
    (occupied, ["run.dir", "not empty", "resume"]),
]


@pytest.mark.parametrize(
    ("spoil", "parts"), CASES, ids=[c[0].__name__ if callable(c[0]) else c[0][0].split("=")[0] for c in CASES]
)
def test_bad_input_is_one_readable_message(
    job: Job, spoil: Callable[[Job], list[str]] | list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = spoil(job) if callable(spoil) else spoil
    before = sorted(path for path in job.folder.rglob("*"))
    assert job.run(*overrides) == BAD_INPUT
    message = capsys.readouterr().err
    for part in parts:
        assert part in message, message
    assert "Traceback" not in message
    assert sorted(path for path in job.folder.rglob("*")) == before, "something was written"
