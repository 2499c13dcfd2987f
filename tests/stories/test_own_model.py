"""`textgym train` on a user's own model, prompts and reward, over real text."""

import json

import numpy as np
import pytest
from scipy import stats

from tests.stories.own_model import make_files
from tests.stories.run import textgym

FLAGS = ("--model", "model", "--prompts", "prompts.jsonl", "--reward", "my_reward.py:score", "--max-new-tokens", 16)


def train(folder, seed, tokens):
    make_files(folder, seed)
    result = textgym("train", *FLAGS, "--total-timesteps", tokens, "--seed", seed, "--run-dir", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return result, [json.loads(line)["reward"] for line in lines]


def test_the_mean_reward_rises(tmp_path):
    result, rewards = train(tmp_path, seed=0, tokens=60_000)
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05
    assert "the reward score on 3 prompts" in result.stdout


@pytest.mark.full
def test_the_mean_reward_rises_over_seeds(tmp_path):
    gains = []
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        _, rewards = train(folder, seed, tokens=60_000)
        gains.append(np.mean(rewards[-5:]) - np.mean(rewards[:5]))
    print("gain over 5 seeds", np.mean(gains), "p", stats.ttest_1samp(gains, 0.05, alternative="greater").pvalue)
    assert stats.ttest_1samp(gains, 0.05, alternative="greater").pvalue < 0.01
