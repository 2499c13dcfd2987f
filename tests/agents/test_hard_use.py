"""Policies and caches in the hands of those who interrupt, share, freeze and swap."""

import json
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from agents.key_values import KeyValues
from agents.learner import PolicyGradient
from agents.lora import add_lora
from agents.models import load_model
from agents.policy import TransformerPolicy
from agents.rollout import collect
from agents.sampling import TokenDistribution
from tests.agents import tiny
from tests.agents.tiny import PAD, A, B, C

SHAPE = dict(vocab_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


def make_policy(**settings) -> TransformerPolicy:
    policy = TransformerPolicy.small(tiny.make_envs(max_new_tokens=30), d_model=16, **settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2)
    return policy


def observations_of(*histories) -> np.ndarray:
    array = np.full((len(histories), 32), PAD)
    for row, history in enumerate(histories):
        array[row, : len(history)] = history
    return array


def worst(policy, observations) -> float:
    """Largest difference that the policy's own cache makes to the log-probs it acts by."""
    actions, log_probs = policy.act(observations, deterministic=True)
    plain = policy.distribution(observations).log_prob(torch.as_tensor(actions)).detach().numpy()
    return float(np.abs(log_probs - plain).max())


@pytest.mark.parametrize("method", ["copy_rows", "reserve", "feed"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_in_the_middle_leaves_nothing_wrong(method, error, monkeypatch):
    policy = make_policy()
    rows = [[A, B, C], [B, C, A], [C, A, B]]
    policy.act(observations_of(*rows))
    original = getattr(KeyValues, method)

    def fail(self, *arguments):
        monkeypatch.setattr(KeyValues, method, original)
        if method == "reserve":
            self.num_rows, self.length = 99, 99
        raise error

    monkeypatch.setattr(KeyValues, method, fail)
    with pytest.raises(error):
        policy.act(observations_of([*rows[2], A], [*rows[0], B], [*rows[0], C], rows[1], [B] * 20))
    for again in ([[*rows[2], A], [*rows[0], B]], [[*rows[0], C, C], [*rows[2], A, A], [B] * 31]):
        assert worst(policy, observations_of(*again)) < 1e-5


def test_threads_may_share_a_policy():
    policy = make_policy()
    differences: list[float] = []

    def play(seed):
        generator = np.random.default_rng(seed)
        for _ in range(10):
            rows = [generator.integers(3, size=generator.integers(1, 30)).tolist() for _ in range(1 + seed)]
            differences.append(worst(policy, observations_of(*rows)))

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(differences) == 40 and max(differences) < 1e-5


@pytest.mark.parametrize("name", ["bloom", "mamba", "rwkv", "recurrent-gemma"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_empty_prompts_of_models_without_a_cache(name, zoo_folder):
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=3,
        prompts=[{"prompt": ""}],
        tokenizer=str(zoo_folder(name)),
        reward=lambda completions: [1.0] * len(completions),
        max_new_tokens=3,
        autoreset_mode="Disabled",
    )
    policy = TransformerPolicy.from_pretrained(zoo_folder(name))
    rollout = collect(policy, envs, 6, np.random.default_rng(0))
    np.testing.assert_allclose(policy.log_probs(rollout).detach(), rollout.log_probs, atol=1e-5)


def test_observations_without_any_column_are_empty_histories():
    policy = make_policy()
    expected = policy.distribution(observations_of([], [])).log_probs
    np.testing.assert_allclose(policy.distribution(np.zeros((2, 0), dtype=int)).log_probs.detach(), expected.detach())


def test_changed_buffers_are_noticed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.5))
    policy = TransformerPolicy(model, 4)
    policy.act(observations_of([A, B, C, A, B]))
    model.model.rotary_emb.inv_freq.mul_(3)
    assert worst(policy, observations_of([A, B, C, A, B, C])) < 1e-5


def test_a_policy_made_in_inference_mode_acts():
    with torch.inference_mode():
        policy = TransformerPolicy.small(4, d_model=16)
        assert policy.act(observations_of([A, B]))[0].shape == (1,)
    assert policy.act(observations_of([A, B, C]))[0].shape == (1,)


def test_what_is_frozen_stays_frozen_after_a_reload(tmp_path):
    def train(learner):
        return learner.learn(60).policy.state_dict()

    policy = make_policy()
    for parameter in policy.model.transformer.h[0].parameters():
        parameter.requires_grad_(False)
    learner = PolicyGradient(policy, tiny.make_envs(16), episodes_per_update=16)
    train(learner)
    learner.save(tmp_path)
    again = PolicyGradient.load(tmp_path, tiny.make_envs(16))
    one, other = train(learner), train(again)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_numpys_numbers_are_saved(tmp_path):
    settings = {"temperature": np.float32(0.5), "top_k": np.int64(2), "top_p": np.float32(0.5), "min_p": np.float64(0)}
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, **settings)
    policy.save_pretrained(tmp_path)
    again = TransformerPolicy.from_pretrained(tmp_path)
    assert (again.temperature, again.truncation.top_k, again.truncation.top_p) == (0.5, 2, 0.5)
    PolicyGradient(policy, tiny.make_envs(8), learning_rate=np.float32(1e-3), episodes_per_update=8).save(
        tmp_path / "l"
    )


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "hot", None, True])
def test_a_temperature_that_is_none_is_refused_at_once(temperature):
    with pytest.raises(ValueError, match="temperature="):
        TransformerPolicy.small(4, d_model=16, temperature=temperature)


@pytest.mark.parametrize("actions", [[7], [-1], [[1]], [0.5]])
def test_actions_that_are_none_have_no_price(actions):
    policy = make_policy(lora_rank=1)
    with pytest.raises(ValueError, match="actions"):
        policy.reference_log_prob(observations_of([A]), np.array(actions))


def test_a_model_that_rules_tokens_out_has_entropy_and_gradient():
    logits = torch.tensor([[0.0, 1.0, float("-inf")]], requires_grad=True)
    entropy = TokenDistribution(logits, 3).entropy()
    entropy.sum().backward()
    probs = torch.tensor([1.0, np.e]) / (1 + np.e)
    assert float(entropy) == pytest.approx(float(-(probs * probs.log()).sum()))
    assert torch.isfinite(logits.grad).all()


def test_experts_of_a_mixture_are_given_no_adapters():
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(ValueError, match="no linear layer of its own .* without LoRA"):
        add_lora(model, 2, seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "unheard"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"vocab_size": "abc"},
        {"max_position_embeddings": 8.5},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_settings_that_lead_nowhere_name_the_model(tmp_path, settings):
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    with pytest.raises(ValueError, match="model '.*' (does not load|lacks)|does not run"):
        TransformerPolicy.from_pretrained(tmp_path)


def test_an_attention_that_takes_no_masks_is_not_used(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "flex_attention"}))
    assert load_model(tmp_path, torch.float32).config._attn_implementation == "sdpa"


def test_drawn_chats_are_played_as_the_environment_plays_them(zoo_folder):
    def draw(generator):
        return {"prompt": [{"role": "user", "content": "red green"}]}

    keywords = dict(
        prompts=draw,
        max_prompt_tokens=40,
        tokenizer=str(zoo_folder("qwen3")),
        reward=lambda completions: [0.0] * len(completions),
        max_new_tokens=2,
    )
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled", **keywords)
    policy = TransformerPolicy.from_pretrained(zoo_folder("qwen3"))
    rollout = collect(policy, envs, 2, np.random.default_rng(0))
    observation, info = gym.make("TextGen-v0", **keywords).reset(seed=0)
    start = info["prompt_length"]
    assert rollout.prompt_length.tolist() == [start, start]
    np.testing.assert_array_equal(rollout.tokens[0, :start], observation[:start])


def test_rows_that_someone_left_running_do_no_harm():
    class Wrapper(gym.vector.VectorWrapper):
        pass

    envs = Wrapper(gym.make_vec("TextGen-v0", num_envs=4, task="brackets", autoreset_mode="Disabled"))
    policy = TransformerPolicy.small(envs, d_model=16)

    class Interrupted:
        steps = 0

        def act(self, observations, generator=None, action_mask=None):
            self.steps += 1
            if self.steps == 3:
                raise KeyboardInterrupt
            return policy.act(observations, generator, action_mask=action_mask)

    with pytest.raises(KeyboardInterrupt):
        collect(Interrupted(), envs, 4, np.random.default_rng(0))
    rollout = collect(policy, envs, 2, np.random.default_rng(0))
    assert (rollout.finish_reason > 0).all() and len(rollout.length) == 2
