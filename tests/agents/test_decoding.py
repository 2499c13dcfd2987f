"""Steps that are written out say what the model's own code says, and stand aside where that is not plain."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents import decoding
from agents.decoding import step_of
from agents.lora import add_lora
from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache

V, LONGEST = 11, 40


def make_model(**settings) -> GPT2LMHeadModel:
    own = dict(vocab_size=V, n_embd=16, n_layer=3, n_head=4, n_positions=LONGEST, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**(own | settings))).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    return model


def walk(model, lengths, steps, count_calls=None):
    """Logits of histories that grow by a token each, one of them dropped at every third step."""
    tokens = np.random.default_rng(0).integers(V, size=(len(lengths), LONGEST))
    tokens[:, :20] = tokens[0, :20]  # a trunk
    cache, lengths, rows, found = PrefixCache(model), np.array(lengths), np.arange(len(lengths)), []
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
