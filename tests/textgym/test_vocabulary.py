"""Text to ids and back, and where stop ids come from."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from textgym.vocabulary import Vocabulary, make_vocabulary


@pytest.mark.parametrize(
    ("symbols", "text", "ids"),
    [
        (["a", "b", "ab"], "aabb", [0, 2, 1]),  # the longest symbol that fits comes first
        (["ab", "b", "a"], "aabb", [2, 0, 1]),
        (["a", "aa", "aaa"], "aaaaa", [2, 1]),
        (["a", "<eos>"], "a<eos>a", [0, 1, 0]),
        ([".", "*", "\\", "["], "[\\*.", [3, 2, 1, 0]),  # nothing is a pattern
        ([" ", "\n", "é", "😀"], "\n é😀 ", [1, 0, 2, 3, 0]),
        (["a"], "", []),
    ],
)
def test_symbols_encode_by_longest_match_and_join_without_a_separator(symbols, text, ids):
    vocabulary = Vocabulary.from_symbols(symbols)
    assert vocabulary.encode(text) == ids
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_batch([text, text]) == [ids, ids]
    assert vocabulary.decode_batch([ids, ids]) == [text, text]


@given(st.lists(st.integers(0, 3), max_size=12))
def test_any_ids_decode_to_the_joined_symbols(ids):
    symbols = ["a", " b", "\t", "<eos>"]
    assert Vocabulary.from_symbols(symbols).decode(ids) == "".join(symbols[id_] for id_ in ids)


@pytest.mark.parametrize(
    ("symbols", "stop_ids", "expected"),
    [
        (["a", "<eos>", "b"], None, (1,)),
        (["a", "b"], None, ()),
        (["a", "<eos>", "b"], [], ()),
        (["a", "<eos>", "b"], [2, 0, 2], (0, 2)),
    ],
)
def test_stop_ids_of_symbols(symbols, stop_ids, expected):
    assert Vocabulary.from_symbols(symbols, stop_ids).stop_ids == expected


def test_pad_is_the_number_of_tokens():
    vocabulary = Vocabulary.from_symbols(["a", "b", "<eos>"])
    assert (vocabulary.size, vocabulary.pad_id) == (3, 3)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (dict(generation_config={"eos_token_id": 3}), (3,)),
        (dict(generation_config={"eos_token_id": [3, 2]}), (2, 3)),
        (dict(generation_config={"eos_token_id": 3}, tokenizer_config={"eos_token": "</s>"}), (3,)),
        (dict(generation_config={"max_length": 5}, tokenizer_config={"eos_token": "</s>"}), (2,)),
        (dict(tokenizer_config={"eos_token": {"content": "<end>", "lstrip": False}}), (3,)),
        (dict(tokenizer_config={"eos_token": None}), ()),
        ({}, ()),
    ],
)
def test_a_folder_supplies_its_stop_ids(make_folder, files, expected):
    assert make_vocabulary(str(make_folder(**files))).stop_ids == expected


def test_stop_ids_beyond_the_vocabulary_are_dropped_with_a_warning(make_folder):
    folder = make_folder(generation_config={"eos_token_id": [3, 7, 128_009]})
    with pytest.warns(UserWarning) as caught:
        vocabulary = make_vocabulary(folder)
    assert vocabulary.stop_ids == (3,)
    assert ["7" in str(caught[0].message), "128009" in str(caught[1].message), len(caught)] == [True, True, 2]


@pytest.mark.parametrize(("stop_ids", "expected"), [([], ()), ([4], (4,))])
def test_own_stop_ids_replace_those_of_a_folder(make_folder, stop_ids, expected):
    folder = make_folder(generation_config={"eos_token_id": [3, 999]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the folder's id outside the vocabulary does not matter then
        assert make_vocabulary(folder, stop_ids).stop_ids == expected


def test_a_bare_tokenizer_file_supplies_no_stop_ids(make_folder):
    folder = make_folder(generation_config={"eos_token_id": 3})
    assert make_vocabulary(folder / "tokenizer.json").stop_ids == ()


def test_added_tokens_count(make_folder, word_tokenizer):
    word_tokenizer.add_tokens(["purple"])
    vocabulary = make_vocabulary(make_folder())
    assert vocabulary.size == 8
    assert vocabulary.encode("purple red") == [1, 7, 4]


def test_a_hole_in_the_ids_counts_up_to_the_highest(make_folder):
    folder = make_folder()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["violet"] = 11
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert make_vocabulary(folder).size == 12


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("red blue", [1, 4, 6]),
        ("", [1]),
        ("<s>", [1, 1]),
        ("<s> red", [1, 1, 4]),
        ("red </s>", [1, 4, 2]),  # the text's own, not the template's
    ],
)
def test_the_opening_token_of_a_template_stays_and_the_closing_one_goes(make_folder, text, ids):
    vocabulary = make_vocabulary(make_folder())
    assert vocabulary.encode(text) == ids
    assert vocabulary.encode_batch([text, "green"]) == [ids, [1, 5]]


def test_a_tokenizer_without_a_template_adds_nothing(make_folder, word_tokenizer):
    word_tokenizer.post_processor = None
    assert make_vocabulary(make_folder()).encode("red blue") == [4, 6]


def test_special_tokens_stay_visible_when_decoded(make_folder):
    vocabulary = make_vocabulary(make_folder())
    for text in (vocabulary.decode([1, 4, 3]), *vocabulary.decode_batch([[1, 4, 3]])):
        assert text.split() == ["<s>", "red", "<end>"]


def test_truncation_and_padding_inside_the_file_are_ignored(make_folder, word_tokenizer):
    word_tokenizer.enable_truncation(max_length=3)
    word_tokenizer.enable_padding(length=9, pad_id=0, pad_token="<unk>")
    vocabulary = make_vocabulary(make_folder())
    assert vocabulary.encode_batch(["red red red red red", "red"]) == [[1, 4, 4, 4, 4, 4], [1, 4]]


def test_a_saved_vocabulary_opens_as_the_same_one(tmp_path):
    saved = Vocabulary.from_symbols(["a", "ab", "<eos>"])
    saved.save(tmp_path)
    opened = make_vocabulary(tmp_path)
    assert (opened.size, opened.stop_ids) == (3, (2,))
    assert opened.encode("aab<eos>") == [0, 1, 2] and opened.decode([0, 1]) == "aab"
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == {"a": 0, "ab": 1, "<eos>": 2}


def test_the_stop_token_may_stand_in_the_special_tokens_map(make_folder):
    folder = make_folder(special_tokens_map={"eos_token": "</s>"}, tokenizer_config={"bos_token": "<s>"})
    assert Vocabulary.from_path(folder).stop_ids == (2,)


def test_settings_of_a_folder_are_saved_again(make_folder, tmp_path_factory):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "x"}
    saved = tmp_path_factory.mktemp("saved")
    Vocabulary.from_path(make_folder(tokenizer_config=settings)).save(saved)
    assert json.loads((saved / "tokenizer_config.json").read_text()) == settings
    assert Vocabulary.from_path(saved).stop_ids == (2,)
