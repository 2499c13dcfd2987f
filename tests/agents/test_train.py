"""What `textgym train` says of prompts, dropped episodes and hidden scores, at the beginning and at the end."""

from dataclasses import replace

import numpy as np
import pytest

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.settings import TrainSettings
from agents.train import _print_header, _result_on_fresh_episodes
from tests.agents import tiny
from tests.agents.test_collect_options import drawing_envs
from tests.textgym import cases
from textgym.rewards import Scores, Texts
from textgym.vector_env import TextGenVectorEnv


class KnownParts:
    """A reward that pays 1/2 and drops the texts of some prompts."""

    names = ("known_parts",)
    draws = False

    def __init__(self, *dropped: str) -> None:
        self.dropped = dropped

    def __call__(self, texts: Texts) -> Scores:
        kept = np.array([prompt not in self.dropped for prompt in texts.prompts])
        score = np.where(kept, 0.5, 0.0)
        return Scores(score, score[:, None], kept[:, None], kept)


def learner_of(envs: TextGenVectorEnv) -> PolicyGradient:
    return PolicyGradient(TransformerPolicy.small(envs, d_model=16), envs, group_size=2, episodes_per_update=8)


def result_of(*dropped: str) -> str:
    problem = replace(tiny.make_envs().unwrapped.problem, reward=KnownParts(*dropped))
    return _result_on_fresh_episodes(TrainSettings(), learner_of(TextGenVectorEnv(40, problem=problem)))


def test_the_return_at_the_end_is_that_of_the_episodes_that_count():
    assert result_of() == "return 0.500 over 40 fresh episodes, "
    some = result_of("a")  # one of the two prompts
    count = int(some.removeprefix("return 0.500 over ").split()[0])
    assert 5 < count < 35 and some == f"return 0.500 over {count} fresh episodes and {40 - count} dropped, "
    assert result_of("a", "bc") == "all 40 fresh episodes dropped, "


def test_the_hidden_score_stands_beside_the_return_at_the_end():
    envs = cases.make_vec("masked", num_envs=8)
    words = _result_on_fresh_episodes(TrainSettings(), learner_of(envs)).split(", ")
    assert words[0].startswith("return 0.") and words[1].startswith("true score ")
    assert words[1].endswith("over 8 fresh episodes")
    assert 0 < float(words[1].split()[2]) <= 1


@pytest.mark.parametrize(("drawn", "words"), [(True, "prompts from a function"), (False, "2 prompts")])
def test_the_header_counts_prompts_where_they_have_a_number(drawn, words, capsys):
    envs = drawing_envs(4)[0] if drawn else tiny.make_envs()
    _print_header(TrainSettings(), learner_of(envs))
    assert f"textgym train: {words}; rloo" in capsys.readouterr().out
