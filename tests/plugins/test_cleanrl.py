"""The single-file PPO: it learns, keeps to the masks, bootstraps from the state that was cut off, and repeats itself.

It needs torch and Gymnasium alone, so that these tests run with all others.
"""

import ast
import importlib
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "plugins" / "cleanrl_ppo.py"


@pytest.fixture(scope="module")
def script():
    """The script, which has trained its agent by then; on one thread, which suits a small network best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("benchmarks.plugins.cleanrl_ppo")
    torch.set_num_threads(threads)


def test_it_is_one_short_file_without_an_agent_library():
    source = FILE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 150
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name.split(".")[0] for node in nodes for name in ast.unparse(node).replace("from ", "import ").split()[1:2]
    }
    assert names - sys.stdlib_module_names == {"gymnasium", "numpy", "textgym", "torch"}


def test_it_learns_the_default_task(script):
    assert script.TASK == "sort"
    assert script.evaluate(script.agent, script.Args(num_envs=512)) > 0.9  # a uniform policy gets .125


def test_the_agent_is_a_callable_from_observations_to_actions(script):
    envs = gym.make_vec("textgym:TextGen-v0", num_envs=5, observation="dict")
    actions = script.agent(envs.reset(seed=3)[0])
    assert (actions.dtype, actions.shape) == (np.int64, (5,))
    assert envs.action_space.contains(actions)


def test_it_learns_within_masks_and_never_leaves_them(script):
    args = script.Args(task="brackets", total_timesteps=40_960)
    agent = script.train(args)  # an illegal action would raise
    assert script.evaluate(agent, script.Args(task="brackets", num_envs=512)) > 0.9  # a uniform one .25


def test_an_action_outside_the_mask_would_have_raised(script):
    envs = script.make_envs(script.Args(task="brackets", num_envs=2))
    observations, _ = envs.reset(seed=0)
    with pytest.raises(ValueError, match="mask"):
        envs.step(observations["action_mask"].argmin(axis=1))


def test_a_truncated_row_is_paid_its_score_and_the_value_of_its_own_last_state(script):
    args = script.Args(on_limit="truncate", num_envs=3)
    envs = script.make_envs(args)
    envs.reset(seed=0)
    actions = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 0], [1, 2, 3]])
    for step in range(4):
        _, rewards, _, truncated, infos = envs.step(actions[step])
        paid = script.bootstrapped(script.agent, rewards, truncated, infos, gamma=0.5)
        if step < 3:
            assert not truncated.any() and paid.tolist() == [0, 0, 0]
    assert truncated.all()
    for row in range(3):  # the same episodes in environments that do not restart
        env = gym.make("textgym:TextGen-v0", on_limit="truncate")
        env.reset(seed=row)
        for step in range(4):
            last, score, *_ = env.step(actions[step, row])
        value = script.agent.get_value(torch.from_numpy(last[None])).item()
        assert abs(value) > 1e-3
        assert paid[row].item() == pytest.approx(score + 0.5 * value, abs=1e-5)


def test_a_terminated_row_is_paid_its_score_alone(script):
    envs = script.make_envs(script.Args(num_envs=64))
    envs.reset(seed=0)
    for _ in range(4):
        _, rewards, terminated, truncated, infos = envs.step(np.zeros(64, dtype=np.int64))
    assert terminated.all() and rewards.sum() > 0
    assert script.bootstrapped(script.agent, rewards, truncated, infos, gamma=1.0).tolist() == rewards.tolist()


def test_advantages_stop_at_the_end_of_an_episode(script):
    rewards, values = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.5], [0.25], [2.0]])
    dones = torch.tensor([[False], [True], [False]])
    found = script.gae(rewards, values, torch.tensor([4.0]), dones, gamma=0.5, gae_lambda=0.5)
    # δ = 0 + .5·4 - 2; 1 - .25; 0 + .5·.25 - .5, and a quarter of the one after it
    assert found.flatten().tolist() == [-0.375 + 0.25 * 0.75, 0.75, 0.0]


def test_the_same_seed_gives_the_same_agent(script):
    first, second, other = (
        torch.cat(
            [weight.flatten() for weight in script.train(script.Args(total_timesteps=4096, seed=seed)).parameters()]
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
