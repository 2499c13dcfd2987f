"""A stranger's scripts, as the README shows them, each in a process of its own with sockets blocked."""

import json
import math
import re
import shlex

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stories.run import HERE, run, textgym


def numbers(result):
    assert result.returncode == 0, result.stderr
    return [float(line.split()[-1]) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    result = textgym("train", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sockets_are_blocked(tmp_path):
    result = run("-c", "import socket; socket.create_connection(('127.0.0.1', 9))", cwd=tmp_path)
    assert "the network is blocked" in result.stderr


def test_the_command_reaches_95_percent_of_the_optimum(trained):
    folder, result = trained
    last = result.stdout.splitlines()[-1]
    reached = float(re.match(r"done: return ([\d.]+) \(optimum 1,", last).group(1))
    assert reached >= 0.95
    rewards = [entry["reward"] for entry in read_jsonl(folder / "runs" / "sort-rloo" / "metrics.jsonl")]
    assert sum(rewards[-10:]) / 10 >= 0.95
    assert rewards[0] < 0.3


def test_the_run_folder_is_complete(trained):
    run_folder = trained[0] / "runs" / "sort-rloo"
    names = {"config.json", "env.txt", "metrics.jsonl", "timings.jsonl", "trajectories.jsonl", "tensorboard", "policy"}
    assert {path.name for path in run_folder.iterdir()} == names
    assert list((run_folder / "tensorboard").iterdir())
    model = AutoModelForCausalLM.from_pretrained(run_folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "policy")
    prompts = ["3120", "7531", "4602"]
    batch = tokenizer(prompts, return_tensors="pt", return_token_type_ids=False)
    completions = model.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=0)[:, 4:]
    assert tokenizer.batch_decode(completions) == ["".join(sorted(prompt)) for prompt in prompts]


def test_the_next_command_works(trained):
    folder, result = trained
    command = shlex.split(result.stdout.splitlines()[-1].split("next: ")[1])
    assert command[:2] == ["textgym", "evaluate"]
    table = textgym(*command[1:], cwd=folder)
    assert table.returncode == 0, table.stderr
    assert float(re.search(r"^greedy +return +4,096 +([\d.]+) +exact", table.stdout, re.M).group(1)) > 0.9
    found = re.search(r"^sampled +return +4,096 +([\d.]+) +([\d.]+) to ([\d.]+)", table.stdout, re.M)
    mean, low, high = map(float, found.groups())
    assert 0.9 < low <= mean <= high <= 1
    assert "return: (optimum 1, uniform policy 0.125)" in table.stdout


def test_the_snippet_does_what_the_command_did(trained, tmp_path):
    rewards = numbers(run(HERE / "quickstart.py", cwd=tmp_path))
    logged = [entry["reward"] for entry in read_jsonl(trained[0] / "runs" / "sort-rloo" / "metrics.jsonl")]
    assert rewards == logged


def test_own_reward(tmp_path):
    rewards = numbers(run(HERE / "own_reward.py", cwd=tmp_path))
    assert sum(rewards[:5]) / 5 < 0.2
    assert sum(rewards[-10:]) / 10 > 0.6


def test_own_task(tmp_path):
    result = run(HERE / "own_task.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "1.0 1.0\n"), result.stderr
    copy = (HERE / "own_task.py").read_text(encoding="utf-8").split("\nenv = ")[0]
    (tmp_path / "my_tasks.py").write_text(copy, encoding="utf-8")
    code = "import gymnasium as gym; print(gym.make('my_tasks:TextGen-v0', task='vowels').unwrapped.optimum)"
    assert numbers(run("-c", code, cwd=tmp_path)) == [1.0]


def test_own_parts(tmp_path):
    result = run(HERE / "own_parts.py", cwd=tmp_path)
    # 1 + .5 / 1 letter - .1 for the last token; 1 + .5 / 2 letters - .1
    assert (result.returncode, result.stdout) == (0, "2+3= 5 [1. 1.] 1.5 1.4\n7+5= 12 [1.  0.5] 1.25 1.15\n"), (
        result.stderr
    )


def test_branching(tmp_path):
    shares = numbers(run(HERE / "branching.py", cwd=tmp_path))
    assert shares == [0.75, 1.0, 0.75, 0.75]  # 32?0 against 3210


def test_ground_truth(tmp_path):
    found = numbers(run(HERE / "ground_truth.py", cwd=tmp_path))
    entropy = -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))
    # Two pairs of 5 tokens are right with probability Σ p²; of 1024 texts 64 are palindromes.
    regularised = 0.3**2 - 0.1 * 5 * (math.log(4) - entropy)
    gap = 0.1 * math.log((15 + math.exp(10)) / 16) - regularised
    assert found == pytest.approx([0.3**2, 1, 1 - (1 - 0.3**2) ** 16, gap, gap])


def test_gradient_check(tmp_path):
    result = run(HERE / "gradient_check.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, quotient, projection = result.stdout.splitlines()
    assert first.startswith("1,024 texts, J = 0.")
    assert float(quotient.split()[-1]) == pytest.approx(1, abs=1e-5)
    assert float(projection.split()[-1]) == pytest.approx(1, abs=0.15)


def test_looking(tmp_path):
    result = run(HERE / "looking.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    prompt, completion, state, numbers_line = result.stdout.splitlines()
    text = completion.removeprefix("completion: ")
    while "()" in text:
        text = text.replace("()", "")
    assert (prompt, text) == ("prompt: ", "")  # masked, so it is balanced
    score, length = numbers_line.split()
    assert float(score) in (0.0, 1.0) and int(length) <= 8 and f"{length} tokens" in state


def test_large_horizon(tmp_path):
    result = run(HERE / "large_horizon.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    best, rare, gained, divergence, regularised = (float(line.split(" = ")[1]) for line in lines)
    digits = 0.6 / 0.4  # one at least: .6 + .6^2 + ...
    numbers_after_the_first = 0.1 * digits / (1 - 0.1 * digits)  # each a comma and digits, one at least
    right = 0.1 * (digits / 0.6) * numbers_after_the_first * 0.1 * 0.1  # [, of which a digit follows surely; ], <eos>
    assert (best, rare) == (1.0, pytest.approx(right, rel=1e-12))
    assert gained == pytest.approx(right * math.e**10 / (1 - right + right * math.e**10), rel=1e-12)
    assert regularised == pytest.approx(gained - 0.1 * divergence, abs=1e-12)
    text, reward = last.split()
    assert float(reward) == (re.fullmatch(r"\[[01]+(,[01]+)+\]", text) is not None)


def test_own_agent(tmp_path):
    rewards = numbers(run(HERE / "own_agent.py", cwd=tmp_path))
    assert rewards[0] < 0.7  # a uniform policy gets 1/2
    assert rewards[-1] > 0.9


def test_walkthrough(tmp_path):
    result = run(HERE / "walkthrough.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "s_0 = 'The capital of France is' [0, 1, 2, 3, 4]"
    for state, action, following in zip(lines[0::2], lines[1::2], lines[2::2], strict=False):
        text, token = re.match(r"s_\d = '(.*)' \[", state).group(1), re.match(r"a_\d = '(.*)' \[", action).group(1)
        assert re.match(r"s_\d = '(.*)' \[", following).group(1) == text + token


def test_stable_baselines3_learns(tmp_path):
    reached = numbers(run(HERE / "sb3_ppo.py", cwd=tmp_path))[-1]
    assert reached > 0.9
    measured = textgym("evaluate", "--agent", "agent.zip", "--task", "sort", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    [mean] = re.findall(r"^sampled +return +[\d,]+ +([\d.]+)", measured.stdout, re.M)
    assert float(mean) == pytest.approx(reached, abs=0.06)  # 512 episodes there, 4,096 here
