"""The self-check finds what it is there for: each fault is planted, and refused with its figure."""

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from agents.policy import TransformerPolicy
from agents.self_check import SelfCheckError, refuse_failed, self_check
from tests.agents import tiny
from textgym.vocabulary import Vocabulary


def make_policy(**settings) -> TransformerPolicy:
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, **settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4)
    return policy


def failed(policy: TransformerPolicy) -> set[str]:
    checks = self_check(policy, policy.vocabulary)
    assert [check.name for check in checks] == [
        "looks back alone",
        "padding",
        "batch",
        "prefix cache",
        "ratio",
        "stop tokens",
    ]
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"temperature": 0.5, "top_p": 0.8}, {"value_head": True}])
def test_a_sound_policy_passes(settings):
    policy = make_policy(**settings)
    assert failed(policy) == set()
    refuse_failed(self_check(policy, policy.vocabulary))


@pytest.mark.parametrize("kind", ["qwen3", "opt", "mistral-window", "rwkv", "qwen2-mixed-window"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_kind_of_model_passes(kind, zoo_folder):
    policy = TransformerPolicy.from_pretrained(zoo_folder(kind))
    assert failed(policy) == set()


def test_it_draws_nothing_from_the_policys_generator():
    policy = make_policy()
    before = policy.generator.get_state()
    first = self_check(policy, policy.vocabulary)
    assert torch.equal(policy.generator.get_state(), before)
    assert self_check(policy, policy.vocabulary) == first


def change_hidden(policy: TransformerPolicy, change) -> None:
    policy.model.transformer.h[0].register_forward_hook(lambda module, inputs, output: change(output))


def test_a_model_that_looks_ahead():
    policy = make_policy()
    change_hidden(policy, lambda hidden: hidden + hidden.mean(dim=1, keepdim=True))
    assert {"looks back alone", "padding", "batch"} <= failed(policy)


def test_a_model_in_which_the_batch_matters():
    policy = make_policy()
    change_hidden(policy, lambda hidden: hidden + hidden[:1])
    assert {"batch"} <= failed(policy)
    with pytest.raises(SelfCheckError, match=r"batch: the other rows .* log-probs by \d\S* nats \(allowed 0.000"):
        refuse_failed(self_check(policy, policy.vocabulary))


def test_a_model_in_which_the_padding_matters():
    policy = make_policy()
    change_hidden(policy, lambda hidden: hidden * (1 + 0.1 * hidden.shape[1]))
    assert "padding" in failed(policy)


def test_a_model_that_cannot_be_cached():
    config = MistralConfig(
        vocab_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        sliding_window=3,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config)
    policy = TransformerPolicy(model, 4, Vocabulary.from_symbols(tiny.SYMBOLS))
    policy._next_tokens._cacheable = None  # as if its window had not been found
    assert failed(policy) == {"prefix cache", "ratio"}


def test_dropout():
    policy = make_policy()
    change_hidden(policy, lambda hidden: torch.nn.functional.dropout(hidden, 0.5))
    assert "ratio" in failed(policy)


def test_a_policy_that_scores_otherwise_than_it_samples(monkeypatch):
    policy = make_policy()
    log_probs = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda rollout: 1.1 * log_probs(rollout))
    assert failed(policy) == {"ratio"}


def test_stop_tokens_are_named():
    policy = make_policy()
    assert self_check(policy, policy.vocabulary)[-1].detail == "'<eos>' (id 3)"
    without = Vocabulary.from_symbols(tiny.SYMBOLS, stop_ids=[])
    assert self_check(policy, without)[-1].detail.startswith("none: ")
    hostile = Vocabulary.from_symbols(["a", "b", "c", "\x1b[31m<eos>"], stop_ids=[3])
    assert "\x1b" not in self_check(policy, hostile)[-1].detail


def test_a_model_of_one_position():
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16)
    policy.model.config.n_positions = 1
    assert policy.max_length == 1
    assert np.isfinite([0.0]).all() and failed(policy) == set()
