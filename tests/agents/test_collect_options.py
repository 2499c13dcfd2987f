"""collect on environments with other observations, prompts, limits and rewards: the same episodes in each."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect, rollout_env
from tests.agents import tiny
from tests.agents.tiny import PAD, STOP, A, B, C
from tests.textgym import cases
from textgym.prompts import Prompt
from textgym.rewards import load_reward
from textgym.vector_env import TextGenVectorEnv

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
KINDS = {
    "dict": dict(observation="dict"),
    "text_info": dict(text_info=True),
    "views": dict(copy=False),
    "views in a dict": dict(copy=False, observation="dict"),
    "shared generator": dict(rng="shared"),
}


def played(envs: VectorEnv, episodes: int = 24, group_size: int = 1, seed: int = 0, **keywords: Any) -> Rollout:
    policy = tiny.make_policy(tiny.make_envs())
    actions = torch.Generator().manual_seed(seed)
    return collect(policy, envs, episodes, np.random.default_rng(seed), group_size, actions, **keywords)


def assert_same(actual: Rollout, expected: Rollout) -> None:
    for name, values in expected._asdict().items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(getattr(actual, name), values, err_msg=name)


# --- what the environment shows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_episodes_do_not_depend_on_how_they_are_shown(kind, mode):
    expected = played(tiny.make_envs(5))
    assert_same(played(tiny.make_envs(5, mode, **KINDS[kind])), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_environment_is_driven_as_it_is(kind):
    envs = VectorWrapper(tiny.make_envs(5, **KINDS[kind]))
    assert rollout_env(envs) is envs
    assert_same(played(envs), played(tiny.make_envs(5)))


def test_a_twin_shows_histories_alone():
    twin = rollout_env(tiny.make_envs(3, AutoresetMode.NEXT_STEP, observation="dict", text_info=True, copy=False))
    observations, infos = twin.reset(seed=0)
    assert observations.shape == (3, 5) and "prompt" not in infos
    before = observations.copy()
    twin.step(np.array([A, B, C]))
    np.testing.assert_array_equal(observations, before)


def test_policies_take_dict_observations():
    envs, as_dict = tiny.make_envs(3), tiny.make_envs(3, observation="dict")
    policy = TransformerPolicy.small(as_dict, d_model=16)
    assert (policy.size, policy.vocabulary.stop_ids) == (4, (STOP,))
    plain, shown = envs.reset(seed=1)[0], as_dict.reset(seed=1)[0]
    actions, log_probs = policy.act(plain, torch.Generator().manual_seed(0))
    again, of_dict = policy.act(shown, torch.Generator().manual_seed(0))
    assert actions.tolist() == again.tolist()
    np.testing.assert_allclose(log_probs, of_dict, atol=1e-6)
    shown["action_mask"][:] = [0, 0, 1, 0]
    assert policy.act(shown)[0].tolist() == [C, C, C]
    assert policy.act(shown, action_mask=np.array([[0, 1, 0, 0]] * 3))[0].tolist() == [B, B, B]
    none = {name: values[:0] for name, values in shown.items()}
    assert policy.act(none)[0].shape == (0,)


def test_a_dict_without_tokens_is_refused():
    policy = TransformerPolicy.small(4, d_model=16)
    with pytest.raises(ValueError, match=r"keys \['input_ids'\]; give one with 'tokens'"):
        policy.act({"input_ids": np.array([[A]])})


def test_a_small_policy_fits_a_scalar_environment_with_dict_observations():
    env = gym.make("TextGen-v0", task="brackets", observation="dict")
    policy = TransformerPolicy.small(env, d_model=16)
    observation, _ = env.reset(seed=0)
    action, _ = PolicyGradient(policy, gym.make_vec("TextGen-v0", num_envs=8, task="brackets")).predict(observation)
    assert action == 0  # after nothing, only an opening bracket is legal


def test_a_limit_that_truncates_ends_an_episode_too():
    expected = played(tiny.make_envs(5))
    assert set(expected.finish_reason) == {1, 2}
    assert_same(played(tiny.make_envs(5, on_limit="truncate")), expected)


# --- prompts that a function draws


class DrawnPrompts:
    """Prompts of one to two letters that a generator draws, each with a number of its own."""

    sized, checked, max_tokens, column_names, score_answer = False, False, 2, (), None

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def draw(self, generator: np.random.Generator) -> Prompt:
        ids = generator.integers(3, size=int(generator.integers(1, 3)))
        text = "".join("abc"[one] for one in ids)
        self.drawn.append(text)
        return Prompt(text, ids, {"number": len(self.drawn)})


def number_of(completions: list[str], number: list[int]) -> list[float]:
    """Pays the column `number`."""
    return [float(one) for one in number]


def drawing_envs(num_envs: int) -> tuple[TextGenVectorEnv, DrawnPrompts]:
    prompts = DrawnPrompts()
    problem = replace(tiny.make_envs().unwrapped.problem, prompts=prompts, reward=load_reward(number_of))
    return TextGenVectorEnv(num_envs, problem=problem), prompts


@pytest.mark.parametrize("num_envs", [1, 5, 40])
def test_one_prompt_is_drawn_for_each_group(num_envs):
    envs, prompts = drawing_envs(num_envs)
    rollout = played(envs, 24, group_size=4)
    assert len(prompts.drawn) == 6 and len(set(prompts.drawn)) > 2
    assert [rollout.texts(row)[0] for row in range(24)] == [text for text in prompts.drawn for _ in range(4)]
    assert rollout.score.tolist() == np.repeat(np.arange(1, 7), 4).tolist()  # the columns of each prompt came along
    again = DrawnPrompts()
    generator = np.random.default_rng(0)
    assert [again.draw(generator).text for _ in range(6)] == prompts.drawn


def test_a_learner_trains_on_drawn_prompts():
    envs, prompts = drawing_envs(8)
    learner = PolicyGradient(TransformerPolicy.small(envs, d_model=16), envs, group_size=2, episodes_per_update=8)
    learner.learn(40)
    assert len(prompts.drawn) == 4 * learner.num_updates


# --- prompts in order

LETTERS = ["a", "b", "c", "ab", "ba"]


def in_order(num_envs: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    return tiny.make_envs(num_envs, mode, prompts=LETTERS, prompt_order="sequential")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 3, 50])
def test_groups_take_the_prompts_in_order(num_envs, mode):
    rollout = played(in_order(num_envs, mode), 14, group_size=2)
    groups = ["a", "b", "c", "ab", "ba", "a", "b"]
    assert [rollout.texts(row)[0] for row in range(14)] == [text for text in groups for _ in range(2)]


@pytest.mark.parametrize(("first", "expected"), [(0, "a"), (3, "ab"), (4, "ba"), (5, "a"), (13, "ab")])
def test_the_first_prompt_may_be_named(first, expected):
    rollout = played(in_order(), 6, first_prompt=first)
    place = LETTERS.index(expected)
    assert [rollout.texts(row)[0] for row in range(6)] == [LETTERS[(place + row) % 5] for row in range(6)]


def test_order_takes_nothing_from_the_generator():
    generator = np.random.default_rng(0)
    collect(tiny.make_policy(tiny.make_envs()), in_order(), 4, generator)
    assert generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def prompts_of(learner: PolicyGradient, updates: int) -> list[list[str]]:
    """The prompts of each group, for some updates."""
    seen: list[list[str]] = []

    def note(update: Any) -> bool:
        rollout = update.rollout
        seen.append([rollout.texts(row)[0] for row in range(0, len(rollout.mask), 2)])
        return len(seen) < updates

    learner.learn(10_000, note)
    return seen


def test_a_learner_keeps_its_place_in_the_order(tmp_path):
    learner = PolicyGradient(
        TransformerPolicy.small(in_order(), d_model=16), in_order(), group_size=2, episodes_per_update=6
    )
    assert prompts_of(learner, 3) == [["a", "b", "c"], ["ab", "ba", "a"], ["b", "c", "ab"]]
    learner.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, in_order(7))
    for one in (learner, loaded):
        assert prompts_of(one, 2) == [["ba", "a", "b"], ["c", "ab", "ba"]]


# --- rewards that draw, and hidden ones


def noise(completions: list[str], rng: list[np.random.Generator]) -> list[float]:
    """Nothing but a draw of the row's own generator."""
    return [generator.random() for generator in rng]


def noisy_envs(mode: AutoresetMode = AutoresetMode.NEXT_STEP, **keywords: Any) -> VectorEnv:
    problem = replace(tiny.make_envs(**keywords).unwrapped.problem, reward=load_reward(noise))
    return TextGenVectorEnv(5, autoreset_mode=mode, problem=problem)


@pytest.mark.parametrize("keywords", [{}, dict(rng="shared")], ids=["per_env", "shared"])
@pytest.mark.parametrize("mode", MODES)
def test_the_generator_decides_what_reward_functions_draw(mode, keywords):
    used = noisy_envs(mode, **keywords)
    used.reset(seed=99)
    first, again, other = played(used), played(noisy_envs(**keywords)), played(used, seed=1)
    assert_same(first, again)
    assert len(set(first.score.tolist())) == 24  # each draw is another, in the second wave of rows too
    assert not set(first.score.tolist()) & set(other.score.tolist())


def test_two_rollouts_of_one_generator_draw_differently():
    generator, policy = np.random.default_rng(0), tiny.make_policy(tiny.make_envs())
    scores = [collect(policy, noisy_envs(), 20, generator).score.tolist() for _ in range(2)]
    assert len({*scores[0], *scores[1]}) == 40


@pytest.mark.parametrize("keywords", [dict(prompts=["a"]), dict(prompt_order="sequential")], ids=str)
def test_rewards_draw_anew_where_the_prompts_draw_nothing(keywords):
    envs, generator = noisy_envs(**keywords), np.random.default_rng(0)
    rollouts = [collect(tiny.make_policy(tiny.make_envs()), envs, 5, generator) for _ in range(2)]
    assert not set(rollouts[0].score) & set(rollouts[1].score)


def test_without_rewards_that_draw_the_generator_draws_the_prompts_alone():
    quiet, generator = np.random.default_rng(0), np.random.default_rng(0)
    quiet.integers(2, size=10)  # two prompts, ten groups
    collect(tiny.make_policy(tiny.make_envs()), tiny.make_envs(), 20, generator, group_size=2)
    assert generator.bit_generator.state == quiet.bit_generator.state


def test_the_hidden_score_of_a_task_is_kept_beside_the_others():
    envs = cases.make_vec("masked", num_envs=7)
    rollout = played_by_itself(envs)
    expected = [len(rollout.texts(row)[1].replace("<eos>", "")) / 3 for row in range(30)]
    assert rollout.true_score.tolist() == expected and rollout.true_score.dtype == np.float64
    assert rollout.true_score.tolist() != rollout.score.tolist()
    assert rollout.select(np.array([4, 1])).true_score.tolist() == [expected[4], expected[1]]


def played_by_itself(envs: VectorEnv) -> Rollout:
    return collect(TransformerPolicy.small(envs, d_model=16), envs, 30, np.random.default_rng(0))


def test_padding_is_that_of_the_vocabulary():
    rollout = played(tiny.make_envs(5, copy=False, observation="dict"))
    for row in range(24):
        length = rollout.length[row]
        assert (rollout.tokens[row, length:] == PAD).all() and (rollout.tokens[row, :length] != PAD).all()
