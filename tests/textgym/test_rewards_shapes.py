"""Functions written for TRL and for reasoning-gym run unchanged; files that name their neighbours alike keep apart."""

import sys

import pytest

import textgym
from tests.textgym.reward_cases import length, texts, trained
from textgym.rewards import cached, load_reward


class DataSet:
    """Scores as reasoning-gym's data sets do."""

    def __init__(self):
        self.calls = 0

    def score_answer(self, answer, entry):
        self.calls += 1
        return float(answer == entry["answer"])


ENTRIES = [{"answer": ""}, {"answer": "x", "metadata": {"difficulty": (2, 6)}}, {"answer": "abab"}]


@pytest.mark.parametrize("options", [{}, {"timeout": 30}, {"on_error": "drop"}], ids=str)
def test_score_answer_scores_each_completion(options):
    reward = load_reward(DataSet().score_answer, **options)
    assert reward.names == ("score_answer",)
    assert reward(texts(entry=ENTRIES, answer=[1, 2, 3])).score.tolist() == [1.0, 0.0, 1.0]


def test_score_answer_can_be_cached_and_weighted():
    data = DataSet()
    reward = load_reward({"right": (cached(data.score_answer), 2.0), "length": length})
    for _ in range(2):
        assert reward(texts(entry=ENTRIES)).score.tolist() == [2.0, 1.0, 6.0]
    assert data.calls == 3


@pytest.mark.parametrize("function", [DataSet().score_answer, cached(DataSet().score_answer)])
def test_score_answer_needs_the_column_entry(function):
    with pytest.raises(textgym.RewardError, match="'score_answer' asks for the column 'entry', which the prompts do"):
        load_reward(function)(texts())


def test_an_answer_that_fails_is_shown():
    def score_answer(answer, entry):
        return 1.0 / len(answer)

    given = texts(["a", "", "b"], entry=[{}] * 3)
    with pytest.raises(textgym.RewardError, match="raised ZeroDivisionError: .* .completion 1 of 3") as error:
        load_reward(score_answer)(given)
    assert "prompt: 'p1'" in str(error.value) and isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.warns(UserWarning, match="prompt: 'p1'"):
        assert load_reward(score_answer, on_error="drop")(given).score.tolist() == [1.0, 0.0, 1.0]


def test_a_function_that_also_asks_for_completions_or_for_everything_is_batched():
    def of_completions(completions, answer, entry):
        return [float(answer == ["r"] and entry == ["s"] and completions == ["t"])]

    def of_everything(answer, entry, **others):
        return [float(answer == ["r"] and entry == ["s"] and others["completions"] == ["t"])]

    given = texts(["t"], answer=["r"], entry=["s"])
    assert load_reward([of_completions, of_everything])(given).scores.tolist() == [[1.0, 1.0]]


@pytest.mark.full  # installing the library takes a C compiler
def test_a_data_set_of_reasoning_gym_scores_its_own_answers():
    import reasoning_gym

    data = reasoning_gym.create_dataset("chain_sum", size=3, seed=1)
    given = texts([data[0]["answer"], "no", data[2]["answer"]], entry=[data[row] for row in range(3)])
    expected = [data.score_answer(answer, data[row]) for row, answer in enumerate(given.completions)]
    function = cached(data.score_answer)
    for _ in range(2):
        assert load_reward(function)(given).score.tolist() == expected
    assert expected[0] == expected[2] == 1.0 > expected[1]
    assert (function.hits, function.misses) == (3, 3)


def test_a_function_of_trl_gets_what_its_trainer_hands_out():
    assert load_reward(trained)(texts()).score.tolist() == [1.0] * 3


def test_a_column_comes_before_what_a_trainer_hands_out():
    def function(completions, trainer_state):
        return trainer_state

    assert load_reward(function)(texts(["a"], trainer_state=[5.0])).score.tolist() == [5.0]


def test_what_a_trainer_hands_out_never_comes_through_other_keywords():
    def function(completions, **others):
        assert set(others) == {"prompts", "completion_ids"}
        return [0.0] * len(completions)

    load_reward(function)(texts())


def reward_file(folder, value, helper):
    """A file that scores by a value of a helper next to it, and by one of a package next to it."""
    folder.mkdir()
    (folder / f"{helper}.py").write_text(f"value = {value}\n")
    (folder / f"{helper}_package").mkdir()
    (folder / f"{helper}_package" / "__init__.py").write_text("")
    (folder / f"{helper}_package" / "inner.py").write_text(f"value = {value / 100}\n")
    (folder / "reward.py").write_text(
        f"import {helper}\nfrom {helper}_package.inner import value\n"
        f"def score(completions):\n    return [{helper}.value + value] * len(completions)\n"
    )
    return f"{folder / 'reward.py'}:score"


def test_files_whose_neighbours_share_a_name_use_their_own(tmp_path):
    places = [reward_file(tmp_path / str(value), value, "helper_of_shapes") for value in (1, 2, 3)]
    rewards = [load_reward(place) for place in [*places, places[0]]]
    assert [reward(texts(["a"])).score.item() for reward in rewards] == [1.01, 2.02, 3.03, 1.01]


def test_a_neighbour_that_another_folder_lacks_is_shared_as_any_module(tmp_path):
    load_reward(reward_file(tmp_path / "first", 1, "helper_of_one"))
    module = sys.modules["helper_of_one"]
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "reward.py").write_text(
        "import sys\ndef score(completions):\n    return [float('helper_of_one' in sys.modules)] * len(completions)\n"
    )
    assert load_reward(f"{tmp_path}/second/reward.py:score")(texts(["a"])).score.tolist() == [1.0]
    assert sys.modules["helper_of_one"] is module
