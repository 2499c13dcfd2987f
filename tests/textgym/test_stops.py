"""Stop strings: where they end a text, within a token and across tokens."""

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from textgym import Vocabulary
from textgym.finish import FinishReason
from textgym.stops import StopStrings, checked_stop_strings

SEEN: list[tuple[list[str], list[list[int]]]] = []


def note(completions, completion_ids):
    SEEN.append((completions, completion_ids))
    return [float(len(text)) for text in completions]


def play(actions, *, reset=None, **keywords):
    SEEN.clear()
    env = gym.make("TextGen-v0", **{"prompts": ["a"], "reward": note, "max_new_tokens": 6, **keywords})
    env.reset(options=reset)
    for count, action in enumerate(actions, start=1):
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return count, reward, info
    raise AssertionError("the episode did not end")


LETTERS = ["a", "b", "ab", "E", "N", "D", "<eos>"]


@pytest.mark.parametrize(
    ("actions", "stop", "count", "completion"),
    [
        ([0, 3, 4, 5, 0], ["END"], 4, "a"),  # spans three tokens
        ([0, 2, 1], ["b"], 2, "aa"),  # the end of a longer token
        ([2, 2, 2], ["ba"], 2, "a"),  # begins in one token and ends in the next
        ([0, 2, 0], ["ab", "a"], 1, ""),  # the first that occurs
        ([0, 1, 3], ["bE", "abE"], 3, ""),  # both end together: the text is cut where the earlier begins
        ([1, 6], ["<eos>"], 2, "b"),  # the stop token comes first, and is no text
    ],
)
def test_a_text_ends_with_its_first_stop_string_and_is_cut_there(actions, stop, count, completion):
    taken, reward, info = play(actions, tokenizer=LETTERS, stop=stop)
    assert (taken, info["finish_reason"]) == (count, FinishReason.STOP)
    assert SEEN == [([completion], [actions[:count]])]  # the ids are whole
    assert reward == len(completion)


def test_a_stop_string_in_the_prompt_ends_nothing():
    taken, _, info = play([0, 0, 0], tokenizer=LETTERS, prompts=["END"], stop=["END", "D"], max_new_tokens=3)
    assert (taken, info["finish_reason"]) == (3, FinishReason.LIMIT)


def test_a_stop_string_that_the_prompt_begins_ends_nothing():
    taken, _, info = play([5, 0], tokenizer=LETTERS, prompts=["EN"], stop=["END"], max_new_tokens=2)
    assert (taken, info["finish_reason"]) == (2, FinishReason.LIMIT)


def test_a_stop_string_at_the_horizon_is_a_stop():
    taken, _, info = play([0, 1], tokenizer=LETTERS, stop=["ab"], max_new_tokens=2, on_limit="truncate")
    assert (taken, info["finish_reason"]) == (2, FinishReason.STOP)


def test_a_half_written_stop_string_stays_in_the_text():
    play([3, 4, 0], tokenizer=LETTERS, stop=["END"], max_new_tokens=3)
    assert SEEN[0][0] == ["ENa"]


def test_prefix_delta_sees_the_cut_text_too():
    env = gym.make(
        "TextGen-v0",
        tokenizer=LETTERS,
        prompts=["a"],
        reward=lambda completions: [float(len(text)) for text in completions],
        scheme="prefix_delta",
        stop=["END"],
    )
    env.reset()
    assert [env.step(action)[1] for action in (0, 3, 4, 5)] == [1.0, 1.0, 1.0, -2.0]


def test_a_prefix_that_holds_a_stop_string_has_ended_already():
    env = gym.make("TextGen-v0", tokenizer=LETTERS, prompts=["a"], reward=note, max_new_tokens=6, stop=["ND"]).unwrapped
    with pytest.raises(ValueError, match=r"ends the episode already: its text 'END' holds one of the stop strings"):
        env.reset(options={"completion_ids": [3, 4, 5]})
    env.reset(options={"completion_ids": [3, 4]})
    assert env.step(5)[2]


def test_rows_of_a_vector_environment_end_by_themselves():
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=3,
        tokenizer=LETTERS,
        prompts=["a"],
        reward=note,
        stop=["ab"],
        max_new_tokens=4,
        autoreset_mode="Disabled",
    )
    envs.reset(seed=0)
    envs.step(np.array([0, 2, 1]))
    *_, infos = envs.step(np.array([1, 0, 0]))
    assert infos["finish_reason"].tolist() == [1, 1, 0]
    assert infos["length"].tolist() == [3, 2, 3]


def test_a_long_text_is_searched_at_its_end_only_and_still_never_misses():
    vocabulary = Vocabulary.from_symbols(["x", "y", "yx"])
    stops = StopStrings(["xyyx"], vocabulary)
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(3, size=60).tolist()
        first = next((n for n in range(1, 61) if "xyyx" in vocabulary.decode(ids[:n])), None)
        found = next((n for n in range(1, 61) if stops.completed([ids[:n]])[0]), None)
        assert found == first


def test_a_stop_string_of_characters_that_span_byte_tokens():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({symbol: id_ for id_, symbol in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode("né。").ids
    assert len(ids) == 1 + 2 + 3
    taken, _, info = play([*ids, 0], tokenizer=tokenizer, stop=["é。"], max_new_tokens=9)
    assert (taken, info["finish_reason"]) == (6, FinishReason.STOP)
    assert SEEN[0][0] == ["n"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(None, ()), ([], ()), (["a"], ("a",)), (("b", " ", "b"), ("b", " ")), (["é\n"], ("é\n",))],
)
def test_stop_strings(stop, expected):
    assert checked_stop_strings(stop) == expected


@pytest.mark.parametrize(
    ("stop", "exception", "words"),
    [
        ("END", TypeError, ["stop is 'END' of type str", "give a list of strings"]),
        (5, TypeError, ["stop is 5 of type int", "list"]),
        ({"a"}, TypeError, ["stop is {'a'} of type set", "list"]),
        (["a", ""], ValueError, ["stop[1]", "empty"]),
        (["a", 3], TypeError, ["stop[1] is 3 of type int", "strings"]),
        ([b"a"], TypeError, ["stop[0] is b'a' of type bytes"]),
        (["\ud800"], ValueError, ["stop[0]", "lone surrogate"]),
    ],
)
def test_what_is_no_list_of_stop_strings(stop, exception, words):
    with pytest.raises(exception) as error:
        checked_stop_strings(stop)
    assert [word for word in words if word not in str(error.value)] == []


def test_none_and_an_empty_list_are_no_stop_strings():
    for stop in (None, []):
        assert not gym.make("TextGen-v0", stop=stop).unwrapped.problem.stop


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def test_what_the_tail_alone_decodes_to_is_no_stop_string():
    # A tail that begins inside a word shows the marks of its pieces, the text does not.
    taken, _, info = play([0, *[1] * 40], tokenizer=word_pieces(), stop=["##"], max_new_tokens=41)
    assert (taken, info["finish_reason"]) == (41, FinishReason.LIMIT)


def test_tokens_without_a_text_hide_no_stop_string():
    vocabulary = Vocabulary.from_symbols(["x", "E", "N", "D"])
    vocabulary.decode_batch = lambda rows: ["".join("xEND"[id_] for id_ in ids if id_) for ids in rows]
    vocabulary.decode = lambda ids: vocabulary.decode_batch([ids])[0]
    stops = StopStrings(["END"], vocabulary)
    assert stops.completed([[1, 2, *[0] * 70, 3], [1, 2, *[0] * 70]]) == [True, False]
