"""TransformerPolicy on every folder of the zoo, against the plain model run on each single, unpadded history."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agents.learner import PolicyGradient, Update
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents.tiny import relative_error
from tests.agents.zoo import BOS, END, PAD, ROWS, STOP, WINDOW, Row
from textgym.finish import FinishReason

CLOSE = 1e-5
EXACT = 1e-9
HORIZON = 5
PROMPTS = ["red", "one red cat two green dog blue red one two", "dog cat"]


class Case:
    """A folder opened twice: as a policy, and as the plain model that says what is right."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.policy = TransformerPolicy.from_pretrained(folder)
        self.plain = plain_model(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.size = self.tokenizer.get_vocab_size()  # V = PAD
        self._tables: dict[tuple[int, ...], np.ndarray] = {}

    def id_of(self, token: str) -> int:
        return self.tokenizer.token_to_id(token)

    @property
    def stop_ids(self) -> list[int]:
        return sorted(self.id_of(token) for token in self.row.stops)

    def table(self, history: list[int]) -> np.ndarray:
        """Log π(· | history), [V], by the plain model; an empty history is BOS."""
        key = tuple(history or [self.id_of(BOS)])
        if key not in self._tables:
            self._tables[key] = table_of(self.plain, key, self.size)
        return self._tables[key]

    def tables(self, histories: list[list[int]]) -> np.ndarray:
        return np.stack([self.table(history) for history in histories])

    def histories(self, *lengths: int, seed: int = 0) -> list[list[int]]:
        """Random ones, special tokens among them."""
        generator = np.random.default_rng(seed)
        return [generator.integers(self.size, size=length).tolist() for length in lengths]

    def observations(self, histories: list[list[int]], width: int = 24) -> np.ndarray:
        array = np.full((len(histories), width), self.size, dtype=np.int64)
        for row, history in enumerate(histories):
            array[row, : len(history)] = history
        return array

    def walk(self, histories: list[list[int]], width: int = 24, deterministic: bool = False) -> list[list[int]]:
        """The histories, each longer by the token that `act` took, checked against the plain model."""
        observations = self.observations(histories, width)
        before = observations.copy()
        actions, log_probs = self.policy.act(observations, deterministic=deterministic)
        tables = self.tables(histories)
        np.testing.assert_allclose(log_probs, tables[np.arange(len(histories)), actions], atol=CLOSE)
        if deterministic:
            assert actions.tolist() == tables.argmax(axis=1).tolist()
        np.testing.assert_array_equal(observations, before)
        return [[*history, int(action)] for history, action in zip(histories, actions, strict=True)]

    def envs(self, num_envs: int = 3, **keywords: Any) -> VectorEnv:
        own = dict(tokenizer=str(self.folder), prompts=PROMPTS, prompt_order="sequential", max_new_tokens=HORIZON)
        return gym.make_vec("TextGen-v0", num_envs=num_envs, **(own | dict(reward=text_length) | keywords))

    @cached_property
    def rollout(self) -> Rollout:
        """Six episodes, two of each prompt, in waves of four."""
        return collect(self.policy, self.envs(4), 6, np.random.default_rng(0), group_size=2)

    def expected(self, rollout: Rollout) -> np.ndarray:
        """Log π(a_t | s_t) by the plain model, one call a step."""
        expected = np.zeros(rollout.mask.shape)
        for row, step in zip(*np.nonzero(rollout.mask), strict=True):
            history = rollout.tokens[row, : rollout.prompt_length[row] + step].tolist()
            expected[row, step] = self.table(history)[rollout.actions[row, step]]
        return expected


def text_length(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def table_of(model: PreTrainedModel, history: tuple[int, ...], size: int) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([history])).logits[0, -1, :size].log_softmax(-1).numpy()


@pytest.fixture(scope="module", params=ROWS)
def case(request, zoo_folder: Callable[[str], Path]) -> Case:
    return Case(ROWS[request.param], zoo_folder(request.param))


def only(check: Callable[[Row], Any]) -> pytest.MarkDecorator:
    """The rows of the zoo that a test is about."""
    names = [name for name, row in ROWS.items() if check(row)]
    assert names
    return pytest.mark.parametrize("case", names, indirect=True)


# --- sampling and scoring


def test_act_is_the_plain_model_whatever_the_padding_and_the_batch(case):
    histories = case.histories(1, 3, WINDOW + 5, 2, WINDOW)
    for rows, width in (([0, 1, 2, 3, 4], 13), ([4, 3, 2, 1, 0], 30), ([2], 14), ([1], 3), ([1, 1, 0], 20)):
        batch = [histories[row] for row in rows]
        tables = case.tables(batch)
        for deterministic in (False, True):
            actions, log_probs = case.policy.act(case.observations(batch, width), deterministic=deterministic)
            np.testing.assert_allclose(log_probs, tables[np.arange(len(rows)), actions], atol=CLOSE)
        assert actions.tolist() == tables.argmax(axis=1).tolist()
        distribution = case.policy.distribution(case.observations(batch, width))
        np.testing.assert_allclose(distribution.log_probs.detach().numpy(), tables, atol=CLOSE)


def test_every_episode_is_sampled_and_scored_by_the_plain_model(case):
    rollout = case.rollout
    assert rollout.actions.max() < case.size and rollout.length.max() > WINDOW
    expected = case.expected(rollout)
    np.testing.assert_allclose(rollout.log_probs, expected, atol=CLOSE)
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 3], [2]):
        part = rollout.select(np.array(order))
        for more in (0, 7):
            scored = case.policy.log_probs(padded(part, more)).detach().numpy()
            steps = part.mask.shape[1]
            np.testing.assert_allclose(scored[:, :steps], expected[order][:, :steps], atol=CLOSE)
            assert not scored[:, steps:].any() and not scored[:, :steps][~part.mask].any()


def padded(rollout: Rollout, more: int) -> Rollout:
    """The same episodes with wider padding."""

    def wide(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, more)), constant_values=value)

    columns = {name: wide(getattr(rollout, name), 0) for name in ("actions", "mask", "log_probs", "rewards")}
    return rollout._replace(tokens=wide(rollout.tokens, rollout.vocabulary.pad_id), **columns)


def test_act_along_histories_that_grow_and_change(case):
    walk = case.walk
    starts = case.histories(1, 4, WINDOW, 2)
    rows = walk(walk(walk(starts)), deterministic=True)
    rows = walk([rows[0], rows[2], rows[3]])  # one ended
    rows = walk([rows[2], rows[0], rows[1]])  # in another order
    twins = [[*rows[1][:-1], token] for token in (0, 1, 2)]  # one history thrice, which part ways
    rows = walk(walk([*rows, rows[0], *twins]), width=30)
    case.policy.log_probs(case.rollout)  # an update in between
    rows = walk([rows[0], starts[1], rows[2], *starts[:1] * 2, rows[5]])  # new episodes beside running ones
    rows = walk([rows[0], rows[1][:-1], rows[2][:-3], rows[3], rows[4][:1], rows[5]])  # taken back
    rows = walk([other_past(rows[0], case.size), *rows[1:]])  # a token longer, after another past
    rows = walk([other_past(rows[0][:-1], case.size), *rows[1:]], deterministic=True)  # as long, after another past
    rows = walk(rows[:1])  # one is left
    rows = walk([[*rows[0], 1, 2, 0]])  # several tokens at once
    assert walk(rows, deterministic=True) == walk(rows, deterministic=True)  # asked twice
    rows = walk(walk(starts, width=9), width=10)  # the same start again
    walk(case.histories(6, 1, 3, seed=1))  # all new


def other_past(history: list[int], size: int) -> list[int]:
    return [*history[:2], (history[2] + 1) % size, *history[3:]]


def test_act_sees_weights_that_changed(case):
    changing = Case(case.row, case.folder)
    starts = case.histories(3, WINDOW, 1)

    def change(write: Callable[[Tensor], Any]) -> None:
        before = changing.tables(starts)
        for parameter in changing.policy.parameters():
            write(parameter)
        changing.plain.load_state_dict(changing.policy.model.state_dict())
        changing._tables.clear()
        assert np.abs(changing.tables(starts) - before).max() > 100 * CLOSE

    walk = changing.walk
    rows = walk(walk(starts))
    with torch.no_grad():
        change(lambda parameter: parameter.mul_(1.05))  # as an optimiser does
    walk(walk(rows))  # in the middle of an episode
    walk(walk(starts))
    change(lambda parameter: parameter.data.mul_(1.05))  # what autograd does not notice
    walk(walk(starts))  # the same start again


# --- where episodes end


class Script:
    """Plays given tokens, in an environment of one row."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)

    def act(self, observations: np.ndarray, generator: torch.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        return np.array([next(self.tokens)]), np.zeros(1, dtype=np.float32)


def play(case: Case, completion: list[int]) -> Rollout:
    return collect(Script(completion), case.envs(1), 1, np.random.default_rng(0))


def test_episodes_end_at_every_stop_token_and_no_other(case):
    assert list(case.policy.vocabulary.stop_ids) == list(case.envs().unwrapped.vocabulary.stop_ids) == case.stop_ids
    other = case.id_of("red") if case.row.tokens == "words" else case.id_of("r")
    for stop_id in case.stop_ids:
        for completion in ([stop_id], [other, other, stop_id]):
            rollout = play(case, completion)
            assert rollout.finish_reason.tolist() == [FinishReason.STOP]
            assert rollout.mask.tolist() == [[True] * len(completion)]  # the stop token counts, and nothing after it
            history = rollout.tokens[0].tolist()
            first, last = int(rollout.prompt_length[0]), int(rollout.length[0])
            assert history[first:last] == completion and set(history[last:]) <= {case.size}
            scored = case.policy.log_probs(padded(rollout, 2)).detach().numpy()
            np.testing.assert_allclose(scored[:, : len(completion)], case.expected(rollout), atol=CLOSE)
            assert not scored[:, len(completion) :].any()
    for token in {STOP, END, PAD} - set(case.row.stops):
        if case.id_of(token) is not None:
            rollout = play(case, [case.id_of(token)] * HORIZON)
            assert (rollout.finish_reason.item(), rollout.mask.sum()) == (FinishReason.LIMIT, HORIZON)


# --- outputs that are no tokens


@only(lambda row: row.padded)
def test_outputs_that_are_no_tokens_lie_outside_the_distribution(case):
    histories = case.histories(1, 3, WINDOW + 3)
    with torch.no_grad():
        logits = torch.stack([case.plain(input_ids=torch.tensor([h])).logits[0, -1] for h in histories]).double()
    whole = logits.softmax(-1)
    assert whole.shape[1] > case.size and whole[:, : case.size].sum(-1).max() < 0.5  # they would be heard
    probs = case.policy.distribution(case.observations(histories)).log_probs.detach().double().exp()
    assert probs.shape == (3, case.size)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=CLOSE)
    renormalised = whole[:, : case.size] / whole[:, : case.size].sum(-1, keepdim=True)
    np.testing.assert_allclose(probs, renormalised, atol=CLOSE)
    actions, _ = case.policy.act(case.observations(histories * 50))
    assert actions.max() < case.size


# --- gradients


class AllDouble(TorchFunctionMode):
    """Keeps in double precision what models cast to single: norms, angles, softmax."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if v is torch.float32 else v for name, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def test_the_gradient_is_the_plain_models(case):
    policy = TransformerPolicy.from_pretrained(case.folder).double()
    plain = plain_model(case.folder, torch.float32).double()
    for model in (policy.model, plain):
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the others take no float64
    rollout = case.rollout
    with AllDouble():
        policy.log_probs(rollout).sum().backward()
        for row in range(len(rollout.length)):
            ids = torch.as_tensor(rollout.tokens[row, : rollout.length[row]])
            first = int(rollout.prompt_length[row])
            tables = (
                plain(input_ids=ids[None, :-1], use_cache=False).logits[0, first - 1 :, : case.size].log_softmax(-1)
            )
            tables.gather(-1, ids[first:, None]).sum().backward()
    gradient, expected = flat_grads(policy.model), flat_grads(plain)
    assert expected.dtype == torch.float64 and expected.norm() > 1
    assert relative_error(gradient, expected) < EXACT


def flat_grads(model: PreTrainedModel) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


# --- folders


def test_a_saved_folder_is_the_same_model_and_tokenizer(case, tmp_path):
    case.policy.save_pretrained(tmp_path)
    saved, kept = AutoModelForCausalLM.from_pretrained(tmp_path), case.policy.model
    assert saved.state_dict().keys() == kept.state_dict().keys() == case.plain.state_dict().keys()
    for name, weights in saved.state_dict().items():
        assert torch.equal(weights, kept.state_dict()[name]) and torch.equal(weights, case.plain.state_dict()[name])
    assert is_tied(saved) == is_tied(kept) == is_tied(case.plain)
    assert saved.config.tie_word_embeddings == case.plain.config.tie_word_embeddings
    ends, own = saved.generation_config, case.plain.generation_config
    assert stop_list(ends.eos_token_id) == stop_list(own.eos_token_id) == case.stop_ids
    assert (ends.bos_token_id, ends.pad_token_id) == (own.bos_token_id, own.pad_token_id)
    assert torch.equal(
        TransformerPolicy.from_pretrained(tmp_path).log_probs(case.rollout), case.policy.log_probs(case.rollout)
    )


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def stop_list(ids: int | list[int]) -> list[int]:
    return sorted(ids) if isinstance(ids, list) else [ids]


def test_a_saved_tokenizer_is_the_same(case, tmp_path):
    case.policy.save_pretrained(tmp_path)
    saved, own = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(case.folder)
    assert saved.get_vocab() == own.get_vocab() and saved.special_tokens_map == own.special_tokens_map
    for text in [*PROMPTS, f"red {STOP} dog", f"cat {END}"]:
        assert saved(text)["input_ids"] == own(text)["input_ids"]
        assert case.policy.vocabulary.encode(text) == own(text)["input_ids"]
    assert saved.chat_template == own.chat_template
    assert (own.chat_template is not None) == case.row.chat


def test_generate_from_a_saved_folder_writes_what_greedy_act_writes(case, tmp_path):
    case.policy.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    rows = model.get_output_embeddings().weight.shape[0]
    for prompt in case.histories(1, 4, WINDOW + 2, seed=3):
        history = list(prompt)
        while len(history) < len(prompt) + 8 and (history == prompt or history[-1] not in case.stop_ids):
            action, _ = case.policy.act(case.observations([history]), deterministic=True)
            history.append(int(action[0]))
        ids = torch.tensor([prompt])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            suppress_tokens=list(range(case.size, rows)) or None,
        )
        assert written[0].tolist() == history


# --- an empty history


@only(lambda row: row.bos)
def test_an_empty_history_is_fed_as_bos(case):
    batch = [[], [1, 2], []]
    actions, log_probs = case.policy.act(case.observations(batch))
    np.testing.assert_allclose(log_probs, case.tables(batch)[np.arange(3), actions], atol=CLOSE)
    rollout = collect(case.policy, case.envs(prompts=["", "red"]), 4, np.random.default_rng(0))
    assert rollout.prompt_length.tolist() == [len(case.tokenizer.encode(text).ids) for text in ("", "red")] * 2
    np.testing.assert_allclose(rollout.log_probs, case.expected(rollout), atol=CLOSE)
    scored = case.policy.log_probs(rollout).detach().numpy()
    np.testing.assert_allclose(scored, case.expected(rollout), atol=CLOSE)


@only(lambda row: not row.bos)
def test_an_empty_history_is_refused_without_bos(case):
    with pytest.raises(ValueError, match="a history is empty and the model has no BOS token"):
        case.policy.act(case.observations([[1, 2], []]))
    with pytest.raises(ValueError, match="give it a prompt of at least one token"):
        collect(case.policy, case.envs(prompts=["", "red"]), 4, np.random.default_rng(0))


# --- training


def has_dropout(row: Row) -> bool:
    return any(row.settings.get(name, 0) > 0 for name in ("dropout", "resid_pdrop"))


@only(has_dropout)
def test_dropout_stays_off(case):
    ids = torch.tensor([case.histories(6)[0]])
    model = plain_model(case.folder).train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)  # there is some
    assert torch.equal(case.policy.train().log_probs(case.rollout), case.policy.log_probs(case.rollout))


def test_one_update_changes_the_weights_and_keeps_them_finite(case):
    policy = TransformerPolicy.from_pretrained(case.folder)
    ratio = (policy.log_probs(case.rollout).detach() - torch.as_tensor(case.rollout.log_probs)).exp()
    assert (ratio - 1).abs().max() < 1e-4
    before = {name: weights.clone() for name, weights in policy.model.state_dict().items()}
    updates: list[Update] = []
    learner = PolicyGradient(policy, case.envs(4), "rloo", group_size=2, episodes_per_update=6)
    learner.learn(1, updates.append)
    (update,) = updates
    after = policy.model.state_dict()
    assert [name for name, weights in after.items() if torch.equal(weights, before[name])] == []
    assert all(weights.isfinite().all() for weights in after.values())
    log_probs = policy.log_probs(update.rollout).detach().numpy()
    assert np.isfinite(log_probs).all()
    assert np.abs(log_probs - update.rollout.log_probs).max() > 100 * CLOSE
