"""Policy, critic and reward model against plain transformers, one sequence at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.errors import UserError
from actors.models.causal_lm import load_policy
from actors.models.checks import architecture_differences, check_plain_logits, read_model_config
from actors.models.scalar_head import load_scalar
from tests.actors.engine.ranks import engine_config, packed, sequences
from tests.tiny_models import make_tiny_causal_lm, make_tiny_scalar

PLAIN = engine_config(0)


@pytest.mark.parametrize("tied", [True, False])
def test_packed_policy_equals_separate_sequences(tied: bool, tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path, tied=tied)
    drawn = sequences(4, seed=3)
    policy = load_policy(str(model), PLAIN, device="cpu")
    logprobs, entropy = policy(packed(*drawn), temperature=0.7, with_entropy=True)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    offset = 0
    for tokens, prompt in drawn:
        ids = torch.tensor(tokens)
        log_p = torch.log_softmax(network(ids[None]).logits[0] / 0.7, dim=-1)
        stop = offset + len(tokens)
        expected = log_p[prompt - 1 : -1].gather(-1, ids[prompt:, None])[:, 0]
        torch.testing.assert_close(logprobs[offset + prompt : stop], expected, atol=5e-5, rtol=0)
        expected = -(log_p.exp() * log_p).sum(-1)[prompt - 1 : -1]
        torch.testing.assert_close(entropy[offset + prompt : stop], expected, atol=5e-5, rtol=0)
        assert not logprobs[offset : offset + prompt].any()
        assert not entropy[offset : offset + prompt].any()
        offset = stop
    assert logprobs.shape == entropy.shape == (offset,)


def test_scalar_module_reads_one_token_earlier(tmp_path: Path) -> None:
    model = make_tiny_scalar(tmp_path)
    drawn = sequences(3, seed=4)
    module = load_scalar(str(model), PLAIN, device="cpu", fresh_head_ok=False, seed=0)
    values, last = module(packed(*drawn))
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    offset = 0
    for index, (tokens, _) in enumerate(drawn):
        ids = torch.tensor(tokens)
        scores = torch.stack([network(ids[None, : stop + 1]).logits[0, 0] for stop in range(len(tokens))])
        assert values[offset] == 0
        torch.testing.assert_close(values[offset + 1 : offset + len(tokens)], scores[:-1], atol=5e-5, rtol=0)
        torch.testing.assert_close(last[index], scores[-1], atol=5e-5, rtol=0)
        offset += len(tokens)


def test_scalar_from_causal_lm_starts_at_zero(tmp_path: Path) -> None:
    model = str(make_tiny_causal_lm(tmp_path, tied=True))
    module = load_scalar(model, PLAIN, device="cpu", fresh_head_ok=True, seed=0)
    values, last = module(packed(*sequences(2, seed=5)))
    assert not values.any()
    assert not last.any()
    assert module.hf_parameters()["score.weight"].shape == (1, 64)
    assert "lm_head.weight" not in module.hf_parameters()
    with pytest.raises(UserError, match=r"no score head \(score.weight\)"):
        load_scalar(model, PLAIN, device="cpu", fresh_head_ok=False, seed=0)


def test_dropout_is_off_in_training_mode(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path, tied=True)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    policy = load_policy(str(model), PLAIN, device="cpu")
    batch = packed(*sequences(2, seed=6))
    evaluated, _ = policy.eval()(batch, temperature=1.0, with_entropy=False)
    trained, _ = policy.train()(batch, temperature=1.0, with_entropy=False)
    assert torch.equal(evaluated, trained)


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_other_architectures(name: str, tmp_path: Path) -> None:
    """Biases, dropout modules, learned positions."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64),
        "qwen2": lambda: transformers.Qwen2Config(**sizes, intermediate_size=48, num_key_value_heads=1),
    }[name]()
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path)
    drawn = sequences(3, seed=7, vocab_size=96)
    policy = load_policy(str(tmp_path), PLAIN, device="cpu").train()
    logprobs, _ = policy(packed(*drawn), temperature=1.0, with_entropy=False)
    tokens, prompt = drawn[2]
    ids = torch.tensor(tokens)
    expected = torch.log_softmax(network.eval()(ids[None]).logits[0], dim=-1)[prompt - 1 : -1].gather(
        -1, ids[prompt:, None]
    )
    torch.testing.assert_close(logprobs[-len(expected) :], expected[:, 0], atol=5e-5, rtol=0)


def test_models_that_would_be_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_policy(str(tmp_path / "nowhere"), PLAIN, device="cpu")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_policy(str(tmp_path), PLAIN, device="cpu")
    with pytest.raises(UserError, match="final_logit_softcapping = 30"):
        check_plain_logits({"final_logit_softcapping": 30.0}, "gemma")
    check_plain_logits({"final_logit_softcapping": None, "logit_scale": 1.0}, "plain")


def test_architectures_are_compared_by_tensors_not_names(tmp_path: Path) -> None:
    a = read_model_config(make_tiny_causal_lm(tmp_path / "a", tied=True))
    b = read_model_config(make_tiny_scalar(tmp_path / "b"))
    c = read_model_config(make_tiny_causal_lm(tmp_path / "c", tied=True, vocab_size=160))
    assert not architecture_differences(a, b)
    assert architecture_differences(a, c) == ["vocab_size: 128, 160"]


def test_entropy_to_look_at_has_no_gradient(tmp_path: Path) -> None:
    policy = load_policy(str(make_tiny_causal_lm(tmp_path, tied=True)), PLAIN, device="cpu").train()
    batch = packed(*sequences(2, seed=8))
    looked_at = policy(batch, temperature=0.7, with_entropy=True)[1]
    trained = policy(batch, temperature=0.7, with_entropy=True, entropy_grad=True)[1]
    assert not looked_at.requires_grad
    assert trained.requires_grad
    assert torch.equal(looked_at, trained)
