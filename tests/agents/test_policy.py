"""TransformerPolicy against the plain Hugging Face model that it wraps."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents import tiny
from tests.agents.tiny import PAD, PROMPTS, STOP, A, B, C
from textgym.vocabulary import Vocabulary

CLOSE = 1e-5
HISTORIES = [[A], [B, C], [C, A, B, B], [STOP, A, STOP], [B, B, A, C, A, C, A]]


def small(seed: int = 0, **settings: Any) -> TransformerPolicy:
    return TransformerPolicy.small(tiny.make_envs(max_new_tokens=6), d_model=32, seed=seed, **settings)


def observations_of(histories, padding: int = 0) -> np.ndarray:
    """The histories, padded on the right by at least `padding`."""
    array = np.full((len(histories), max(map(len, histories)) + padding), PAD, dtype=np.int64)
    for row, history in enumerate(histories):
        array[row, : len(history)] = history
    return array


def plain_log_probs(model: PreTrainedModel, history, size: int = 4) -> np.ndarray:
    """Log-softmax of the first `size` logits after an unpadded history."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(history)])).logits[0, -1, :size]
    return torch.log_softmax(logits, dim=-1).numpy()


def assert_same_generator(before: torch.Tensor) -> None:
    assert torch.equal(torch.get_rng_state(), before)


# --- the contract of act


@pytest.mark.parametrize("deterministic", [False, True])
def test_act_returns_detached_numpy(deterministic):
    actions, log_probs = small().act(observations_of(HISTORIES), deterministic=deterministic)
    assert (type(actions), actions.dtype, actions.shape) == (np.ndarray, np.int64, (5,))
    assert (type(log_probs), log_probs.dtype, log_probs.shape) == (np.ndarray, np.float32, (5,))
    assert (log_probs < 0).all() and ((actions >= 0) & (actions < 4)).all()


def test_act_scores_what_it_draws():
    policy = small()
    observations = observations_of(HISTORIES)
    for seed in range(5):
        actions, log_probs = policy.act(observations, torch.Generator().manual_seed(seed))
        expected = [plain_log_probs(policy.model, h)[a] for h, a in zip(HISTORIES, actions, strict=True)]
        np.testing.assert_allclose(log_probs, expected, atol=CLOSE)


def test_act_draws_with_the_generator_it_is_given():
    policy = small()
    observations = observations_of(HISTORIES * 20)

    def act(seed):
        return policy.act(observations, torch.Generator().manual_seed(seed))[0].tolist()

    assert act(1) == act(1) != act(2)


def test_act_draws_with_its_own_seeded_generator_otherwise():
    observations = observations_of(HISTORIES * 20)
    weights = small().model.state_dict()

    def two_draws(seed):
        policy = small(seed)
        policy.model.load_state_dict(weights)
        return [policy.act(observations)[0].tolist() for _ in range(2)]

    assert two_draws(1) == two_draws(1)
    assert two_draws(1)[0] != two_draws(1)[1]
    assert two_draws(1) != two_draws(2)


def test_draws_follow_the_model():
    policy = small()
    actions, _ = policy.act(observations_of([[B, C]] * 20_000))
    frequencies = np.bincount(actions, minlength=4) / 20_000
    np.testing.assert_allclose(frequencies, np.exp(plain_log_probs(policy.model, [B, C])), atol=0.02)


def test_deterministic_takes_the_most_probable():
    policy = small()
    actions, log_probs = policy.act(observations_of(HISTORIES), deterministic=True)
    tables = [plain_log_probs(policy.model, history) for history in HISTORIES]
    assert actions.tolist() == [int(table.argmax()) for table in tables]
    np.testing.assert_allclose(log_probs, [table.max() for table in tables], atol=CLOSE)


@pytest.mark.parametrize("dtype", [bool, np.int8])
def test_an_action_mask_leaves_the_legal_tokens(dtype):
    policy = small()
    mask = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=dtype)
    for seed in range(20):
        actions, log_probs = policy.act(
            observations_of(HISTORIES), torch.Generator().manual_seed(seed), action_mask=mask
        )
        assert mask[np.arange(5), actions].all()
        for row, history in enumerate(HISTORIES):
            probs = np.exp(plain_log_probs(policy.model, history)) * mask[row]
            assert log_probs[row] == pytest.approx(np.log(probs[actions[row]] / probs.sum()), abs=CLOSE)


def test_temperature_is_part_of_the_policy():
    policy = small(temperature=2.0)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[B, C]])).logits[0, -1, :4].double().numpy()
    weights = np.sqrt(np.exp(logits))  # halved logits
    expected = np.log(weights / weights.sum())
    for _ in range(10):
        actions, log_probs = policy.act(observations_of([[B, C]]))
        assert log_probs[0] == pytest.approx(expected[actions[0]], abs=CLOSE)
    episode = tiny.Episode(1, [B, C], [STOP], [0.0], 1)
    assert policy.log_probs(tiny.rollout_of([episode])).item() == pytest.approx(expected[STOP], abs=CLOSE)


def test_the_global_generator_stays_as_it_is():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    policy = small(seed=3)
    assert_same_generator(before)
    policy.act(observations_of(HISTORIES))
    policy.act(observations_of(HISTORIES), torch.Generator().manual_seed(1))
    collect(policy, tiny.make_envs(), 4, np.random.default_rng(0))
    assert_same_generator(before)


def test_the_seed_decides_the_weights_and_the_global_generator_does_not():
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(global_seed)
        weights.append(torch.cat([p.flatten() for p in small(seed).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- log-probs of episodes


def episodes_of_unequal_length() -> Rollout:
    return tiny.rollout_of(
        [
            tiny.Episode(0, [A], [STOP], [1.0], 1),
            tiny.Episode(1, [B, C], [A, B, C, A, A, B], [0.0] * 6, 2),
            tiny.Episode(0, [A], [C, C, STOP], [0.0] * 3, 1),
            tiny.Episode(1, [B, C, STOP], [B, STOP], [0.0] * 2, 1),
        ]
    )


def expected_log_probs(model: PreTrainedModel, rollout: Rollout, size: int = 4) -> np.ndarray:
    expected = np.zeros(rollout.mask.shape)
    for row, step in zip(*np.nonzero(rollout.mask), strict=True):
        history = rollout.tokens[row, : rollout.prompt_length[row] + step]
        expected[row, step] = plain_log_probs(model, history, size)[rollout.actions[row, step]]
    return expected


def pad(rollout: Rollout, more: int) -> Rollout:
    """The same episodes with wider padding."""

    def wide(array, value):
        return np.pad(array, ((0, 0), (0, more)), constant_values=value)

    columns = {name: wide(getattr(rollout, name), 0) for name in ("actions", "mask", "log_probs", "rewards")}
    return rollout._replace(tokens=wide(rollout.tokens, PAD), **columns)


def test_log_probs_equal_the_plain_models(tmp_path):
    policy = small()
    policy.save_pretrained(tmp_path)
    rollout = episodes_of_unequal_length()
    expected = expected_log_probs(AutoModelForCausalLM.from_pretrained(tmp_path), rollout)
    actual = policy.log_probs(rollout)
    assert actual.requires_grad
    np.testing.assert_allclose(actual.detach().numpy(), expected, atol=CLOSE)
    assert (actual.detach().numpy()[~rollout.mask] == 0).all()


@pytest.mark.parametrize("more", [0, 1, 5, 40])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0], [1, 1, 1]])
def test_log_probs_know_neither_padding_nor_batch(more, order):
    policy = small()
    rollout = episodes_of_unequal_length()
    expected = expected_log_probs(policy.model, rollout)[order]
    shown = pad(rollout.select(np.array(order)), more)
    actual = policy.log_probs(shown).detach().numpy()
    steps = min(actual.shape[1], expected.shape[1])
    np.testing.assert_allclose(actual[:, :steps], expected[:, :steps], atol=CLOSE)
    assert not actual[:, steps:].any() and not expected[:, steps:].any()


@pytest.mark.parametrize("more", [0, 1, 30])
def test_act_knows_neither_padding_nor_batch(more):
    policy = small()
    for order in (range(5), reversed(range(5)), [4], [0]):
        histories = [HISTORIES[row] for row in order]
        actions, log_probs = policy.act(observations_of(histories, more))
        expected = [plain_log_probs(policy.model, h)[a] for h, a in zip(histories, actions, strict=True)]
        np.testing.assert_allclose(log_probs, expected, atol=CLOSE)


def test_rows_do_not_see_each_other():
    policy = small()
    rollout = episodes_of_unequal_length()
    before = policy.log_probs(rollout).detach()
    tokens, actions = rollout.tokens.copy(), rollout.actions.copy()
    tokens[1, 2:8], actions[1, :6] = C, C
    after = policy.log_probs(rollout._replace(tokens=tokens, actions=actions)).detach()
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]], rtol=0, atol=1e-6)
    assert not torch.allclose(after[1], before[1])


def test_gradients_reach_the_parameters_and_act_leaves_none():
    policy = small()
    policy.act(observations_of(HISTORIES))
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.log_probs(episodes_of_unequal_length()).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


# --- ids that are no tokens


class SeenIds:
    """Notes every id that the model is given."""

    def __init__(self, policy: TransformerPolicy) -> None:
        self.ids: set[int] = set()
        policy.model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module, args):
        self.ids |= set(args[0].flatten().tolist())


def padded_gpt2(rows: int, **config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.3)
    return GPT2LMHeadModel(GPT2Config(**(sizes | dict(bos_token_id=None, eos_token_id=None) | config))).eval()


def test_pad_is_replaced_before_the_model():
    model = padded_gpt2(rows=4)  # PAD = 4 has no embedding
    policy = TransformerPolicy(model, 4)
    seen = SeenIds(policy)
    policy.act(observations_of(HISTORIES, padding=3))
    policy.log_probs(episodes_of_unequal_length())
    assert seen.ids and max(seen.ids) < 4


def test_embeddings_beyond_the_vocabulary_lie_outside_the_distribution():
    model = padded_gpt2(rows=64)
    with torch.no_grad():
        model.lm_head.weight[4:] *= 10  # loud, and never heard
    policy = TransformerPolicy(model, 4)
    actions, log_probs = policy.act(observations_of([[B, C]] * 500))
    assert actions.max() < 4
    np.testing.assert_allclose(log_probs, plain_log_probs(model, [B, C])[actions], atol=CLOSE)
    assert np.exp(plain_log_probs(model, [B, C])).sum() == pytest.approx(1, abs=1e-6)
    rollout = episodes_of_unequal_length()
    np.testing.assert_allclose(
        policy.log_probs(rollout).detach().numpy(), expected_log_probs(model, rollout), atol=CLOSE
    )


def test_an_empty_history_is_fed_as_bos():
    policy = small()
    assert policy.bos_id == 4
    expected = plain_log_probs(policy.model, [policy.bos_id])
    for padding in (1, 5):
        actions, log_probs = policy.act(observations_of([[], [B, C]], padding))
        assert log_probs[0] == pytest.approx(expected[actions[0]], abs=CLOSE)
        assert log_probs[1] == pytest.approx(plain_log_probs(policy.model, [B, C])[actions[1]], abs=CLOSE)
    rollout = tiny.rollout_of([tiny.Episode(0, [], [B, STOP], [0.0, 1.0], 1), tiny.Episode(0, [A], [C], [0.0], 2)])
    actual = policy.log_probs(rollout).detach().numpy()
    assert actual[0, 0] == pytest.approx(expected[B], abs=CLOSE)
    assert actual[0, 1] == pytest.approx(plain_log_probs(policy.model, [B])[STOP], abs=CLOSE)
    assert actual[1, 0] == pytest.approx(plain_log_probs(policy.model, [A])[C], abs=CLOSE)


def test_an_empty_history_is_refused_without_bos():
    policy = TransformerPolicy(padded_gpt2(rows=4), 4)
    policy.act(observations_of([[A]]))
    with pytest.raises(ValueError, match="no BOS"):
        policy.act(observations_of([[], [A]], padding=1))


@pytest.mark.parametrize("wrong", [[-1, 0, PAD], [0, 5, PAD], [0, 1000, PAD]])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    with pytest.raises(ValueError, match=r"this policy has tokens 0 to 3 and PAD = 4"):
        small().act(np.array([wrong]))


@pytest.mark.parametrize(
    "wrong", [np.zeros(3, dtype=np.int64), np.zeros((1, 2, 3), dtype=np.int64), np.zeros((2, 3)), np.int64(1)], ids=str
)
def test_observations_of_another_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=r"give integers of shape \[N, L\]"):
        small().act(wrong)


def test_a_history_longer_than_the_model_is_refused():
    policy = TransformerPolicy(padded_gpt2(rows=4, n_positions=5), 4)
    assert policy.max_length == 5
    policy.act(np.full((1, 5), A))
    with pytest.raises(ValueError, match="6 tokens, more than the 5 of the model"):
        policy.act(np.full((1, 6), A))
    policy.act(observations_of([[A] * 5], padding=4))  # padding is no token


def test_a_mask_without_a_legal_token_is_refused():
    with pytest.raises(ValueError, match="without a legal token"):
        small().act(observations_of([[A], [B]]), action_mask=np.array([[1, 1, 1, 1], [0, 0, 0, 0]]))


# --- small


def test_small_takes_an_environment_or_a_number():
    envs = tiny.make_envs()
    for given in (envs, gym.vector.VectorWrapper(envs), tiny.make_env()):  # gym.make wraps
        policy = TransformerPolicy.small(given)
        assert (policy.size, policy.vocabulary.stop_ids) == (4, (STOP,))
    assert TransformerPolicy.small(np.int64(7)).size == 7


def test_small_fits_histories_longer_than_usual():
    envs = tiny.make_envs(num_envs=1, max_new_tokens=1500)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1)
    actions, _ = policy.act(np.full((1, 1501), A))
    assert 0 <= actions[0] < policy.size


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-3, ValueError), (True, TypeError), ("4", TypeError)])
def test_small_refuses_what_is_no_environment(given, error):
    with pytest.raises(error):
        TransformerPolicy.small(given)


def test_small_refuses_another_environment():
    with pytest.raises(TypeError, match="TextGen-v0"):
        TransformerPolicy.small(gym.make("CartPole-v1"))


@pytest.mark.parametrize("d_model", [0, -32, 33, 50])
def test_small_refuses_widths_that_no_head_divides(d_model):
    with pytest.raises(ValueError, match="d_model="):
        TransformerPolicy.small(4, d_model=d_model)


# --- folders


def test_a_saved_folder_opens_with_transformers(tmp_path):
    policy = small()
    policy.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for history in HISTORIES:
        np.testing.assert_allclose(plain_log_probs(model, history), plain_log_probs(policy.model, history), atol=1e-6)
    for text in [*PROMPTS, "abcabc", "a<eos>b"]:
        assert tokenizer(text)["input_ids"] == policy.vocabulary.encode(text)
        assert tokenizer.decode(policy.vocabulary.encode(text)) == text
    assert tokenizer.eos_token == "<eos>"
    stop_ids = model.generation_config.eos_token_id
    assert (stop_ids if isinstance(stop_ids, list) else [stop_ids]) == [STOP]


def test_several_stop_ids_travel_with_the_folder(tmp_path):
    envs = tiny.make_envs(stop_ids=[A, STOP])
    TransformerPolicy.small(envs, d_model=16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [A, STOP]
    assert TransformerPolicy.from_pretrained(tmp_path).vocabulary.stop_ids == (A, STOP)
    again = gym.make_vec("TextGen-v0", num_envs=1, tokenizer=str(tmp_path), prompts=["b"], reward=tiny.score)
    assert again.unwrapped.vocabulary.stop_ids == (A, STOP)


def test_a_round_trip_keeps_the_policy(tmp_path):
    policy = small(temperature=1.7)
    policy.save_pretrained(tmp_path / "one")
    again = TransformerPolicy.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    third = TransformerPolicy.from_pretrained(tmp_path / "two")
    rollout = episodes_of_unequal_length()
    for other in (again, third):
        assert (other.size, other.bos_id, other.temperature) == (4, 4, 1.7)
        assert other.vocabulary.stop_ids == (STOP,)
        assert torch.equal(other.log_probs(rollout), policy.log_probs(rollout))


def test_a_policy_of_a_number_of_tokens_is_saved_too(tmp_path):
    policy = TransformerPolicy.small(4, d_model=16)
    policy.save_pretrained(tmp_path)
    again = TransformerPolicy.from_pretrained(tmp_path)
    assert (again.size, again.vocabulary) == (4, None)
    rollout = episodes_of_unequal_length()
    assert torch.equal(again.log_probs(rollout), policy.log_probs(rollout))


def llama(rows: int, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        attention_dropout=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(LlamaConfig(**(sizes | config)))


def gpt2(rows: int, **config: Any) -> GPT2LMHeadModel:
    dropout = dict(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3, bos_token_id=1, eos_token_id=2)
    return padded_gpt2(rows, **(dropout | config))


MODELS = {"llama": llama, "gpt2": gpt2}


def save_folder(folder: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def word_envs(folder: Path) -> Any:
    return gym.make_vec(
        "TextGen-v0",
        num_envs=8,
        tokenizer=str(folder),
        prompts=["red", "green blue red", "blue blue"],
        reward=lambda completions: [float(len(text)) for text in completions],
        max_new_tokens=6,
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rows", [7, 64])
def test_a_hugging_face_folder_samples_and_scores_the_same(tmp_path, word_tokenizer, kind, rows):
    folder = save_folder(tmp_path, MODELS[kind](rows), word_tokenizer)
    policy = TransformerPolicy.from_pretrained(folder)
    assert (policy.size, policy.bos_id, policy.vocabulary.stop_ids) == (7, 1, (2,))
    rollout = collect(policy, word_envs(folder), 24, np.random.default_rng(0))
    assert rollout.mask.sum(axis=1).min() < 6 == rollout.mask.shape[1]
    policy.train()
    first, second = policy.log_probs(rollout).detach(), policy.log_probs(rollout).detach()
    assert torch.equal((first - second).exp(), torch.ones_like(first))  # dropout would break this
    np.testing.assert_allclose(first.numpy(), rollout.log_probs, atol=CLOSE)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_allclose(first.numpy(), expected_log_probs(plain, rollout, size=7), atol=CLOSE)


@pytest.mark.parametrize("kind", MODELS)
def test_training_mode_keeps_dropout_off(tmp_path, word_tokenizer, kind):
    policy = TransformerPolicy.from_pretrained(save_folder(tmp_path, MODELS[kind](7), word_tokenizer))
    assert policy.train() is policy
    assert not any(module.training for module in policy.modules())
    policy.model.train()  # what the policy guards against: the fixture does have dropout
    ids = torch.tensor([[4, 5, 6, 4, 5, 6]])
    assert not torch.equal(policy.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_half_precision_folders_open_in_single_precision(tmp_path, word_tokenizer):
    folder = save_folder(tmp_path, llama(7).to(torch.bfloat16), word_tokenizer)
    policy = TransformerPolicy.from_pretrained(folder)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path, word_tokenizer):
    folder = save_folder(tmp_path, gpt2(6), word_tokenizer)
    with pytest.raises(ValueError, match="6 embeddings for 7 tokens"):
        TransformerPolicy.from_pretrained(folder)


def test_an_environments_vocabulary_takes_the_place_of_the_folders(tmp_path, word_tokenizer):
    folder = save_folder(tmp_path, gpt2(64), word_tokenizer)
    policy = TransformerPolicy.from_pretrained(folder, vocabulary=Vocabulary.from_symbols(tiny.SYMBOLS))
    assert policy.size == 4
    with pytest.raises(ValueError, match="64 embeddings for 100 tokens"):
        TransformerPolicy.from_pretrained(folder, vocabulary=Vocabulary.from_symbols([f"{i}," for i in range(100)]))


def test_the_stop_tokens_of_the_vocabulary_take_the_place_of_the_models(tmp_path):
    assert gpt2(64).generation_config.eos_token_id == 2
    TransformerPolicy(gpt2(64), 4, Vocabulary.from_symbols(tiny.SYMBOLS)).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [STOP]
    assert TransformerPolicy.from_pretrained(tmp_path).vocabulary.stop_ids == (STOP,)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        TransformerPolicy.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json"):
        TransformerPolicy.from_pretrained(tmp_path / "nowhere")


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickled_weights_are_refused_and_never_run(tmp_path, word_tokenizer):
    mark, folder = tmp_path / "mark", tmp_path / "model"
    save_folder(folder, gpt2(7), word_tokenizer)
    (folder / "model.safetensors").unlink()
    for write in (lambda file: pickle.dump(Payload(mark), file), lambda file: torch.save(Payload(mark), file)):
        with open(folder / "pytorch_model.bin", "wb") as file:
            write(file)
        with pytest.raises(ValueError, match="does not load"):
            TransformerPolicy.from_pretrained(folder)
        assert not mark.exists()
    with open(folder / "pytorch_model.bin", "rb") as file:
        torch.load(file, weights_only=False)
    assert mark.exists()  # the payload is a live one


# --- what is put in its place


def test_another_model_takes_the_place_everywhere():
    policy, other = small(0), small(1)
    observations = observations_of(HISTORIES)
    policy.act(observations)
    policy.model = other.model
    actions, log_probs = policy.act(observations, deterministic=True)
    expected, others = other.act(observations, deterministic=True)
    assert actions.tolist() == expected.tolist()
    np.testing.assert_allclose(log_probs, others, atol=CLOSE)


def test_a_cache_of_another_model_is_refused():
    policy, other = small(0), small(1)
    with pytest.raises(ValueError, match="of another model"):
        policy.act(observations_of(HISTORIES), cache=other.prefix_cache())


@pytest.mark.parametrize("deterministic", [False, True])
def test_weights_that_have_diverged_are_told(deterministic):
    policy = small()
    policy.model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        policy.act(observations_of(HISTORIES), deterministic=deterministic)


@pytest.mark.parametrize("stop_ids", [[A], []])
def test_the_stop_tokens_of_the_environment_are_saved(tmp_path, stop_ids):
    small().save_pretrained(tmp_path / "model")
    policy = TransformerPolicy.from_pretrained(tmp_path / "model")
    PolicyGradient(policy, tiny.make_envs(4, stop_ids=stop_ids), group_size=2, episodes_per_update=4)
    policy.save_pretrained(tmp_path / "saved")
    assert list(TransformerPolicy.from_pretrained(tmp_path / "saved").vocabulary.stop_ids) == stop_ids
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id
    assert saved == (stop_ids or None)
