"""One meter for any agent: what is opened, what it is shown, what it gets, and what is said of a wrong one."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest

from agents.any_agent import open_agent
from agents.called_agent import CalledAgent
from agents.evaluate_settings import EvaluateSettings
from agents.policy import TransformerPolicy
from tests.agents.commands import exit_code
from textgym.problem import make_problem

AGENTS = '''
import gymnasium as gym
import numpy as np

V = 8  # of sort


def sorts(observations):
    """The greatest rest of the prompt, from the smallest on: it looks back at its prompt."""
    actions = []
    for row in observations:
        row = row[row < V]
        actions.append(sorted(row[:4])[len(row) - 4])
    return np.array(actions)


class Predicts:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert observation.ndim == 2
        return (sorts(observation) if deterministic else np.zeros(len(observation), dtype=int)), None


predicts = Predicts()


class Masked:
    observation_space = gym.spaces.Dict(tokens=gym.spaces.Box(0, 3, (8,), np.int64))
    seen = []

    def predict(self, observation, deterministic=False, action_masks=None):
        assert (observation["action_mask"] == action_masks).all()
        assert set(observation) == {"tokens", "length", "attention_mask", "action_mask"}
        assert (observation["attention_mask"].sum(axis=1) == observation["length"][:, 0]).all()
        return action_masks.argmax(axis=1)


masked = Masked()


class Stateful:
    def predict(self, observation, deterministic=False):
        return np.zeros(len(observation), dtype=int), np.zeros(3)


stateful = Stateful()


def raises(observations):
    raise KeyError("\x1b[2J")


short = lambda observations: np.zeros(len(observations) + 1, dtype=int)
floats = lambda observations: np.zeros(len(observations))
outside = lambda observations: np.full(len(observations), V)
a_number = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("agents") / "mine.py"
    file.write_text(AGENTS, encoding="utf-8")
    return file


def measured(capsys, *flags):
    assert exit_code("evaluate", *flags) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    found = re.findall(r"^(greedy|sampled|as it acts) +return +[\d,]+ +([\d.]+)", said, re.M)
    return {name: float(mean) for name, mean in found}, said


def test_a_function_is_measured(file, capsys):
    assert measured(capsys, "--agent", f"{file}:sorts", "--episodes", 64)[0] == {"as it acts": 1.0}


def test_what_predicts_is_measured_both_ways(file, capsys):
    found, said = measured(capsys, "--agent", f"{file}:predicts", "--episodes", 64)
    assert found["greedy"] == 1.0 and found["sampled"] < 0.5
    assert "draws as it likes" in said
    assert measured(capsys, "--agent", f"{file}:predicts", "--episodes", 64, "--greedy")[0] == {"greedy": 1.0}


def test_dict_observations_and_masks_reach_who_asks_for_them(file, capsys):
    assert "greedy" in measured(capsys, "--agent", f"{file}:masked", "--task", "brackets")[0]


def test_a_folder_is_the_model_that_it_is(tmp_path, capsys):
    problem = make_problem(task="copy")
    policy = TransformerPolicy.small(gym.make_vec("TextGen-v0", num_envs=1, task="copy"), d_model=32, num_layers=1)
    policy.save_pretrained(tmp_path / "model")
    flags = ("--task", "copy", "--episodes", 32)
    one, _ = measured(capsys, "--model", tmp_path / "model", *flags)
    other, _ = measured(capsys, "--agent", tmp_path / "model", *flags)
    assert one == other and set(one) == {"greedy", "sampled"} and problem.optimum == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("random", "uniform"), ("uniform-legal", "uniform"), ("greedy-oracle", "optimum"), ("tabular", "optimum")],
)
@pytest.mark.parametrize("task", ["palindrome", "delayed_bit"])
def test_baselines_get_what_is_known_of_them(name, expected, task, capsys):
    problem = make_problem(task=task)
    [(_, mean)] = measured(capsys, "--agent", name, "--task", task, "--episodes", 2000)[0].items()
    # Four standard errors of a share.
    assert mean == pytest.approx(
        getattr(problem, expected), abs=4 * (0.25 / 2000) ** 0.5 if expected == "uniform" else 0
    )


def test_baselines_and_masks(capsys):
    problem = make_problem(task="brackets")
    found, _ = measured(capsys, "--agent", "uniform-legal", "--task", "brackets", "--episodes", 4000)
    assert found["sampled"] == pytest.approx(problem.uniform, abs=4 * (0.25 / 4000) ** 0.5)
    for name in ("tabular", "greedy-oracle"):
        assert measured(capsys, "--agent", name, "--task", "brackets")[0] == {"greedy": 1.0}
    assert exit_code("evaluate", "--agent", "random", "--task", "brackets") == 1
    assert "is illegal now" in capsys.readouterr().err
    ended = measured(capsys, "--agent", "random", "--task", "brackets", "--on-illegal-action", "terminate")[0]
    assert ended["sampled"] < problem.uniform


def test_the_oracle_knows_the_prompt_it_is_asked_about(capsys):
    assert measured(capsys, "--agent", "greedy-oracle", "--task", "copy", "--episodes", 64)[0] == {"greedy": 1.0}


def test_the_oracle_refuses_what_it_cannot_tell_apart(tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "01", "answer": "0"}\n{"prompt": "01", "answer": "1"}\n')
    (tmp_path / "reward.py").write_text(
        "def score(completions, answer): return [float(c == a) for c, a in zip(completions, answer)]\n"
    )
    TransformerPolicy.small(
        gym.make_vec("TextGen-v0", num_envs=1, task="copy"), d_model=32, num_layers=1
    ).save_pretrained(tmp_path / "model")
    flags = (
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--reward",
        f"{tmp_path / 'reward.py'}:score",
        "--max-new-tokens",
        2,
    )
    assert exit_code("evaluate", "--agent", "greedy-oracle", "--tokenizer", tmp_path / "model", *flags) == 1
    assert "other columns" in capsys.readouterr().err


def test_the_seed_of_a_baseline_is_that_of_its_draws(tmp_path, capsys):
    def returns(seed, name):
        file = tmp_path / f"{name}.json"
        measured(capsys, "--agent", "random", "--seed", seed, "--episodes", 64, "--output", file)
        return json.loads(file.read_text())["measures"]

    assert returns(1, "one") == returns(1, "two") != returns(2, "three")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--agent", "rondom"], 2, "Did you mean 'random'?"),
        (["--agent", "random", "--model", "folder"], 2, "give one of them"),
        ([], 2, "which model?"),
        (["--agent", "random", "--greedy"], 1, "--greedy does not go with this agent"),
        (["--agent", "FILE:nothing"], 1, "has no 'nothing'"),
        (["--agent", "FILE:a_number"], 1, "predict(observation, deterministic)"),
        (["--agent", "FILE:short"], 1, "for 256 observations"),
        (["--agent", "FILE:floats"], 1, "float64"),
        (["--agent", "FILE:outside"], 1, "tokens are 0 to 7"),
        (["--agent", "FILE:stateful"], 1, "it keeps a state"),
        (["--agent", "FILE:raises"], 1, "raised KeyError"),
        (["--agent", "FILE:sorts", "--temperature", "2"], 2, "--temperature is for a --model"),
        (["--agent", "random", "--observation", "dict"], 2, "--observation dict is for an object"),
        (["--agent", "tabular", "--agent-timesteps", "0"], 2, "--agent-timesteps 0"),
    ],
)
def test_a_wrong_agent_is_told(flags, code, message, file, capsys):
    given = [flag.replace("FILE", str(file)) for flag in flags]
    assert exit_code("evaluate", *given, "--episodes", 256) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "\x1b" not in said


def test_an_agent_may_change_what_it_is_shown():
    shown = np.zeros((2, 3), dtype=np.int64)

    def changes(observations):
        observations[:] = 7
        return np.zeros(len(observations), dtype=int)

    CalledAgent(changes, 8, "mine").act(shown)
    assert (shown == 0).all()


def test_what_is_opened_acts_for_collect():
    settings = EvaluateSettings(agent="uniform-legal", task="copy")
    [actor] = open_agent(settings, make_problem(task="copy")).actors.values()
    actions, log_probs = actor.act(np.zeros((5, 8), dtype=np.int64))
    assert actions.shape == (5,) and np.exp(log_probs) == pytest.approx(1 / 4)
