"""Rows of prompts from every kind of source, as the environment and the reward function see them."""

import csv
import json
import tracemalloc

import datasets
import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import textgym
from textgym.prompts import MANY_ROWS, load_prompts
from textgym.vocabulary import Vocabulary

SYMBOLS = ["a", "b", "ab", "<eos>"]


def make(prompts, seen=None, **keywords):
    """An environment over the prompts whose reward function notes the keywords of its calls in `seen`."""

    def note(**received):
        if seen is not None:
            seen.append(received)
        return [0.0] * len(received["completions"])

    return gym.make(
        "textgym:TextGen-v0", prompts=prompts, tokenizer=SYMBOLS, reward=note, **{"max_new_tokens": 1, **keywords}
    )


def columns_of(prompts, index):
    seen = []
    env = make(prompts, seen)
    env.reset(options={"prompt_index": index})
    env.step(0)
    [received] = seen
    return {name: received[name] for name in received if name not in ("completions", "completion_ids")}


@pytest.mark.parametrize("as_file", [False, True], ids=["list", "jsonl"])
def test_a_missing_column_is_none(tmp_path, as_file):
    rows = [{"prompt": "a", "answer": "x"}, {"prompt": "b", "level": {"deep": [1, None]}}]
    if as_file:
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        rows = str(path)
    assert columns_of(rows, 0) == {"prompts": ["a"], "answer": ["x"], "level": [None]}
    assert columns_of(rows, 1) == {"prompts": ["b"], "answer": [None], "level": [{"deep": [1, None]}]}


def test_texts_and_dicts_may_be_mixed():
    assert columns_of(["a", {"prompt": "b", "answer": 1}], 0) == {"prompts": ["a"], "answer": [None]}


def test_a_file_may_have_blank_lines_windows_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "ab"}\r\n')
    env = make(path).unwrapped
    assert [env.problem.prompts[index].text for index in range(len(env.problem.prompts))] == ["a", "ab"]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "note": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert columns_of(path, 0)["note"] == ["x\u2028y\x85z"]


def test_room_is_made_for_the_longest_prompt():
    env = make(["a", "abba", "b"], max_new_tokens=2)  # ab, b, a
    assert env.observation_space.shape == (3 + 2,)
    assert env.reset(options={"prompt_index": 0})[0].tolist() == [0, 4, 4, 4, 4]
    assert env.reset(options={"prompt_index": 1})[0].tolist() == [2, 1, 0, 4, 4]


def test_each_prompt_is_drawn_equally_often():
    envs = gym.make_vec(
        "textgym:TextGen-v0",
        num_envs=3000,
        prompts=["a", "b", "ab", "a"],
        tokenizer=SYMBOLS,
        reward=lambda completions: [0.0] * len(completions),
        max_new_tokens=1,
    )
    counts = np.bincount(envs.reset(seed=0)[0][:, 0], minlength=3)
    expected = np.array([1500, 750, 750])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-squared, 2 degrees of freedom, p = .001


def test_a_row_that_the_reward_function_changed_is_handed_out_unchanged_next_time():
    def spoil(completions, completion_ids, prompts, answer):
        answer[0] = prompts[0] = "spoilt"
        completion_ids[0].clear()
        return [1.0] * len(completions)

    prompts = [{"prompt": "a", "answer": "kept"}]
    env = gym.make("textgym:TextGen-v0", prompts=prompts, tokenizer=SYMBOLS, reward=spoil, max_new_tokens=1)
    for _ in range(2):
        env.reset()
        assert env.step(1)[0].tolist() == [0, 1]
    assert env.unwrapped.problem.prompts[0].columns == {"answer": "kept"}


ROWS = [{"prompt": "ab", "answer": "x"}, {"prompt": "bba", "answer": ""}, {"prompt": "", "answer": "é,\n"}]


class Indexable:
    """A source with a length and an index and nothing else."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.rows[index]


class CallableRows(Indexable):
    def __call__(self, generator):
        raise AssertionError("what is sized is not called")


def every_source(folder):
    """The rows as each kind of source that holds columns."""
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["answer", "prompt"])
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    files = {name: folder / name for name in ("a.jsonl", "a.csv", "a.parquet")}
    objects = {kind.__name__: kind(ROWS) for kind in (Indexable, CallableRows, tuple)}
    return {"list": ROWS, "datasets": datasets.Dataset.from_list(ROWS), **files, **objects}


def vocabulary():
    return Vocabulary.from_symbols(SYMBOLS)


def contents(prompts):
    return [(prompt.text, prompt.ids.tolist(), prompt.columns) for prompt in prompts]


def test_every_kind_of_source_is_read_as_the_same_prompts(tmp_path):
    expected = [("ab", [2], {"answer": "x"}), ("bba", [1, 1, 0], {"answer": ""}), ("", [], {"answer": "é,\n"})]
    for name, source in every_source(tmp_path).items():
        prompts = load_prompts(source, vocabulary())
        assert contents(prompts) == expected, name
        assert (len(prompts), prompts.max_tokens, prompts.column_names) == (3, 3, ("answer",)), name
        assert (prompts.sized, prompts.score_answer) == (True, None)
        assert all(prompt.ids.dtype == np.int64 for prompt in prompts)
        assert load_prompts(source, vocabulary(), max_tokens=7).max_tokens == 7
        with pytest.raises(
            ValueError, match=r"(prompts|a\.parquet)\[1\]|a\.(jsonl|csv) line . *: field 'prompt' has 3 tok"
        ):
            load_prompts(source, vocabulary(), max_tokens=2)


def test_lines_of_a_text_file_have_no_columns(tmp_path):
    (tmp_path / "a.txt").write_text("ab\nb\n")
    prompts = load_prompts(str(tmp_path / "a.txt"), vocabulary())
    assert contents(prompts) == [("ab", [2], {}), ("b", [1], {})]
    assert prompts.column_names == ()


@pytest.mark.parametrize("index", [3, -1, 10**30])
def test_an_index_outside_the_rows(index):
    with pytest.raises(IndexError, match="of 3"):
        load_prompts(ROWS, vocabulary())[index]


def test_the_ids_of_a_prompt_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        load_prompts(ROWS, vocabulary())[0].ids[0] = 1


def test_a_draw_is_one_integer_of_the_generator(tmp_path):
    prompts = load_prompts(ROWS, vocabulary())
    drawn, counted = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        assert prompts.draw(drawn).text == ROWS[int(counted.integers(3))]["prompt"]
    assert drawn.bit_generator.state == counted.bit_generator.state


def draw(generator):
    return {"prompt": "ab"[int(generator.integers(2))], "bit": 1}


def test_a_function_draws_prompts_with_the_generator():
    prompts = load_prompts(draw, vocabulary(), max_tokens=2)
    assert (prompts.sized, prompts.max_tokens, prompts.column_names) == (False, 2, ())
    bits = np.random.default_rng(5).integers(2, size=10)
    generator = np.random.default_rng(5)
    for bit in bits:
        text, ids, columns = prompts.draw(generator)
        assert (text, ids.tolist(), columns) == ("ab"[bit], [bit], {"bit": 1})
    for use in (len, list, lambda prompts: prompts[0]):
        with pytest.raises(TypeError, match="function 'draw': they have no number and no index"):
            use(prompts)


def test_a_function_may_return_a_text():
    assert load_prompts(lambda generator: "ab", vocabulary(), 1).draw(np.random.default_rng()).ids.tolist() == [2]


@pytest.mark.parametrize(
    ("returned", "exception", "words"),
    [
        (None, TypeError, ["'returns' returned is of type NoneType", "dict with a 'prompt'"]),
        ({"promt": "a"}, ValueError, ["no field 'prompt'", "Did you mean"]),
        ({"prompt": 3}, TypeError, ["field 'prompt' is 3 of type int"]),
        ({"prompt": "a", "completions": 3}, ValueError, ["'completions'"]),
        ({"prompt": "a?"}, ValueError, ["'returns' returned: field 'prompt': no token for '?'"]),
        ("aaaa", ValueError, ["4 tokens", "max_prompt_tokens=3"]),
        (ZeroDivisionError("x"), ValueError, ["the prompts function 'returns' raised ZeroDivisionError: x"]),
    ],
)
def test_each_drawn_prompt_is_checked(returned, exception, words):
    def returns(generator):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(exception) as error:
        load_prompts(returns, vocabulary(), 3).draw(np.random.default_rng())
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("source", "exception", "words"),
    [
        ({"prompt": ["a"]}, TypeError, ["prompts is a dict with the keys ['prompt']", "give a list"]),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), TypeError, ["DatasetDict", "['train']"]),
        ({"a"}, TypeError, ["prompts is of type set", "a function of a generator"]),
        (iter(["a"]), TypeError, ["prompts is of type list_iterator"]),
        (None, TypeError, ["NoneType"]),
        (b"a", TypeError, ["prompts[0] is of type int"]),
        (np.array([["a"]]), TypeError, ["prompts[0] is of type ndarray"]),
        (Indexable([]), ValueError, ["empty", "at least one"]),
        (Indexable(["a", "b?"]), ValueError, ["prompts[1]: field 'prompt': no token for '?'"]),
        (Indexable({0: "a", 2: "b"}), ValueError, ["prompts[1] cannot be read: KeyError: 1"]),
        (lambda: "a", TypeError, ["'<lambda>'", "a generator alone"]),
        (draw, ValueError, ["the function 'draw'", "give max_prompt_tokens"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_source_of_prompts(source, exception, words):
    with pytest.raises(exception) as error:
        load_prompts(source, vocabulary(), 3 if "alone" in str(words) else None)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_object_of_many_rows_is_read_when_asked():
    class Many(Indexable):
        def __len__(self):
            return MANY_ROWS + 1

    rows = Many({0: {"prompt": "ab", "n": 0}, 7: {"prompt": "bbb"}, 8: "a?", 9: "aaaa"})
    with pytest.raises(ValueError, match="Many has 100001 rows.*give max_prompt_tokens"):
        load_prompts(rows, vocabulary())
    prompts = load_prompts(rows, vocabulary(), max_tokens=3)
    assert (len(prompts), prompts.max_tokens, prompts.column_names) == (100_001, 3, ("n",))
    assert contents([prompts[7], prompts[7]]) == [("bbb", [1, 1, 1], {})] * 2
    assert rows.asked == [0, 7]  # and an encoded row is kept
    for index, words in (
        (8, r"prompts\[8\].*'\?'"),
        (9, r"prompts\[9\].*4 tokens"),
        (10, r"prompts\[10\] cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            prompts[index]
    with pytest.raises(IndexError):
        prompts[MANY_ROWS + 1]


def test_a_list_of_many_rows_is_checked_at_once():
    with pytest.raises(ValueError, match=r"prompts\[100001\].*'\?'"):
        load_prompts(["a"] * (MANY_ROWS + 1) + ["?"], vocabulary(), max_tokens=1)


class Questions(Indexable):
    """A dataset as reasoning-gym makes them."""

    def score_answer(self, answer, entry):
        return float(answer == entry["answer"])


def test_a_dataset_of_questions():
    row = {"question": "ab", "answer": "3", "metadata": {"difficulty": (1, 2)}}
    dataset = Questions([row, {"prompt": "b", "question": "q"}])
    prompts = load_prompts(dataset, vocabulary())
    assert prompts[0].text == "ab"
    columns = {"answer": "3", "metadata": {"difficulty": (1, 2)}, "entry": row, "question": None}
    assert prompts[0].columns == columns
    assert prompts[1].text == "b"  # a row with a prompt stays as it is
    assert prompts[1].columns == {"answer": None, "metadata": None, "entry": None, "question": "q"}
    assert prompts.score_answer == dataset.score_answer
    assert prompts.score_answer(answer="3", entry=prompts[0].columns["entry"]) == 1.0


@pytest.mark.full
def test_a_dataset_of_reasoning_gym():
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("leg_counting", size=20, seed=1)
    texts = [dataset[index]["question"] for index in range(20)]
    symbols = sorted(set("".join(texts)))
    prompts = load_prompts(dataset, Vocabulary.from_symbols(symbols))
    assert [prompt.text for prompt in prompts] == texts
    assert prompts.max_tokens == max(map(len, texts))
    assert prompts.column_names == ("answer", "metadata", "entry")
    for prompt in prompts:
        entry = prompt.columns["entry"]
        assert entry["question"] == prompt.text
        assert prompts.score_answer(answer=prompt.columns["answer"], entry=entry) == 1.0
        assert prompts.score_answer(answer="no number", entry=entry) < 1.0


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_many_prompts_take_little_memory(count):
    rows = [{"prompt": "ab" * 10, "answer": None} for _ in range(count)]
    words = vocabulary()
    tracemalloc.start()
    prompts = load_prompts(rows, words)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prompts[count - 1].ids.tolist() == [2] * 10
    # 8 bytes for each of 10 ids and for the start, 48 for a tuple of one column, 16 in two lists; an array and a dict
    # for each row would be 300 more.
    assert kept < count * 200
    assert peak < count * 1000


def answered(completions, answer):
    return [0.0 if one is None else float(one) for one in answer]


class Sparse:
    """More rows than are read at once; every other one has an answer."""

    def __len__(self):
        return MANY_ROWS + 2

    def __getitem__(self, index):
        return {"prompt": "a", "answer": 5} if index % 2 else {"prompt": "b"}


@pytest.mark.parametrize(
    "prompts",
    [Sparse(), lambda generator: Sparse()[int(generator.integers(2))], ["b", {"prompt": "a", "answer": 5}]],
    ids=["lazy", "function", "list"],
)
def test_a_column_that_a_row_lacks_is_none_whatever_its_neighbours_have(prompts):
    keywords = dict(
        tokenizer=["a", "b", "<eos>"], prompts=prompts, max_prompt_tokens=1, reward=answered, max_new_tokens=1
    )
    env, scores = gym.make("TextGen-v0", **keywords), {}
    for seed in range(12):
        first = int(env.reset(seed=seed)[0][0])
        scores[first] = env.step(0)[1]
    assert scores == {0: 5.0, 1: 0.0}
    env.reset(options={"prompt": "a"})
    assert env.step(0)[1] == 0.0


def test_a_registered_task_of_a_list_is_checked_when_it_is_made():
    task = textgym.Task(
        name="bad_rows",
        level=1,
        tokenizer=["a", "b"],
        prompts=["a", "zz"],
        max_prompt_tokens=1,
        max_new_tokens=1,
        reward=lambda completions: [0.0] * len(completions),
    )
    textgym.register_task("bad_rows", lambda level: task)
    try:
        with pytest.raises(ValueError, match=r"prompts\[1\].* no token for 'z'"):
            gym.make("TextGen-v0", task="bad_rows")
    finally:
        del textgym.TASKS["bad_rows"]


def test_a_task_does_not_take_a_bound_below_its_own_prompts():
    with pytest.raises(ValueError, match="max_prompt_tokens=4, and task 'addition' has prompts of up to 6 tokens"):
        gym.make("TextGen-v0", task="addition", level=2, max_prompt_tokens=4)


class Sums:
    """Shaped like a data set of reasoning-gym."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"question": f"{index}+1=", "answer": str(index + 1), "metadata": {"index": index}}

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.25 * bool(answer)


def test_a_data_set_that_scores_its_answers_is_prompts_and_reward_in_one_line():
    env = gym.make("TextGen-v0", prompts=Sums(), tokenizer=[*"0123456789+=", "<eos>"], max_new_tokens=2)
    env.reset(options={"prompt_index": 3})
    env.step(4)
    assert env.step(12)[1] == 1.0
    env.reset(options={"prompt_index": 2})
    assert [env.step(action)[1] for action in (9, 9)] == [0.0, 0.25]


def test_the_scoring_of_a_data_set_may_be_given_as_the_reward():
    data = Sums()
    keywords = dict(tokenizer=[*"0123456789+=", "<eos>"], max_new_tokens=1)
    env = gym.make("TextGen-v0", prompts=data, reward={"right": (data.score_answer, 2.0)}, **keywords)
    env.reset(options={"prompt_index": 0})
    assert env.step(1)[1] == 2.0
