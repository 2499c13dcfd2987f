"""Steps that are written out say what the model's own code says, and stand aside where that is not plain."""

import copy
import functools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents import decoding, key_values
from agents.decoding import compiled, step_of
from agents.learner import PolicyGradient
from agents.lora import add_lora
from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache
from tests.agents import tiny

V, LONGEST = 11, 40


def make_model(**settings) -> GPT2LMHeadModel:
    own = dict(vocab_size=V, n_embd=16, n_layer=3, n_head=4, n_positions=LONGEST, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**(own | settings))).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    return model


def walk(model, lengths, steps, compiled=False):
    """Logits of histories that grow by a token each, one of them dropped at every third step."""
    tokens = np.random.default_rng(0).integers(V, size=(len(lengths), LONGEST))
    tokens[:, :20] = tokens[0, :20]  # a trunk
    cache, lengths, rows, found = PrefixCache(model, compiled=compiled), np.array(lengths), np.arange(len(lengths)), []
    for step in range(steps):
        found.append(cache.logits(tokens[rows], lengths[rows] + step))
        if step % 3 == 2:
            rows = rows[1:]
    return found, tokens, lengths


SETTINGS = [
    {},
    {"tie_word_embeddings": False},
    {"activation_function": "relu"},
    {"n_inner": 24},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"attn_implementation": "eager"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("lengths", [[24] * 6, [22, 24, 21, 25, 23, 24], [3, 9, 4, 30, 8, 7]], ids=str)
def test_every_step_is_the_models_own(settings, lengths):
    model = make_model(**settings).double()
    found, tokens, starts = walk(model, lengths, steps=9)
    rows = np.arange(len(starts))
    with torch.no_grad():
        for step, logits in enumerate(found):
            for row, said in zip(rows, logits, strict=True):
                history = torch.as_tensor(tokens[row, : starts[row] + step])[None]
                torch.testing.assert_close(said, model(history, use_cache=False).logits[0, -1], rtol=1e-10, atol=1e-10)
            if step % 3 == 2:
                rows = rows[1:]


def test_a_plain_model_takes_them(monkeypatch):
    taken = []
    [(kind, plain, step)] = decoding._STEPS
    monkeypatch.setattr(decoding, "_STEPS", ((kind, plain, lambda *given: taken.append(1) or step(*given)),))
    walk(make_model(), [24] * 6, steps=9)
    assert len(taken) == 8  # all but the first call, which reads whole histories


def test_the_policy_made_without_a_model_takes_them():
    assert step_of(TransformerPolicy.small(V).model) is not None


def hooked(model):
    model.transformer.h[1].mlp.register_forward_hook(lambda *_: None)


def own_forward(model):
    model.transformer.forward = model.transformer.forward


def trained(model):
    model.train()


def own_part(model):
    mlp = model.transformer.h[0].mlp
    mlp.forward = lambda hidden: 0 * hidden


def another_head(model):
    model.lm_head = torch.nn.Sequential(model.lm_head)


def adapted(model):
    add_lora(model, 2, 0)


@pytest.mark.parametrize("change", [hooked, own_forward, own_part, another_head, trained, adapted])
def test_a_model_that_is_not_plain_runs_its_own_code(change):
    model = make_model()
    assert step_of(model) is not None
    change(model)
    assert step_of(model) is None


def test_under_autocast_it_runs_its_own_code():
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step_of(model) is None


def test_a_subclass_runs_its_own_code():
    class Own(GPT2LMHeadModel):
        pass

    model = make_model()
    model.__class__ = Own
    assert step_of(model) is None


def test_under_hooks_of_all_modules_it_runs_its_own_code():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert step_of(make_model()) is None
    finally:
        handle.remove()


# --- compiled

LENGTHS = [[24] * 6, [22, 24, 21, 25, 23, 24], [3, 9, 4, 30, 8, 7], [5, 7, 9]]


def says_the_same_compiled(model, lengths):
    expected, found = walk(model, lengths, steps=9)[0], walk(model, lengths, steps=9, compiled=True)[0]
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-10)


@pytest.fixture
def without_a_compiler(monkeypatch):
    """Steps are traced, their writes made functional, and run without machine code of their own."""
    made = []

    @functools.cache
    def traced(step):
        made.append(step)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
            return compiled.__wrapped__(step)

    monkeypatch.setattr(key_values, "compiled", traced)
    yield made
    torch._dynamo.reset()


def test_traced_steps_say_the_same_and_see_new_weights(without_a_compiler):
    model = make_model(n_layer=1).double()
    says_the_same_compiled(model, [22, 24, 21, 25, 23, 24])  # with a trunk; some rows short of it
    assert without_a_compiler
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)
        model.lm_head.weight.data = model.lm_head.weight.data * 2
    says_the_same_compiled(model, [5, 7, 9])


def test_the_switch_reaches_every_cache_and_is_remembered(tmp_path, without_a_compiler):
    envs = tiny.make_envs(8)
    policy = TransformerPolicy.small(envs, num_layers=1, compile_decoding=True)
    assert policy._cache.compiled and policy.prefix_cache().compiled and copy.deepcopy(policy)._cache.compiled
    learner = PolicyGradient(policy, envs, group_size=4, episodes_per_update=8).learn(1)
    assert without_a_compiler
    learner.save(tmp_path)
    assert PolicyGradient.load(tmp_path, tiny.make_envs(8)).policy.compile_decoding


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="compile_decoding=True and a GPT2LMHeadModel.*leave it out"):
        TransformerPolicy.small(V, lora_rank=2, compile_decoding=True)


def test_a_machine_without_a_compiler_is_told_what_it_lacks():
    torch._dynamo.reset()
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    said = pytest.raises(RuntimeError, match="decoding cannot be compiled here: .*no-such-compiler.*Leave compile_")
    with without, said:
        walk(make_model(n_layer=1), [3, 4], steps=3, compiled=True)
    torch._dynamo.reset()


@pytest.mark.full
def test_more_programs_are_made_than_torch_allows_by_itself(monkeypatch):
    made = []

    def counted(graph, inputs):
        made.append(graph)
        return graph.forward

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
        step = compiled.__wrapped__(decoding._gpt2)
    monkeypatch.setattr(key_values, "compiled", lambda _: step)
    torch._dynamo.reset()
    for n_inner in range(16, 26):
        walk(make_model(n_layer=1, n_inner=n_inner), [5] * 4, steps=3, compiled=True)
        assert len(made) > n_inner - 16
    assert len(made) >= 10
    torch._dynamo.reset()


@pytest.mark.full
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_compiled_steps_say_the_same(lengths):
    says_the_same_compiled(make_model().double(), lengths)
