"""Log-probabilities and entropies without all logits: what the whole distribution says, whatever the parts."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from agents.experience import microbatches, tokens_of_a_pass
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from agents.sampling import TokenDistribution
from agents.token_scores import head_is_last, scored, spread_out
from tests.agents import small_models, tiny

EXACT = 1e-12
_TINY: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8
)
_AFTER_THE_HEAD = {
    "softcapping": Gemma2Config(
        vocab_size=9, pad_token_id=None, sliding_window=64, layer_types=["full_attention"], **_TINY
    ),
    "a scale": CohereConfig(vocab_size=9, logit_scale=0.25, pad_token_id=None, **_TINY),
    "a divisor": GraniteConfig(vocab_size=9, logits_scaling=4.0, pad_token_id=None, **_TINY),
}


def nothing(completion_ids: list[list[int]]) -> list[float]:
    """A reward."""
    return [0.0] * len(completion_ids)


def expected(policy: TransformerPolicy, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """From the whole distribution, 0 where not mask."""
    distribution, mask = policy.action_distribution(rollout), torch.as_tensor(rollout.mask)
    log_probs = distribution.log_prob(torch.as_tensor(rollout.actions))
    return log_probs.masked_fill(~mask, 0.0), distribution.entropy().masked_fill(~mask, 0.0)


def gradient(policy: TransformerPolicy, log_probs: Tensor, entropy: Tensor) -> Tensor:
    """Of a sum in which every token has its own weight."""
    weights = torch.linspace(0.5, 2.0, log_probs.numel(), dtype=log_probs.dtype).reshape(log_probs.shape)
    return tiny.flat_gradient((weights * log_probs + weights.flip(1) * entropy).sum(), policy)


def played(
    task: dict[str, Any] | None = None, episodes: int = 12, **settings: Any
) -> tuple[TransformerPolicy, Rollout]:
    envs = gym.make_vec("TextGen-v0", num_envs=episodes, **task) if task else tiny.make_envs(episodes)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, dtype=torch.float64, **settings)
    return policy, collect(policy, envs, episodes, np.random.default_rng(0))


CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "all tokens": (None, {}),
    "a temperature": (None, dict(temperature=0.6)),
    "an action mask": (dict(task="brackets"), {}),
    "a support": (dict(task="sort"), dict(top_p=0.8, temperature=0.9)),
    "a mask and a support": (dict(task="brackets"), dict(top_k=2)),
    "empty prompts": (dict(tokenizer=["a", "b", "c"], prompts=["", "ab"], reward=nothing, max_new_tokens=3), {}),
}


@pytest.mark.parametrize("parts", [1, 5, None], ids=["a token a part", "five tokens a part", "one part"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_whole_distribution(case, parts, monkeypatch):
    task, settings = CASES[case]
    policy, rollout = played(task, **settings)
    if parts is not None:
        in_parts_of(parts * (policy.size + 1), monkeypatch)
    wanted = expected(policy, rollout)
    found = policy.token_scores(rollout)
    torch.testing.assert_close(found.log_probs, wanted[0], rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(found.entropy, wanted[1], rtol=EXACT, atol=EXACT)
    assert found.values is None
    whole = gradient(policy, *wanted)
    assert whole.norm() > 1e-3
    assert tiny.relative_error(gradient(policy, found.log_probs, found.entropy), whole) < EXACT


def in_parts_of(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.policy.scored", lambda *arguments: scored(*arguments, max_logits=max_logits))


def test_nothing_but_chosen_tokens_is_projected_and_that_in_parts(monkeypatch):
    policy, rollout = played()
    assert 7 < rollout.num_tokens < rollout.mask.size
    assert policy._next_tokens.head_is_last
    in_parts_of(3 * (policy.size + 1), monkeypatch)
    projected: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda layer, inputs, output: projected.append(output[..., 0].numel()))
    scores = policy.token_scores(rollout)
    assert projected[0] == 1  # what the model itself is let project
    assert sum(projected[1:]) == rollout.num_tokens and max(projected) == 3
    forward = len(projected)
    (scores.log_probs.sum() + scores.entropy.sum()).backward()
    assert sum(projected[forward:]) == rollout.num_tokens  # again, rather than kept


def test_one_part_is_not_projected_twice():
    policy, rollout = played()
    projected: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda *_: projected.append(1))
    policy._next_tokens._head_is_last = True
    policy.token_scores(rollout).log_probs.sum().backward()
    assert len(projected) == 2  # with the place that the model projects


def test_values_come_from_the_same_pass():
    policy, rollout = played(value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    wanted = policy.values(rollout)
    policy._next_tokens._head_is_last = True
    calls: list[int] = []
    policy.model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = policy.token_scores(rollout, values=True)
    assert len(calls) == 1 and found.values is not None
    torch.testing.assert_close(found.values, wanted, rtol=EXACT, atol=EXACT)
    assert found.values.requires_grad


def test_values_need_a_head():
    policy, rollout = played()
    with pytest.raises(ValueError, match="value_head=True"):
        policy.token_scores(rollout, values=True)


def test_entropies_without_gradient():
    policy, rollout = played()
    plain = policy.token_scores(rollout)
    found = policy.token_scores(rollout, entropy_gradient=False)
    assert not found.entropy.requires_grad and found.log_probs.requires_grad
    torch.testing.assert_close(found.entropy, plain.entropy.detach(), rtol=0, atol=0)
    constant = torch.zeros_like(found.log_probs)
    assert torch.equal(gradient(policy, found.log_probs, constant), gradient(policy, plain.log_probs, constant))


def test_no_episode_and_episodes_without_a_token():
    policy, rollout = played()
    none = policy.token_scores(rollout.select(np.zeros(0, dtype=np.int64)))
    assert none.log_probs.shape[0] == none.entropy.shape[0] == 0
    mask = rollout.mask.copy()
    mask[3] = False
    part = policy.token_scores(rollout._replace(mask=mask))
    whole = policy.token_scores(rollout)
    torch.testing.assert_close(part.log_probs, whole.log_probs.masked_fill(~torch.as_tensor(mask), 0.0))
    assert (part.entropy[3] == 0).all()
    empty = policy.token_scores(rollout._replace(mask=np.zeros_like(mask)))
    assert (empty.log_probs == 0).all()
    (empty.log_probs.sum() + empty.entropy.sum()).backward()


def test_half_precision_is_scored_in_full():
    envs = tiny.make_envs(8)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, dtype=torch.bfloat16)
    rollout = collect(policy, envs, 8, np.random.default_rng(0))
    found = policy.token_scores(rollout)
    assert found.log_probs.dtype == found.entropy.dtype == torch.float32
    for one, other in zip(found[:2], expected(policy, rollout), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("architecture", small_models.ARCHITECTURES)
def test_the_output_layer_is_the_last_of_most_models(architecture):
    settings = dict(sliding_window=None) if architecture == "mistral" else {}
    model = small_models.make_model(architecture, dtype=torch.float64, **settings)
    assert head_is_last(model)
    envs = gym.make_vec("TextGen-v0", num_envs=4, prompts=["bc", "d"], **small_task())
    policy = TransformerPolicy(model, small_models.VOCABULARY_SIZE)
    rollout = collect(policy, envs, 4, np.random.default_rng(0))
    wanted, found = expected(policy, rollout), policy.token_scores(rollout)
    torch.testing.assert_close(found.log_probs, wanted[0], rtol=1e-10, atol=1e-10)
    assert tiny.relative_error(gradient(policy, *found[:2]), gradient(policy, *wanted)) < 1e-9


def small_task() -> dict[str, Any]:
    symbols = [chr(ord("a") + token) for token in range(small_models.VOCABULARY_SIZE)]
    return dict(tokenizer=symbols, reward=nothing, max_new_tokens=3)


@pytest.mark.parametrize("what", _AFTER_THE_HEAD)
def test_what_follows_the_output_layer_is_noticed_and_kept(what):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_AFTER_THE_HEAD[what]).double().eval()
    assert not head_is_last(model)  # small as the logits of an untrained model are
    symbols = list("abcdefghi")
    envs = gym.make_vec("TextGen-v0", num_envs=4, prompts=["bc", "d"], **small_task() | dict(tokenizer=symbols))
    policy = TransformerPolicy(model, 9)
    rollout = collect(policy, envs, 4, np.random.default_rng(0))
    wanted, found = expected(policy, rollout), policy.token_scores(rollout)
    torch.testing.assert_close(found.log_probs, wanted[0], rtol=EXACT, atol=EXACT)
    assert tiny.relative_error(gradient(policy, *found[:2]), gradient(policy, *wanted)) < EXACT


def test_what_was_found_out_is_forgotten_with_the_model(monkeypatch):
    policy, rollout = played()
    asked: list[Any] = []
    monkeypatch.setattr("agents.next_tokens.head_is_last", lambda model: bool(asked.append(model)) or True)
    policy._next_tokens._head_is_last = None
    policy.token_scores(rollout)
    policy.token_scores(rollout)
    assert asked == [policy.model]
    policy.model = TransformerPolicy.small(policy.size, d_model=16, dtype=torch.float64).model
    policy.token_scores(rollout)
    assert len(asked) == 2 and asked[1] is policy.model


def test_the_terms_are_those_of_a_distribution_with_a_mask():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    legal = torch.rand(4, 6, generator=generator) > 0.4
    legal[:, 2] = True
    actions = torch.full((4,), 2)

    def terms(logits: Tensor) -> tuple[Tensor, Tensor]:
        return scored(logits, None, lambda part, rows: TokenDistribution(part, 6, 0.7, legal[rows]), actions)

    assert torch.autograd.gradcheck(terms, logits)
    plain = TokenDistribution(logits, 6, 0.7, legal)
    for one, other in zip(terms(logits), (plain.log_prob(actions), plain.entropy()), strict=True):
        torch.testing.assert_close(one, other)


def test_values_are_spread_out_with_their_gradient():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    spread = spread_out(values, mask)
    assert spread.tolist() == [[1, 0, 2], [0, 3, 0]]
    spread.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1, 1, 1]


# --- the parts in which an update asks for them


def rollout_of_lengths(*lengths: int) -> Rollout:
    episodes = [tiny.Episode(0, [tiny.A], [tiny.B] * (n - 1), [0.0] * (n - 1), 2) for n in lengths]
    return tiny.rollout_of(episodes)


def test_a_microbatch_ends_where_more_than_a_tenth_would_be_padding():
    lengths = [100] * 12 + [90] * 12 + [49] * 40  # 24 of 100 are 5 % padding, 26 with two of 49 8.5 %, 27 10.1 %
    sizes = [len(rows) for rows in microbatches(rollout_of_lengths(*lengths), 1_000_000)]
    assert sizes[0] == 12 + 12 + 2 and sum(sizes) == 64
    # Few tokens stay together, whatever they are padded with.
    assert [len(rows) for rows in microbatches(rollout_of_lengths(100, 2, 2, 2, 2), 1_000_000)] == [5]


def test_a_processor_gets_small_passes_and_never_more_than_asked(monkeypatch):
    policy, _ = played()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [tokens_of_a_pass(policy, most) for most in (7, 4096, 16_384)] == [7, 4096, 4096]
    monkeypatch.setattr(TransformerPolicy, "device", torch.device("meta"))
    assert tokens_of_a_pass(policy, 16_384) == 16_384


def test_a_token_that_the_model_itself_rules_out_adds_nothing_to_the_entropy():
    logits = torch.tensor([[0.3, -float("inf"), 1.0], [0.1, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)

    def distribution(logits, part):
        return TokenDistribution(logits, 3)

    log_probs, entropy = scored(logits, None, distribution, torch.tensor([0, 1]))
    expected = TokenDistribution(logits.detach(), 3).entropy()
    torch.testing.assert_close(entropy.detach(), expected)
    (log_probs.sum() + entropy.sum()).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 1] == 0


# --- projected in parts


def terms_and_gradients(head, features, legal, actions, entropy_gradient, max_logits):
    for parameter in (features, *head.parameters()):
        parameter.grad = None

    def distribution(logits, part):
        return TokenDistribution(logits, 7, 0.7, legal[part])

    log_probs, entropy = scored(features, head, distribution, actions, entropy_gradient, max_logits)
    weights = torch.linspace(0.5, 2.0, len(actions), dtype=log_probs.dtype)
    (weights * log_probs + weights.flip(0) * entropy).sum().backward()
    said = [log_probs, entropy, *(parameter.grad for parameter in (features, *head.parameters()))]
    return [each.detach().clone() for each in said]


@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("kind", ["plain", "no bias", "hooked", "hooked backwards", "parametrized"])
def test_an_output_layer_in_parts_says_what_it_says_at_once(kind, entropy_gradient):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 8, bias=kind != "no bias", dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    calls = []
    if kind == "hooked":
        head.register_forward_hook(lambda layer, inputs, output: calls.append(1) or 2 * output)
    if kind == "hooked backwards":
        head.register_full_backward_hook(lambda layer, inputs, outputs: calls.append(1))
    if kind == "parametrized":
        torch.nn.utils.parametrize.register_parametrization(head, "bias", torch.nn.Tanh())
    features = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    legal = torch.rand(11, 7, generator=generator) < 0.7
    actions = torch.randint(7, (11,), generator=generator)
    legal[torch.arange(11), actions] = True
    given = head, features, legal, actions, entropy_gradient
    at_once = terms_and_gradients(*given, max_logits=2**20)
    for size in (8, 3 * 8):
        for found, wanted in zip(terms_and_gradients(*given, max_logits=size), at_once, strict=True):
            torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)
    assert bool(calls) == kind.startswith("hooked")


def test_a_frozen_output_layer_gets_no_gradient():
    head = torch.nn.Linear(5, 8).requires_grad_(False)
    features = torch.randn(11, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    actions = torch.zeros(11, dtype=torch.int64)
    log_probs, _ = scored(features, head, lambda logits, part: TokenDistribution(logits, 8), actions, True, 16)
    log_probs.sum().backward()
    assert head.weight.grad is None and features.grad.abs().sum() > 0


def test_the_weights_gradient_in_half_precision_is_added_up_in_full():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 32, bias=False).to(torch.bfloat16)
    features = torch.randn(4096, 16, generator=generator).to(torch.bfloat16)
    actions = torch.randint(32, (4096,), generator=generator)

    def gradient_of(head, features):
        head.weight.grad = None
        said, _ = scored(features, head, lambda logits, part: TokenDistribution(logits, 32), actions, True, 32)
        said.sum().backward()
        return head.weight.grad.double()

    found = gradient_of(head, features)
    with torch.no_grad():
        twin = torch.nn.Linear(16, 32, bias=False).double()
        twin.weight.copy_(head.weight.double())
    exact = gradient_of(twin, features.double())
    assert float((found - exact).norm() / exact.norm()) < 2**-7  # half a digit of bfloat16, though 4,096 parts
