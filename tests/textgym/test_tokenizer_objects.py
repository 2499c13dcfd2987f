"""Tokenizers as objects, files and folders: they agree with each other and with transformers, and lose no character."""

import json

import gymnasium as gym
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from textgym.vocabulary import Vocabulary, make_vocabulary

SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = ["the cat sat on the mat. it's fine!", "Grüße, naïve café 你好 😀👍🏽", "a\n\tb  c", "😀 😀 x"]
TEXTS = [*CORPUS, "", " ", "</s> mat <s>", "cat\u00a0\u200b\u0301"]


def byte_level():
    options = dict(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False, **options)


def byte_fallback():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    options = dict(vocab_size=60, unk_token="<unk>")
    return tokenizer, trainers.UnigramTrainer(special_tokens=SPECIAL, show_progress=False, **options)


@pytest.fixture(params=[byte_level, byte_fallback, word_piece, unigram], ids=lambda build: build.__name__)
def tokenizer(request):
    """A trained tokenizer that puts `<s>` in front of a text and `</s>` behind it."""
    tokenizer, trainer = request.param()
    tokenizer.train_from_iterator(CORPUS, trainer)
    front, end = (("<s>", 1), ("</s>", 2))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[front, end])
    return tokenizer


def wrapped(tokenizer, **options):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


@pytest.fixture
def kinds(tokenizer, tmp_path):
    """The same tokenizer in every way that it can be given, and transformers' own."""
    oracle = wrapped(tokenizer)
    oracle.save_pretrained(tmp_path)
    given = {
        "tokenizers": tokenizer,
        "transformers": oracle,
        "opened": AutoTokenizer.from_pretrained(tmp_path),
        "folder": tmp_path,
        "file": str(tmp_path / "tokenizer.json"),
    }
    return oracle, {name: make_vocabulary(value) for name, value in given.items()}


def test_every_kind_agrees_with_transformers(kinds):
    oracle, vocabularies = kinds
    for name, vocabulary in vocabularies.items():
        assert vocabulary.size == len(oracle)
        assert vocabulary.stop_ids == (() if name in ("tokenizers", "file") else (2,))
        for text in TEXTS:
            ids = vocabulary.encode(text)
            assert ids == [1, *oracle(text, add_special_tokens=False)["input_ids"]]
            assert ids == oracle(text)["input_ids"][:-1]  # with BOS, without the closing token
            assert vocabulary.decode(ids) == oracle.decode(ids, skip_special_tokens=False)
            assert vocabulary.decode_batch([ids, [2, 1]]) == oracle.batch_decode([ids, [2, 1]])


def test_every_kind_is_saved_as_a_folder_that_transformers_opens(kinds, tmp_path):
    oracle, vocabularies = kinds
    for name, vocabulary in vocabularies.items():
        vocabulary.save(tmp_path / name)
        opened = AutoTokenizer.from_pretrained(tmp_path / name)
        for text in TEXTS:
            assert opened(text)["input_ids"] == oracle(text)["input_ids"]
        assert opened.eos_token == (None if name in ("tokenizers", "file") else "</s>")
        assert make_vocabulary(tmp_path / name).stop_ids == vocabulary.stop_ids


def test_the_objects_stay_as_they_are(tokenizer):
    tokenizer.enable_truncation(max_length=2)
    tokenizer.enable_padding(length=5)
    hugging_face = wrapped(tokenizer)
    before = tokenizer.to_str(), hugging_face.backend_tokenizer.to_str()
    for given in (tokenizer, hugging_face):
        assert len(make_vocabulary(given).encode("the cat sat on the mat")) > 5
    assert (tokenizer.to_str(), hugging_face.backend_tokenizer.to_str()) == before


def test_special_tokens_are_read_as_text_where_the_tokenizer_says_so(tokenizer, tmp_path):
    oracle = wrapped(tokenizer, split_special_tokens=True)
    oracle.save_pretrained(tmp_path)
    expected = oracle("<s>", add_special_tokens=False)["input_ids"]
    assert expected != [1]
    assert make_vocabulary(oracle).encode("<s>") == make_vocabulary(tmp_path).encode("<s>") == [1, *expected]


@pytest.mark.parametrize(("eos", "expected"), [(None, ()), (2, (2,)), ([5, 2], (2, 5))])
def test_the_stop_ids_of_an_object_are_its_eos(word_tokenizer, eos, expected):
    class HuggingFace:
        backend_tokenizer, eos_token_id = word_tokenizer, eos

        def save_pretrained(self, folder):
            raise AssertionError

    assert make_vocabulary(HuggingFace()).stop_ids == expected
    assert make_vocabulary(HuggingFace(), [4]).stop_ids == (4,)


def test_an_empty_list_takes_the_stop_ids_of_an_object_away(word_tokenizer):
    hugging_face = wrapped(word_tokenizer)
    assert make_vocabulary(hugging_face).stop_ids == (2,)
    assert make_vocabulary(hugging_face, []).stop_ids == ()


def test_a_stop_id_of_an_object_outside_its_tokens_is_dropped_with_a_warning(word_tokenizer):
    with pytest.warns(UserWarning, match="stop id 7 of the tokenizer of type Tokenizer is dropped.*0 to 6"):
        assert make_vocabulary(word_tokenizer, [2, 7]).stop_ids == (2,)


def test_a_tokenizer_written_in_python(tmp_path):
    oracle = ByT5Tokenizer()  # every byte b of UTF-8 is the token b + 3
    vocabulary = make_vocabulary(oracle)
    assert (vocabulary.size, vocabulary.stop_ids) == (384, (1,))
    assert vocabulary.encode("hé") == [0x68 + 3, 0xC3 + 3, 0xA9 + 3]
    assert vocabulary.decode([0x68 + 3, 0xC3 + 3, 0xA9 + 3, 259, 1]) == "hé<extra_id_0></s>"
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert ids == oracle(text, add_special_tokens=False)["input_ids"]
        assert vocabulary.decode_batch([ids, ids]) == oracle.batch_decode([ids, ids])
    with pytest.raises(ValueError, match=r"'\\ud800' at character 1 of .* is a lone surrogate"):
        vocabulary.encode("a\ud800")
    vocabulary.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("hé")["input_ids"] == oracle("hé")["input_ids"]


def test_an_environment_over_a_tokenizer_written_in_python():
    env = gym.make(
        "textgym:TextGen-v0", tokenizer=ByT5Tokenizer(), prompts=["A"], reward=lambda completions: map(len, completions)
    )
    assert env.action_space.n == 384
    assert env.reset(seed=0)[0][:2].tolist() == [ord("A") + 3, 384]


def test_ids_without_a_token_have_no_text():
    class Holey:
        eos_token_id = None
        get_vocab = staticmethod(lambda: {"a": 0, "b": 3})
        num_special_tokens_to_add = staticmethod(lambda pair: 0)

        def __call__(self, text, add_special_tokens, verbose):
            return {"input_ids": [{"a": 0, "b": 3}[char] for char in text]}

        def decode(self, ids, skip_special_tokens):
            return "".join({0: "a", 3: "b"}[id_] for id_ in ids)

        def save_pretrained(self, folder):
            raise AssertionError

    vocabulary = make_vocabulary(Holey())
    assert (vocabulary.size, vocabulary.encode("ab"), vocabulary.decode([0, 1, 2, 3])) == (4, [0, 3], "ab")


def test_parts_written_in_python_cannot_be_copied(word_tokenizer):
    class Lower:
        def normalize(self, text):
            text.lowercase()

    word_tokenizer.normalizer = normalizers.Normalizer.custom(Lower())
    with pytest.raises(ValueError, match="tokenizer of type Tokenizer cannot be copied"):
        make_vocabulary(word_tokenizer)


@pytest.mark.parametrize("value", [7, object(), {"a": 0}, {"a", "b"}, b"a", str])
def test_what_is_no_tokenizer(value):
    with pytest.raises(TypeError, match=f"tokenizer is .* of type {type(value).__name__}; give a list of symbols"):
        make_vocabulary(value)


def byte_pairs(**parts):
    """A byte-pair model of `a`, `b` and `ab`; what else it is given is a part of the tokenizer or an option."""
    options = {name: parts.pop(name) for name in ("unk_token", "byte_fallback", "end_of_word_suffix") if name in parts}
    vocabulary = {"a": 0, "b": 1, "ab": 2, **parts.pop("more", {})}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], **options))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    ("parts", "text", "ids"),
    [
        ({}, "abba", [2, 1, 0]),
        (dict(normalizer=normalizers.Lowercase()), "ABa", [2, 0]),
        (dict(normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), "áb", [2]),
        (dict(normalizer=normalizers.Replace("c", "")), "acb", [2]),
        (dict(normalizer=normalizers.Strip()), " ab\n", [2]),
        (dict(pre_tokenizer=pre_tokenizers.Whitespace()), "a b", [0, 1]),
        (dict(pre_tokenizer=pre_tokenizers.Split(Regex("c+"), "removed")), "accb", [0, 1]),
        (dict(unk_token="<unk>", more={"<unk>": 3}), "acb", [0, 3, 1]),
        (dict(byte_fallback=True, more={"<0x63>": 3}), "acb", [0, 3, 1]),
    ],
)
def test_what_a_tokenizer_takes_away_or_replaces_is_no_loss(parts, text, ids):
    assert make_vocabulary(byte_pairs(**parts)).encode(text) == ids


@pytest.mark.parametrize(
    ("parts", "text", "silently", "words"),
    [
        ({}, "abcab", [2, 2], ["no token for 'c' at character 2 of 'abcab'", "'a', 'ab', 'b'"]),
        ({}, "a b", [2], ["no token for ' ' at character 1"]),
        ({}, "ab\x1b", [2], [r"no token for '\x1b' at character 2"]),
        (dict(normalizer=normalizers.Lowercase()), "aXb", [2], ["no token for 'X' at character 1"]),
        (dict(byte_fallback=True, more={"<0x63>": 3}), "cd", [3], ["no token for 'd' at character 1"]),
        (dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)), "abé", [2], ["'é' at character 2"]),
        (dict(end_of_word_suffix="|", more={"b|": 3}), "aba", [2], ["cannot encode 'aba'", "has no token"]),
        (dict(normalizer=normalizers.Prepend("_")), "ab", [2], ["cannot encode 'ab'", "has no token"]),
    ],
)
def test_a_character_that_would_be_lost_is_refused(parts, text, silently, words):
    tokenizer = byte_pairs(**parts)
    assert tokenizer.encode(text).ids == silently  # what the library makes of it
    with pytest.raises(ValueError) as error:
        make_vocabulary(tokenizer).encode_batch(["", text])
    assert [word for word in words if word not in str(error.value)] == []


def test_the_refusal_is_not_saved(tmp_path):
    vocabulary = make_vocabulary(byte_pairs())
    vocabulary.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["unk_token"] is None
    with pytest.raises(ValueError, match="no token for 'c'"):
        vocabulary.encode("c")
    again = Vocabulary.from_object(vocabulary.tokenizer)  # one that refuses already
    with pytest.raises(ValueError, match="no token for 'c'"):
        again.encode("c")
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()
