"""What is said of where a model's layers look, on models made for it."""

import warnings

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    DogeConfig,
    DogeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from agents.attention import cacheable_length, check_causal, lookahead
from agents.models import max_length_of
from agents.policy import TransformerPolicy

SHAPE = dict(vocab_size=10, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
V = 10


def make(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return model


def mistral(**settings):
    return make(MistralForCausalLM, MistralConfig(**SHAPE, num_key_value_heads=2, **settings))


def counting(model):
    """The tokens fed to a model, call by call."""
    fed = []
    model.register_forward_pre_hook(lambda m, a, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True)
    return fed


def test_a_model_that_attends_to_everything_has_no_limit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            cacheable_length(make(GPT2LMHeadModel, GPT2Config(vocab_size=10, n_embd=32, n_layer=2, n_head=4))) is None
        )
        assert cacheable_length(mistral(sliding_window=None)) is None


def test_a_window_that_no_history_reaches_is_no_limit():
    assert cacheable_length(mistral(sliding_window=16, max_position_embeddings=16)) is None


def test_a_window_that_is_named_and_not_used_is_no_limit():
    config = Qwen2Config(
        **SHAPE, num_key_value_heads=2, use_sliding_window=False, sliding_window=8, max_position_embeddings=64
    )
    assert cacheable_length(make(Qwen2ForCausalLM, config)) is None


@pytest.mark.parametrize("window", [4, 12])
def test_a_window_is_the_limit_and_is_told(window):
    with pytest.warns(UserWarning, match=f"histories of more than {window} tokens run without the prefix cache"):
        assert cacheable_length(mistral(sliding_window=window, max_position_embeddings=64)) == window


def test_a_window_of_a_large_model_is_believed(monkeypatch):
    monkeypatch.setattr("agents.attention._MOST_OPERATIONS", 1)
    model = mistral(sliding_window=12, max_position_embeddings=64)
    fed = counting(model)
    with pytest.warns(UserWarning, match="12 tokens"):
        assert cacheable_length(model) == 12
    assert max(fed) < 3 * 12  # nothing was run past the window


def test_a_windowed_policy_is_cached_up_to_the_window_and_right_past_it(tmp_path):
    mistral(sliding_window=8, max_position_embeddings=64).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the last 8 tokens"):
        policy = TransformerPolicy.from_pretrained(tmp_path)
    plain = mistral(sliding_window=8, max_position_embeddings=64)
    fed = counting(policy.model)
    history = np.random.default_rng(0).integers(V, size=14)
    costs = []
    for length in range(1, 15):
        observations = np.full((1, 14), V)
        observations[0, :length] = history[:length]
        del fed[:]
        actions, log_probs = policy.act(observations)
        costs.append(sum(fed))
        with torch.no_grad():
            logits = plain(input_ids=torch.as_tensor(history[None, :length]), use_cache=False).logits[0, -1]
        assert log_probs[0] == pytest.approx(float(logits.log_softmax(-1)[actions[0]]), abs=1e-5)
    assert costs == [1] * 8 + list(range(9, 15))


def test_a_model_with_a_state_of_another_kind_runs_without():
    config = RwkvConfig(vocab_size=10, hidden_size=32, num_hidden_layers=2, context_length=64)
    with pytest.warns(UserWarning, match="runs without the prefix cache"):
        assert cacheable_length(make(RwkvForCausalLM, config)) == 0


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    model = make(BertLMHeadModel, BertConfig(**SHAPE))
    with pytest.raises(ValueError, match=r"BertLMHeadModel is not causal: .* by \d.* nats"):
        check_causal(model)
    check_causal(make(BertLMHeadModel, BertConfig(**SHAPE, is_decoder=True)))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not causal"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    model = mistral(sliding_window=None)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not finite: its weights are damaged"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_two_sets_of_rotary_frequencies_limit_the_length():
    """The longest history of a batch chooses the set, so that past the first one's length the batch would matter."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        **SHAPE,
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=8,
        rope_parameters=rope | {"original_max_position_embeddings": 8},
    )
    model = make(Phi3ForCausalLM, config)
    assert max_length_of(model) == 8
    policy = TransformerPolicy(model, V)
    with pytest.raises(ValueError, match="9 tokens, more than the 8 of the model"):
        policy.act(np.ones((1, 9), dtype=np.int64))


def test_weights_that_a_model_divides_in_place_are_saved_whole(tmp_path):
    config = RwkvConfig(vocab_size=10, hidden_size=32, num_hidden_layers=7, context_length=32)
    make(RwkvForCausalLM, config).save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="prefix cache"):
        policy = TransformerPolicy.from_pretrained(tmp_path / "model")
        observations = np.array([[1, 2, 3, 4]])
        before = policy.distribution(observations).log_probs.detach()
        policy.save_pretrained(tmp_path / "saved")
        again = TransformerPolicy.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.distribution(observations).log_probs.detach(), before, atol=1e-5)


def test_padding_of_the_model_is_not_what_pad_is_replaced_by(recwarn, capfd):
    model = make(GPT2LMHeadModel, GPT2Config(vocab_size=10, n_embd=32, n_layer=1, n_head=4, pad_token_id=0))
    policy = TransformerPolicy(model, V)
    policy.distribution(np.array([[1, 2, V, V], [3, 4, 5, 6]]))
    assert "attention_mask" not in capfd.readouterr().err


def test_a_large_vocabulary_of_like_probabilities(tmp_path):
    """No token is as probable as the others are usually compared from."""
    config = GPT2Config(vocab_size=3000, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = TransformerPolicy.from_pretrained(tmp_path)
    assert policy.distribution(np.array([[1, 2]])).log_probs.exp().max() < 1e-3


def test_a_window_of_a_model_that_says_nothing_yet_is_believed():
    model = mistral(sliding_window=8, max_position_embeddings=64)
    model.lm_head.weight.data.zero_()
    with pytest.warns(UserWarning, match="8 tokens"):
        assert cacheable_length(model) == 8


@pytest.mark.parametrize("width", [16, 32])
def test_looking_ahead_that_hardly_matters_yet_is_found(width):
    config = BertConfig(
        vocab_size=10, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertLMHeadModel(config).eval()
    assert lookahead(model).figure < 1e-3
    with pytest.raises(ValueError, match="not causal"):
        check_causal(model)


def test_a_window_under_another_name_is_found():
    config = DogeConfig(**SHAPE, num_key_value_heads=2, keep_window_size=6, pad_token_id=0, max_position_embeddings=64)
    model = make(DogeForCausalLM, config)
    with pytest.warns(UserWarning, match="6 tokens"):
        assert cacheable_length(model) == 6
