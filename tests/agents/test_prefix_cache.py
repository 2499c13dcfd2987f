"""PrefixCache against full forward passes of the model, whatever happens to rows and weights."""

import copy
from collections.abc import Callable
from itertools import takewhile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from agents.grouped_attention import grouping
from agents.key_values import KeyValues
from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache

CLOSE = 1e-5
V, LONGEST = 11, 24
WIDTHS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LONGEST)

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=LONGEST, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=V, intermediate_size=32, num_key_value_heads=2, **WIDTHS)),
    "llama, eager": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=V, intermediate_size=32, attn_implementation="eager", **WIDTHS)
    ),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=V, intermediate_size=32, **WIDTHS)),
    "opt": lambda: OPTForCausalLM(OPTConfig(vocab_size=V, ffn_dim=32, word_embed_proj_dim=16, **WIDTHS)),
}


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Storage that has to grow all the time, and has no room to spare; short prefixes are kept once too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.key_values._BLOCK", 2)
        patch.setattr("agents.prefix_cache._WORTH_SHARING", 2)
        yield


def make_model(kind: str = "gpt2") -> PreTrainedModel:
    """A model whose probabilities differ from token to token and place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind]().eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    return model


def plain_log_probs(model: PreTrainedModel, histories) -> np.ndarray:
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([history]), use_cache=False).logits[0, -1] for history in histories]
    return torch.log_softmax(torch.stack(rows), dim=-1).numpy()


def arrays(histories) -> tuple[np.ndarray, np.ndarray]:
    """The histories side by side, junk behind them, and their lengths."""
    tokens = np.full((len(histories), LONGEST), V - 1)
    for row, history in enumerate(histories):
        tokens[row, : len(history)] = history
    return tokens, np.array([len(history) for history in histories])


def cached_log_probs(cache: PrefixCache, histories) -> np.ndarray:
    return torch.log_softmax(cache.logits(*arrays(histories)), dim=-1).numpy()


class Fed:
    """Counts the tokens that a model is fed, padding included."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()

    def during(self, call: Callable[[], object]) -> int:
        before = self.tokens
        call()
        return self.tokens - before


# --- any sequence of events


def change_with(make_optimizer):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        make_optimizer(model.parameters()).step()

    return change


def through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.2)


def one_weight_through_data(model):
    model.get_input_embeddings().weight.data[1, 0] += 1.0


def swapped_through_data(model):
    weight = list(model.parameters())[0].data
    weight.copy_(weight.flip(0))


def new_tensor_as_data(model):
    weight = model.get_input_embeddings().weight
    weight.data = weight.data * 2


WEIGHTS = {
    "optimizer": change_with(lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    "fused optimizer": change_with(lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True)),
    "data": through_data,
    "one weight": one_weight_through_data,
    "swap": swapped_through_data,
    "new data": new_tensor_as_data,
}
ROWS = ("grow", "grow some", "restart", "cut", "drop", "permute", "duplicate", "more", "branch", "same")
token, place = st.integers(0, V - 1), st.integers(0, 100)
history = st.lists(token, min_size=1, max_size=6)
event = st.tuples(
    st.one_of(st.sampled_from(ROWS), st.sampled_from(ROWS), st.sampled_from(list(WEIGHTS))),
    place,
    history,
    st.randoms(use_true_random=False),
)


def happen(rows: list[list[int]], what: str, at: int, tokens: list[int], random) -> list[list[int]]:
    """The rows after an event."""
    rows = [list(row) for row in rows]
    at %= len(rows)
    if what == "grow":
        rows = [[*row, tokens[number % len(tokens)]] for number, row in enumerate(rows)]
    elif what == "grow some":
        rows[at:] = [row + tokens for row in rows[at:]]
    elif what == "restart":
        rows[at] = tokens
    elif what == "cut":
        rows[at] = rows[at][: 1 + len(rows[at]) // 2]
    elif what == "drop" and len(rows) > 1:
        del rows[at]
    elif what == "permute":
        random.shuffle(rows)
    elif what == "duplicate":
        rows.append(list(rows[at]))
    elif what == "more":
        rows.append(tokens)
    elif what == "branch":
        rows.append(rows[at][:-1] + tokens)
    return [row[:LONGEST] for row in rows][-8:]


def shared(one, other) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def most_tokens(rows, before) -> int:
    """What rows may cost that follow the rows `before`: of each, once, what no single one of those shares."""
    known = [max([shared(row, other) for other in before], default=0) for row in map(list, set(map(tuple, rows)))]
    return sum(max(1, len(row) - cached) for row, cached in zip(set(map(tuple, rows)), known, strict=True))


def walk(kind: str, rows: list[list[int]], events) -> None:
    """Ask the cache after each event, and compare with full forward passes."""
    model = make_model(kind)
    cache = PrefixCache(model, checksum=True)
    before = []
    for what, at, tokens, random in [("same", 0, [0], None), *events]:
        if what in WEIGHTS:
            WEIGHTS[what](model)
            before = []
        else:
            rows = happen(rows, what, at, tokens, random)
        fed = cache.tokens_fed
        np.testing.assert_allclose(cached_log_probs(cache, rows), plain_log_probs(model, rows), atol=3e-5)
        assert cache.tokens_fed - fed <= most_tokens(rows, before)
        before = rows


many_rows, many_events = st.lists(history, min_size=1, max_size=5), st.lists(event, max_size=10)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=many_rows, events=many_events)
def test_any_sequence_of_events(kind, rows, events):
    walk(kind, rows, events)


@pytest.mark.full
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=many_rows, events=many_events)
def test_any_sequence_of_events_at_length(kind, rows, events):
    walk(kind, rows, events)


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_changed_weights_are_noticed_between_two_steps(change):
    model = make_model()
    policy = TransformerPolicy(model, V)
    rows = [[1, 2, 3], [4, 5]]
    for number in range(4):
        observations = arrays(rows)[0]
        observations[observations == V - 1] = V
        actions, log_probs = policy.act(observations)
        np.testing.assert_allclose(log_probs, plain_log_probs(model, rows)[[0, 1], actions], atol=CLOSE)
        rows = [[*row, number] for row in rows]
        change(model)


@pytest.mark.parametrize("change", ["optimizer", "new data"])
def test_an_owners_cache_notices_what_leaves_a_trace(change):
    model = make_model()
    cache = PrefixCache(model)
    cached_log_probs(cache, [[1, 2, 3]])
    WEIGHTS[change](model)
    np.testing.assert_allclose(
        cached_log_probs(cache, [[1, 2, 3, 4]]), plain_log_probs(model, [[1, 2, 3, 4]]), atol=CLOSE
    )


def test_an_owner_clears_what_leaves_none():
    model = make_model()
    cache = PrefixCache(model)
    row = [1, 2, 3]
    cached_log_probs(cache, [row])
    WEIGHTS["data"](model)
    stale = cached_log_probs(cache, [[*row, 4]])
    assert np.abs(stale - plain_log_probs(model, [[*row, 4]])).max() > 0.01  # it says so: the owner's part
    cache.clear()
    np.testing.assert_allclose(cached_log_probs(cache, [[*row, 4]]), plain_log_probs(model, [[*row, 4]]), atol=CLOSE)


# --- what it costs, counted at the model


def grown(rows, number):
    return [[*row, (number + place) % V] for place, row in enumerate(rows)]


def test_a_row_that_grew_costs_one_token():
    model = make_model()
    cache, fed = PrefixCache(model), Fed(model)
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert fed.during(lambda: cached_log_probs(cache, rows)) == 9
    for number in range(5):
        rows = grown(rows, number)
        assert fed.during(lambda rows=rows: cached_log_probs(cache, rows)) == 3
    assert cache.tokens_fed == fed.tokens == 9 + 15


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [0, 2], [2, 2, 0]])
def test_rows_may_move_and_leave(order):
    model = make_model()
    cache, fed = PrefixCache(model), Fed(model)
    rows = [[1, 2, 3], [4, 5, 6, 7], [7, 8]]
    cached_log_probs(cache, rows)
    rows = [[*rows[place], number] for number, place in enumerate(order)]
    assert fed.during(lambda: cached_log_probs(cache, rows)) == len(order)
    np.testing.assert_allclose(cached_log_probs(cache, rows), plain_log_probs(model, rows), atol=CLOSE)


def test_a_groups_shared_prompt_is_computed_once():
    model = make_model()
    cache, fed = PrefixCache(model), Fed(model)
    prompt = [1, 2, 3, 4, 5, 6, 7]
    assert fed.during(lambda: cached_log_probs(cache, [prompt] * 8)) == 7
    rows = [[*prompt, number] for number in range(8)]
    assert fed.during(lambda: cached_log_probs(cache, rows)) == 8
    np.testing.assert_allclose(
        cached_log_probs(cache, grown(rows, 1)), plain_log_probs(model, grown(rows, 1)), atol=CLOSE
    )


def test_a_row_that_starts_again_costs_what_differs():
    model = make_model()
    cache, fed = PrefixCache(model), Fed(model)
    rows = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]]
    cached_log_probs(cache, rows)
    assert fed.during(lambda: cached_log_probs(cache, [[*rows[0], 6], [1, 2, 3, 9, 9]])) == 1 + 2


def test_another_batch_between_leaves_the_rows_where_they_are():
    model = make_model()
    cache, fed = PrefixCache(model), Fed(model)
    rows = [[number, 2, 3, 4] for number in range(6)]
    cached_log_probs(cache, rows)
    cached_log_probs(cache, [[9, 9]])  # as an evaluation in the middle of a rollout does
    assert fed.during(lambda: cached_log_probs(cache, grown(rows, 1))) <= 5 + 5  # one of them starts again


def test_rows_that_stay_are_not_copied(monkeypatch):
    copied = []
    monkeypatch.setattr(KeyValues, "copy_rows", lambda self, source, target, length: copied.append(len(source)))
    cache = PrefixCache(make_model())
    rows = [[number, 2, 3] for number in range(8)]
    cached_log_probs(cache, rows)
    cached_log_probs(cache, grown(rows, 1)[::-1])
    assert copied == []
    cached_log_probs(cache, grown(grown(rows, 1)[::-1], 1)[3:])  # five stay, and fill the places of three that left
    assert sum(copied) <= 3


# --- the rest


def test_beside_a_row_that_is_longer_by_more_tokens():
    """A row is written to past its own count, up to that of the longest beside it, and so past the longest history."""
    model = make_model()
    cache = PrefixCache(model)
    cached_log_probs(cache, [[1] * 22])
    rows = [[1] * 17 + [3] * 5, [2] * 8]
    np.testing.assert_allclose(cached_log_probs(cache, rows), plain_log_probs(model, rows), atol=CLOSE)


def test_a_failure_in_the_model_leaves_nothing_wrong():
    model = make_model()
    cache = PrefixCache(model)
    rows = [[1, 2, 3], [4, 5, 6]]
    cached_log_probs(cache, rows)
    layer = model.transformer.h[1]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cached_log_probs(cache, [[4, 5, 6, 7], [1, 2, 9, 9]])
    handle.remove()
    again = [[4, 5, 6, 7, 8], [1, 2, 9, 9], [1, 2, 3, 1]]
    np.testing.assert_allclose(cached_log_probs(cache, again), plain_log_probs(model, again), atol=CLOSE)


def test_inference_mode_and_others_take_turns():
    model = make_model()
    cache = PrefixCache(model)
    rows = [[1, 2, 3]]
    with torch.inference_mode():
        cached_log_probs(cache, rows)
    rows = grown(rows, 0)
    np.testing.assert_allclose(cached_log_probs(cache, rows), plain_log_probs(model, rows), atol=CLOSE)
    assert not cache.logits(*arrays(rows)).requires_grad


def test_up_to_the_last_position_of_the_model():
    model = make_model("opt")
    cache = PrefixCache(model)
    rows = [[1] * (LONGEST - 1), [2]]
    for number in (0, 1):
        np.testing.assert_allclose(cached_log_probs(cache, rows), plain_log_probs(model, rows), atol=CLOSE)
        rows = [rows[0][: LONGEST - 1] + [number], [3] * 9]


def test_nothing_stays_after_clear():
    cache = PrefixCache(make_model())
    cached_log_probs(cache, [[1, 2, 3]])
    cache.clear()
    before = cache.tokens_fed
    cached_log_probs(cache, [[1, 2, 3]])
    assert cache.tokens_fed - before == 3


def test_a_policy_may_be_copied_with_its_cache():
    policy = TransformerPolicy(make_model(), V)
    observations = np.array([[1, 2, V]])
    policy.act(observations)
    twin = copy.deepcopy(policy)
    through_data(twin.model)
    for one in (policy, twin):
        actions, log_probs = one.act(observations)
        assert log_probs[0] == pytest.approx(plain_log_probs(one.model, [[1, 2]])[0, actions[0]], abs=CLOSE)


# --- memory that is used again


def test_what_diverged_weights_left_is_forgotten():
    model = make_model("gpt2")
    cache, good = PrefixCache(model), copy.deepcopy(model.state_dict())
    histories = [[1, 2, 3, 4, 5, 6], [2, 3, 4], [5, 6, 7, 8]]
    with torch.no_grad():
        model.transformer.wte.weight.fill_(float("nan"))
    cache.logits(*arrays(histories))
    model.load_state_dict(good)
    for _ in range(4):
        np.testing.assert_allclose(cached_log_probs(cache, histories), plain_log_probs(model, histories), atol=CLOSE)
        histories = [[*history, 1] for history in histories]


def test_forgetting_keeps_the_memory_and_clearing_does_not():
    model = make_model("gpt2")
    cache, histories = PrefixCache(model), [[1, 2, 3], [4, 5, 6]]
    fed = cached_log_probs(cache, histories)
    kept = cache._storage.layers[0].keys.data_ptr()
    cache.forget()
    before = cache.tokens_fed
    np.testing.assert_array_equal(cached_log_probs(cache, histories), fed)
    assert cache.tokens_fed - before == 6 and cache._storage.layers[0].keys.data_ptr() == kept
    cache.clear()
    assert not cache._storage.layers


def test_a_model_that_moves_before_its_first_call_takes_its_cache_along():
    model = make_model("gpt2")
    cache = PrefixCache(model)
    model.double()
    cached_log_probs(cache, [[1, 2, 3]])
    assert cache._storage.format[1] == torch.float64 and cache._storage.layers[0].keys.dtype == torch.float64


def test_rows_without_a_trunk_do_not_keep_others_from_sharing():
    trunk = np.arange(40).repeat(2)  # 40 groups of 2, of which 8 rows have none after all
    base = np.full(80, 16)
    base[::10], trunk[::10] = 0, 0
    found = grouping(trunk, base, kept=3)
    assert found is not None
    members, place, count, kept = found
    assert (count, kept) == (40, 3)
    np.testing.assert_array_equal(members[place], np.arange(3 * 80))  # every head of a row has a place of its own
    most = len(members) // (40 * 3)
    matrices = place.reshape(80, 3) // most  # which of the trunks' matrices, a head each, it is multiplied by
    np.testing.assert_array_equal(matrices[base > 0], (3 * trunk[:, None] + np.arange(3))[base > 0])
    assert grouping(trunk, np.zeros_like(base), kept=3) is None


def sharing_layers():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=V,
        vocab_size_per_layer_input=V,
        hidden_size=16,
        hidden_size_per_layer_input=4,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_kv_shared_layers=2,
        layer_types=["full_attention"] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=4,
        altup_num_inputs=2,
        max_position_embeddings=LONGEST,
    )
    return Gemma3nForCausalLM(config)


def values_of_another_size():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=LONGEST,
    )
    return DeepseekV3ForCausalLM(config)


@pytest.mark.parametrize("make", [sharing_layers, values_of_another_size])
def test_rows_that_share_a_beginning_in_unusual_layers(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    cache, start = PrefixCache(model), [1, 2, 3, 4, 5, 6, 7, 8]
    histories = [[*start, token] for token in range(4)]
    cached_log_probs(cache, [start])
    for _ in range(5):
        np.testing.assert_allclose(cached_log_probs(cache, histories), plain_log_probs(model, histories), atol=CLOSE)
        histories = [[*history, len(history) % V] for history in histories]
    assert cache._num_trunks == 1
