"""collect: exactly the episodes asked for, each played to its end and laid out as it happened."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from scipy import stats

from agents.policy import TransformerPolicy
from agents.rollout import Rollout, Step, collect, rollout_env
from tests.agents import tiny
from tests.agents.tiny import PAD, STOP, A, B, C
from textgym.vector_env import TextGenVectorEnv

_OPTIONAL = ("action_mask", "true_score", "cut_off", "values")
ARRAYS = [name for name in Rollout._fields if name not in ("vocabulary", *_OPTIONAL)]


class CoinActor:
    """Stops with a known probability in every state, otherwise writes one of the content tokens."""

    def __init__(self, stop: float) -> None:
        self.probs = np.array([(1 - stop) / 3] * 3 + [stop])
        self.generator = np.random.default_rng(0)

    def act(self, observations, generator=None):
        actions = self.generator.choice(4, size=len(observations), p=self.probs)
        return actions, np.log(self.probs[actions]).astype(np.float32)


class Recorder:
    """Acts as another actor does and keeps every call."""

    def __init__(self, actor) -> None:
        self.actor, self.calls = actor, []

    def act(self, observations, generator=None):
        actions, log_probs = self.actor.act(observations, generator)
        self.calls.append((observations.copy(), actions.copy(), log_probs.copy()))
        return actions, log_probs


def play(episodes=12, num_envs=4, group_size=1, seed=0, actor=None, mode=AutoresetMode.DISABLED, **keywords):
    envs = tiny.make_envs(num_envs=num_envs, mode=mode, **keywords)
    return collect(actor or CoinActor(0.3), envs, episodes, np.random.default_rng(seed), group_size)


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 4), (3, 4), (4, 4), (12, 4), (13, 4), (5, 1), (7, 100)])
def test_exactly_the_episodes_asked_for(episodes, num_envs):
    rollout = play(episodes, num_envs)
    assert all(len(getattr(rollout, name)) == episodes for name in ARRAYS)
    assert rollout.group.tolist() == list(range(episodes))
    assert (rollout.finish_reason > 0).all()


@pytest.mark.parametrize(("episodes", "group_size"), [(0, 1), (-4, 2), (5, 2), (4, 0), (2, 4)])
def test_episodes_are_a_multiple_of_the_group_size(episodes, group_size):
    with pytest.raises(ValueError, match="no positive multiple of group_size"):
        play(episodes, group_size=group_size)


@pytest.mark.parametrize("num_envs", [1, 3, 8, 50])
def test_groups_share_a_prompt_and_only_groups_do(num_envs):
    prompts = [a + b + c for a in "abc" for b in "abc" for c in "abc"]
    rollout = play(40, num_envs, group_size=4, prompts=prompts)
    assert rollout.group.tolist() == [group for group in range(10) for _ in range(4)]
    texts = [rollout.texts(row)[0] for row in range(40)]
    of_group = [set(texts[4 * group : 4 * group + 4]) for group in range(10)]
    assert all(len(own) == 1 for own in of_group)
    assert len(set.union(*of_group)) > 5  # ten draws out of 27, not one prompt for all


def test_each_prompt_is_drawn_as_often():
    rollout = play(6000, 500, group_size=2, prompts=["a", "b", "c"])
    counts = np.bincount(rollout.tokens[::2, 0], minlength=3)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_generator_alone_draws_the_prompts():
    first, again, other = (play(30, seed=seed, actor=CoinActor(0.5)) for seed in (5, 5, 6))
    assert (first.tokens == again.tokens).all()
    assert (first.tokens[:, 0] != other.tokens[:, 0]).any()


# --- alignment with what happened


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
@pytest.mark.parametrize("num_envs", [1, 5, 64])
def test_episodes_equal_a_loop_over_the_scalar_environment(scheme, num_envs):
    rollout = play(32, num_envs, scheme=scheme)
    env = tiny.make_env(scheme=scheme)
    steps = rollout.mask.shape[1]
    for row in range(32):
        prompt_index = tiny.PROMPTS.index(rollout.texts(row)[0])
        observation, info = env.reset(options={"prompt_index": prompt_index})
        rewards, terminated, taken = [], False, []
        while not terminated:
            taken.append(int(rollout.actions[row, len(taken)]))
            observation, reward, terminated, _, info = env.step(taken[-1])
            rewards.append(reward)
        rest = [0] * (steps - len(taken))
        assert rollout.tokens[row].tolist() == observation.tolist()
        assert rollout.mask[row].tolist() == [True] * len(taken) + [False] * len(rest)
        assert rollout.actions[row].tolist() == taken + rest
        assert rollout.rewards[row].tolist() == rewards + rest
        assert rollout.log_probs[row, len(taken) :].tolist() == rest
        for name in ("prompt_length", "length", "finish_reason", "score"):
            assert getattr(rollout, name)[row] == info[name], name
        assert rollout.scores[row].tolist() == info["scores"].tolist()
        assert rollout.scores_valid[row].tolist() == info["scores_valid"].tolist()
        assert rollout.valid[row] == info["valid"]


def test_stored_log_probs_are_those_of_the_actions_taken():
    recorder = Recorder(tiny.make_policy(tiny.make_envs()))
    rollout = play(20, 8, actor=recorder)
    stored = {}
    for observations, actions, log_probs in recorder.calls:
        for history, action, log_prob in zip(observations, actions, log_probs, strict=True):
            stored[tuple(history[history != PAD].tolist()), int(action)] = log_prob
    for row in range(20):
        for step in range(int(rollout.mask[row].sum())):
            history = tuple(rollout.tokens[row, : rollout.prompt_length[row] + step].tolist())
            assert rollout.log_probs[row, step] == stored[history, int(rollout.actions[row, step])]


def test_the_policy_is_asked_in_running_states_alone():
    recorder = Recorder(CoinActor(0.5))
    rollout = play(30, 8, actor=recorder)
    assert sum(len(actions) for _, actions, _ in recorder.calls) == rollout.num_tokens == rollout.mask.sum()
    prompt_stops = sum(text.count("<eos>") for text in tiny.PROMPTS)
    for observations, _, _ in recorder.calls:
        assert ((observations == STOP).sum(axis=1) == prompt_stops).all()


def test_shapes_and_dtypes():
    rollout = play(20, 8, max_new_tokens=6)
    steps = int((rollout.length - rollout.prompt_length).max())
    integers = ("tokens", "prompt_length", "length", "actions", "finish_reason", "group")
    assert all(getattr(rollout, name).dtype == np.int64 for name in integers)
    assert all(getattr(rollout, name).dtype == np.float64 for name in ("rewards", "score", "scores"))
    assert all(getattr(rollout, name).dtype == bool for name in ("mask", "valid", "scores_valid"))
    assert rollout.log_probs.dtype == np.float32
    assert rollout.action_mask is None and rollout.true_score is None  # the task has neither
    for name in ("actions", "mask", "log_probs", "rewards"):
        assert getattr(rollout, name).shape == (20, steps)
    assert rollout.scores.shape == (20, 1)


def test_an_episode_of_stops_alone_has_one_step():
    rollout = play(5, actor=CoinActor(1.0))
    assert rollout.mask.tolist() == [[True]] * 5
    assert rollout.actions.tolist() == [[STOP]] * 5
    assert (rollout.finish_reason == 1).all()


# --- finished-first bias

STOP_PROBABILITY, LONGEST, COLLECTED = 0.2, 12, 4000


def length_law_pvalue(lengths):
    """Chi-square against the geometric law, cut at the horizon."""
    steps = np.arange(1, LONGEST + 1)
    probs = STOP_PROBABILITY * (1 - STOP_PROBABILITY) ** (steps - 1)
    probs[-1] = (1 - STOP_PROBABILITY) ** (LONGEST - 1)
    counts = np.bincount(lengths, minlength=LONGEST + 1)[1:]
    return stats.chisquare(counts, len(lengths) * probs).pvalue


def zero_score(completions):
    return [0.0] * len(completions)


def lengths_collected(num_envs):
    rollout = play(
        COLLECTED, num_envs, actor=CoinActor(STOP_PROBABILITY), max_new_tokens=LONGEST, reward=zero_score, prompts=["a"]
    )
    return rollout.mask.sum(axis=1)


def lengths_finished_first(num_envs):
    """A planted fault: rows restart by themselves, and the first episodes that finish are taken."""
    actor, lengths = CoinActor(STOP_PROBABILITY), []
    while len(lengths) < COLLECTED:
        envs = tiny.make_envs(
            num_envs, AutoresetMode.SAME_STEP, max_new_tokens=LONGEST, reward=zero_score, prompts=["a"]
        )
        observations, _ = envs.reset()
        batch = []
        while len(batch) < num_envs:
            observations, _, terminated, _, infos = envs.step(actor.act(observations)[0])
            if terminated.any():
                ended = infos["final_info"]
                batch += (ended["length"] - ended["prompt_length"])[terminated].tolist()
        lengths += batch[:num_envs]
    return np.array(lengths[:COLLECTED])


@pytest.mark.parametrize("num_envs", [1, 16, 1000])
def test_lengths_follow_the_policy(num_envs):
    assert length_law_pvalue(lengths_collected(num_envs)) > 1e-3


def test_taking_the_first_that_finish_favours_short_episodes():
    lengths = lengths_finished_first(16)
    assert lengths.mean() < lengths_collected(16).mean() - 0.3
    assert length_law_pvalue(lengths) < 1e-6


# --- which environments


def test_an_environment_in_another_mode_is_left_alone():
    envs, untouched = tiny.make_envs(3, AutoresetMode.NEXT_STEP), tiny.make_envs(3, AutoresetMode.NEXT_STEP)
    for each in (envs, untouched):
        each.reset(seed=7)
        each.step(np.array([A, STOP, B]))
    collect(CoinActor(0.3), envs, 10, np.random.default_rng(0))
    for _ in range(6):
        actual, expected = (each.step(np.array([B, C, STOP])) for each in (envs, untouched))
        for left, right in zip(actual[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_bare_environment_gets_a_twin_in_disabled_mode():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        envs = tiny.make_envs(3, mode)
        twin = rollout_env(envs)
        assert twin is not envs
        assert twin.unwrapped.autoreset_mode is AutoresetMode.DISABLED
        assert (twin.num_envs, twin.unwrapped.problem) == (3, envs.unwrapped.problem)
    disabled = tiny.make_envs(3)
    assert rollout_env(disabled) is disabled


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_wrapped_environment_in_another_mode_is_refused(mode):
    with pytest.raises(ValueError, match="DISABLED"):
        collect(CoinActor(0.3), VectorWrapper(tiny.make_envs(3, mode)), 4, np.random.default_rng(0))


class Doubled(VectorWrapper):
    """Pays twice as much, so that a wrapper that is skipped is noticed."""

    def step(self, actions):
        observations, rewards, *rest = self.env.step(actions)
        return observations, 2 * rewards, *rest


def test_a_wrapped_disabled_environment_is_driven_through_its_wrapper():
    rollout = collect(CoinActor(0.3), Doubled(tiny.make_envs(4)), 10, np.random.default_rng(0))
    np.testing.assert_array_equal(rollout.returns, 2 * rollout.score)


def test_other_environments_are_refused():
    with pytest.raises(TypeError, match="native vector environment"):
        rollout_env(gym.make_vec("CartPole-v1", num_envs=2))
    sync = gym.make_vec("TextGen-v0", num_envs=2, vectorization_mode="sync")
    with pytest.raises(TypeError, match="native vector environment"):
        rollout_env(sync)


# --- reading a rollout


def two_episodes() -> Rollout:
    """On the symbols a, b, c, <eos>: bc → "a" stopped; a → "bcb" to the horizon."""
    rollout = tiny.rollout_of(
        [
            tiny.Episode(1, [B, C], [A, STOP], [0.0, 0.75], 1),
            tiny.Episode(0, [A], [B, C, B], [0.5, -0.25, 0.0], 2),
        ]
    )
    return rollout._replace(log_probs=np.array([[-0.5, -1.5, 0], [-2.0, -0.25, -0.125]], dtype=np.float32))


def test_trajectory_pairs_states_with_actions():
    rollout = two_episodes()
    assert rollout.trajectory(0) == [
        Step("bc", [B, C], "a", A, -0.5, 0.0),
        Step("bca", [B, C, A], "<eos>", STOP, -1.5, 0.75),
    ]
    assert rollout.trajectory(1) == [
        Step("a", [A], "b", B, -2.0, 0.5),
        Step("ab", [A, B], "c", C, -0.25, -0.25),
        Step("abc", [A, B, C], "b", B, -0.125, 0.0),
    ]


def test_texts_returns_and_tokens():
    rollout = two_episodes()
    assert rollout.texts(0) == ("bc", "a<eos>")
    assert rollout.texts(1) == ("a", "bcb")
    assert rollout.returns.tolist() == [0.75, 0.25]
    assert rollout.num_tokens == 5


def test_an_empty_prompt_starts_from_an_empty_state():
    rollout = play(2, prompts=[""], actor=CoinActor(1.0))
    assert rollout.trajectory(1) == [Step("", [], "<eos>", STOP, 0.0, rollout.score[1])]


def test_select_takes_rows_and_cuts_the_padding():
    rollout = two_episodes()
    first = rollout.select(np.array([0]))
    assert first.tokens.tolist() == [[B, C, A, STOP]]
    assert first.mask.tolist() == [[True, True]]
    assert (first.actions.tolist(), first.rewards.tolist()) == ([[A, STOP]], [[0.0, 0.75]])
    assert first.log_probs.tolist() == [[-0.5, -1.5]]
    assert first.group.tolist() == [0] and first.vocabulary is rollout.vocabulary
    both = rollout.select(np.array([1, 0]))
    assert both.actions.tolist() == [[B, C, B], [A, STOP, 0]]
    assert both.tokens.tolist() == [[A, B, C, B], [B, C, A, STOP]]
    assert both.group.tolist() == [1, 0]


def test_actions_come_from_the_action_generator():
    envs = tiny.make_envs()
    policy = tiny.make_policy(envs)
    own = policy.generator.get_state()

    def once(seed):
        return collect(policy, envs, 30, np.random.default_rng(0), action_generator=torch.Generator().manual_seed(seed))

    first, again, other = once(1), once(1), once(2)
    assert (first.tokens == again.tokens).all() and (first.log_probs == again.log_probs).all()
    assert first.tokens.shape != other.tokens.shape or (first.tokens != other.tokens).any()
    assert torch.equal(policy.generator.get_state(), own)
    collect(policy, envs, 4, np.random.default_rng(0))
    assert not torch.equal(policy.generator.get_state(), own)


def test_episodes_of_the_owner_are_neither_played_nor_scored():
    scored = []

    def reward(completions):
        scored.append(len(completions))
        return [0.0] * len(completions)

    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=16,
        prompts=["a"],
        tokenizer=["a", "b"],
        reward=reward,
        max_new_tokens=2,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    before, _ = envs.reset(seed=0)
    collect(TransformerPolicy.small(envs), envs, 2, np.random.default_rng(0))
    assert scored == [2]
    after, *_ = envs.step(np.zeros(16, dtype=np.int64))
    assert (after[:, 0] == before[:, 0]).all()
    assert (after[:, 1] == 0).all()


def test_a_subclass_is_not_replaced():
    class Doubled(TextGenVectorEnv):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, 2 * rewards, *rest

    with pytest.raises(ValueError, match="Doubled"):
        rollout_env(Doubled(4, task="bandit"))
    envs = Doubled(64, task="bandit", autoreset_mode=AutoresetMode.DISABLED)
    rollout = collect(TransformerPolicy.small(envs), envs, 64, np.random.default_rng(0))
    assert (rollout.returns == 2 * rollout.score).all()
    assert rollout.score.max() > 0
