"""TorchRL's environments, collectors and losses over the native vector environment, and the policy as its modules."""

import re

import gymnasium as gym
import pytest
import torch

import textgym  # noqa: F401
from agents.policy import TransformerPolicy
from tests.stories.run import ROOT, run

pytestmark = pytest.mark.plugins

SCRIPTS = ("torchrl_ppo.py", "torchrl_transformer.py")


def source(name: str) -> str:
    return (ROOT / "benchmarks" / "plugins" / name).read_text(encoding="utf-8")


def make_envs(num_envs=8, autoreset_mode="Disabled", **keywords):
    keywords = {"task": "brackets", "observation": "dict"} | keywords
    return gym.make_vec("TextGen-v0", num_envs=num_envs, autoreset_mode=autoreset_mode, **keywords)


def wrapped(envs):
    from torchrl.envs import ActionMask, GymWrapper, TransformedEnv

    return TransformedEnv(GymWrapper(envs, categorical_action_encoding=True), ActionMask())


def make_operator(envs, seed=0, **settings):
    from agents.adapters.torchrl import actor_value_operator

    policy = TransformerPolicy.small(envs, d_model=32, num_layers=1, seed=seed, value_head=True, **settings)
    with torch.no_grad():
        for parameter in policy.value_head.parameters():  # of an untrained one the values are all 0
            parameter += torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter)
    return policy, actor_value_operator(policy)


def collected(envs, frames, seed=0):
    from torchrl.collectors import Collector

    env = wrapped(envs)
    env.set_seed(seed)
    policy, model = make_operator(envs)
    actor = model.get_policy_operator()
    [data] = Collector(env, actor, frames_per_batch=frames, total_frames=frames, auto_register_policy_transforms=True)
    return data, policy, model


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_reaches_90_percent_of_the_optimum(name, tmp_path):
    check = (
        "\nimport numpy as np\nenvs = gym.make_vec('textgym:TextGen-v0', 256, task=TASK, observation='dict')\n"
        "observations, _ = envs.reset(seed=1)\nfor _ in range(4):\n    actions = agent(observations)\n"
        "    assert actions.dtype == np.int64 and actions.shape == (256,)\n"
        "    observations, rewards, *_ = envs.step(actions)\nprint(rewards.mean())\n"
    )
    (tmp_path / "script.py").write_text(source(name) + check, encoding="utf-8")
    result = run("script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    collected_mean, agents_mean = (float(line.split()[-1]) for line in result.stdout.splitlines()[-2:])
    assert collected_mean >= 0.9 and agents_mean >= 0.9  # a uniform policy gets .125


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_learns_within_masks_and_never_leaves_them(name, tmp_path):
    changed, count = re.subn(r'= "sort", 1, [\d_]+', '= "brackets", 1, 40_960', source(name))
    assert count == 1
    (tmp_path / "script.py").write_text(changed, encoding="utf-8")
    result = run("script.py", cwd=tmp_path)  # an illegal action would raise
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) >= 0.9  # a uniform policy gets .25


@pytest.mark.parametrize("keywords", [{}, {"on_limit": "truncate"}, {"task": "sort"}, {"task": "addition", "level": 2}])
def test_specs_hold(keywords):
    from torchrl.envs import check_env_specs

    check_env_specs(wrapped(make_envs(**keywords)))


@pytest.mark.parametrize("autoreset_mode", ["Disabled", "SameStep"])
def test_specs_hold_without_a_dict(autoreset_mode):
    from torchrl.envs import GymWrapper, check_env_specs

    envs = make_envs(task="sort", observation="tokens", autoreset_mode=autoreset_mode)
    check_env_specs(GymWrapper(envs, categorical_action_encoding=True))


def test_gym_env_makes_one_by_its_name():
    from torchrl.envs import GymEnv, check_env_specs

    env = GymEnv("TextGen-v0", task="copy", categorical_action_encoding=True)
    check_env_specs(env)
    env.set_seed(3)
    expected, _ = gym.make("TextGen-v0", task="copy").reset(seed=3)
    assert env.reset(seed=3)["observation"].tolist() == expected.tolist()


@pytest.mark.parametrize("on_limit", ["terminate", "truncate"])
@pytest.mark.parametrize("task", ["brackets", "addition"])  # episodes of several lengths; with and without masks
def test_collection_loses_nothing(task, on_limit):
    """What TorchRL collected is what scalar environments pay and show for the same actions and seeds."""
    keywords = {"task": task, "on_limit": on_limit}
    data, *_ = collected(make_envs(5, **keywords), frames=5 * 40, seed=11)
    assert data.shape == (5, 40)
    ends = {"terminated": 0, "truncated": 0}
    for row in range(5):
        env = gym.make("TextGen-v0", observation="dict", **keywords)
        env.reset(seed=11 + row)
        observation, _ = env.reset()  # setting a seed resets, and so does the collector
        for step in data[row]:
            assert torch.equal(step["tokens"], torch.from_numpy(observation["tokens"]))
            assert observation["action_mask"][step["action"]]
            observation, reward, terminated, truncated, _ = env.step(int(step["action"]))
            after = step["next"]
            assert torch.equal(after["tokens"], torch.from_numpy(observation["tokens"]))
            assert after["reward"].item() == pytest.approx(reward)
            assert after["terminated"].item() == terminated and after["truncated"].item() == truncated
            assert after["done"].item() == (terminated or truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                observation, _ = env.reset()
    assert ends["terminated"] + ends["truncated"] >= 20
    assert (ends["truncated"] > 0) == (on_limit == "truncate")


def test_rewards_are_among_what_was_collected():
    data, *_ = collected(make_envs(64), frames=64 * 40)
    paid = data["next", "reward"]
    assert paid.sum() > 30
    assert not paid[~data["next", "done"]].any()


def test_the_operator_says_what_the_policy_says():
    envs = make_envs()
    policy, model = make_operator(envs, temperature=0.7)
    data = wrapped(envs).rollout(5, model.get_policy_operator(), break_when_any_done=False)
    for step in range(5):
        observations = {name: data[name][:, step].numpy() for name in ("tokens", "action_mask")}
        expected = policy.distribution(observations)
        torch.testing.assert_close(data["logits"][:, step], expected.log_probs, rtol=1e-5, atol=1e-5)
        said = expected.log_prob(data["action"][:, step])
        torch.testing.assert_close(data["action_log_prob"][:, step], said, rtol=1e-5, atol=1e-5)
        value = policy.values(observations)
        torch.testing.assert_close(data["value"][:, step, 0], value, rtol=1e-5, atol=1e-5)
    assert (data["logits"] == -torch.inf).any()
    assert data["value"].std() > 1e-3


def test_its_parts_share_the_weights_of_the_policy():
    policy, model = make_operator(make_envs())
    own = {id(parameter) for parameter in policy.parameters()}
    for part in (model, model.get_policy_operator(), model.get_value_operator()):
        assert {id(parameter) for parameter in part.parameters()} == own


def test_without_a_dict_there_are_no_masks():
    from tensordict import TensorDict

    from agents.adapters.torchrl import actor_value_operator

    envs = make_envs(task="sort", observation="tokens")
    policy = TransformerPolicy.small(envs, value_head=True)
    actor = actor_value_operator(policy, tokens="observation", action_mask=None).get_policy_operator()
    actions = actor(TensorDict({"observation": torch.from_numpy(envs.reset(seed=0)[0])}, [8]))["action"]
    assert envs.action_space.contains(actions.numpy())


def test_the_seed_decides_the_actions():
    from torchrl.envs import ExplorationType, set_exploration_type

    from agents.adapters.torchrl import actor_value_operator

    policy, _ = make_operator(make_envs())
    drawn = []
    for seed in (1, 1, 2):
        env = wrapped(make_envs(16, task="sort"))
        policy = TransformerPolicy.small(make_envs(task="sort"), value_head=True)
        env.set_seed(0)
        actor = actor_value_operator(policy, seed=seed).get_policy_operator()
        with set_exploration_type(ExplorationType.RANDOM):
            drawn.append(env.rollout(4, actor)["action"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_step_of_a_rollout_costs_one_token():
    envs = make_envs(task="sort")
    policy, model = make_operator(envs)
    fed = count_tokens(policy)
    with torch.no_grad():  # as collectors do
        wrapped(envs).rollout(4, model.get_policy_operator())
    assert fed == [8 * 4, 8, 8, 8]  # the prompts of four tokens, then a token each


def test_a_gradient_runs_nested_prefixes_once():
    envs = make_envs(task="sort")
    policy, model = make_operator(envs)
    data = wrapped(envs).rollout(4, model.get_policy_operator())
    fed = count_tokens(policy)
    model.get_value_operator()(data.select("tokens", "action_mask"))
    assert sum(fed) == 8 * 7  # not 8 · (4 + 5 + 6 + 7)


def test_a_change_of_the_weights_is_noticed():
    envs = make_envs(task="sort")
    policy, model = make_operator(envs)
    actor, env = model.get_policy_operator(), wrapped(envs)
    with torch.no_grad():  # which fills the cache
        first = env.rollout(2, actor)
    for parameter in policy.parameters():
        parameter.data.mul_(1.5)  # which leaves no trace in its version
    with torch.no_grad():
        again = actor(first[:, 1].select("tokens", "action_mask"))["logits"]
    expected = policy.distribution(first[:, 1]["tokens"].numpy()).log_probs
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(again, first[:, 1]["logits"], atol=1e-2)


def count_tokens(policy):
    fed = []
    policy.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].numel()))
    return fed


def test_the_first_step_of_ppo_is_the_policy_gradient_from_one_pass(monkeypatch):
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    data, policy, model = collected(make_envs(), frames=8 * 16)
    GAE(gamma=1.0, lmbda=1.0, value_network=model.get_value_operator(), shifted=True)(data)
    loss_module = ClipPPOLoss(model.get_policy_operator(), model.get_value_head(), entropy_coeff=0.0)
    passes = []
    original = TransformerPolicy.distribution_and_values
    monkeypatch.setattr(
        TransformerPolicy,
        "distribution_and_values",
        lambda self, *arguments: passes.append(1) or original(self, *arguments),
    )
    losses = loss_module(data)
    (losses["loss_objective"] + losses["loss_critic"]).backward()
    assert len(passes) == 1
    found = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    states = data.reshape(-1)
    observations = {name: states[name].numpy() for name in ("tokens", "action_mask")}
    log_probs = policy.distribution(observations).log_prob(states["action"])
    surrogate = -(states["advantage"][:, 0] * log_probs).mean()
    critic = torch.nn.functional.smooth_l1_loss(policy.values(observations), states["value_target"][:, 0])
    (surrogate + critic).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_advantages_reach_what_was_paid_at_the_end():
    from torchrl.objectives.value import GAE

    data, _, model = collected(make_envs(), frames=8 * 40)
    for settings in ({"shifted": True}, {"deactivate_vmap": True}):
        GAE(gamma=1.0, lmbda=1.0, value_network=model.get_value_operator(), **settings)(data)
        returns = (data["advantage"] + data["state_value"])[..., 0]
        for row in range(8):
            first = 0
            for end in data["next", "done"][row, :, 0].nonzero()[:, 0].tolist():
                score = data["next", "reward"][row, end, 0]
                assert torch.allclose(returns[row, first : end + 1], score, atol=1e-5)
                first = end + 1
            assert first > 0


def test_an_episode_that_was_cut_off_is_bootstrapped_from_its_own_last_state():
    from torchrl.objectives.value import GAE

    data, policy, model = collected(make_envs(task="sort", on_limit="truncate"), frames=8 * 8)
    GAE(gamma=1.0, lmbda=1.0, value_network=model.get_value_operator(), deactivate_vmap=True)(data)
    ended = data["next", "truncated"][..., 0]
    assert ended.sum() == 8 * 2
    last = policy.values(data["next", "tokens"][ended].numpy())
    expected = data["next", "reward"][ended][:, 0] + last
    torch.testing.assert_close((data["advantage"] + data["state_value"])[ended][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_misuse_is_refused():
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    from agents.adapters.torchrl import actor_value_operator

    envs = make_envs()
    with pytest.raises(TypeError, match="TransformerPolicy"):
        actor_value_operator(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="value_head=True"):
        actor_value_operator(TransformerPolicy.small(envs))
    with pytest.raises(ValueError, match="top_k=2"):
        actor_value_operator(TransformerPolicy.small(envs, value_head=True, top_k=2))
    data, _, model = collected(envs, frames=8 * 8)
    with pytest.raises(ValueError, match="deactivate_vmap=True"):
        GAE(gamma=1.0, lmbda=1.0, value_network=model.get_value_operator())(data)
    GAE(gamma=1.0, lmbda=1.0, value_network=model.get_value_operator(), shifted=True)(data)
    with pytest.raises(ValueError, match="separate_losses"):
        ClipPPOLoss(model.get_policy_operator(), model.get_value_head(), separate_losses=True)(data)
