"""LoRA in place: what is adapted, what stays frozen, switching off, and weights with the adapters merged."""

import copy
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from agents.lora import adapter_off, adapter_state, add_lora, is_lora, merged_state_dict
from tests.agents.small_models import ARCHITECTURES, logits_of, make_model, token_ids

RANK = 2
CLOSE = 1e-5
# The linear layers of one block, by hand: adapters are as many as blocks times these, and OPT's two projections.
LINEAR_LAYERS = {"gpt2": 4, "gpt_neox": 4, "opt": 6}


def adapters_of(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def train_adapters(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Set every adapter weight, B's zeros too, to something that changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters_of(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(architecture: str, **settings) -> PreTrainedModel:
    return train_adapters(add_lora(make_model(architecture, **settings), RANK, seed=0))


def snapshot(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- what is adapted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_layer_but_the_head_is_adapted_and_the_rest_frozen(architecture):
    model = make_model(architecture)
    plain_class, before = type(model), logits_of(model)
    assert add_lora(model, RANK, seed=0) is model
    assert type(model) is plain_class
    assert torch.equal(logits_of(model), before)
    adapters = adapters_of(model)
    layers = 2 * LINEAR_LAYERS.get(architecture, 7) + (2 if architecture == "opt" else 0)
    assert len(adapters) == 2 * layers
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(adapters)
    assert not any(hasattr(end, "base_layer") for end in (model.get_output_embeddings(), model.get_input_embeddings()))
    assert all(RANK in parameter.shape for parameter in adapters.values())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of(architecture):
    add_lora(make_model(architecture), RANK, seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_are_those_of_peft(architecture):
    base = make_model(architecture)
    model = adapted(architecture)
    config = LoraConfig(
        r=RANK, lora_alpha=32, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2", task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(base, config)
    theirs.load_state_dict({f"base_model.model.{name}": value for name, value in model.state_dict().items()})
    assert torch.equal(logits_of(theirs.eval()), logits_of(model))


def test_the_addition_is_alpha_over_rank_times_b_a():
    model = add_lora(make_model("llama"), rank=4, seed=0, alpha=6)
    layer = train_adapters(model).model.layers[0].mlp.up_proj
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((4, 16), (24, 4))
    expected = inputs @ layer.base_layer.weight.T + 1.5 * (inputs @ a.T @ b.T)
    torch.testing.assert_close(layer(inputs), expected, atol=CLOSE, rtol=0)


def test_alpha_is_32_by_default_whatever_the_rank():
    for rank in (1, 8):
        model = add_lora(make_model("llama"), rank, seed=0)
        assert model.model.layers[0].mlp.up_proj.scaling == {"default": 32 / rank}


def test_the_seed_decides_the_weights_and_the_global_generator_stays():
    before = torch.get_rng_state()
    first, again, other = (adapters_of(add_lora(make_model("gpt2"), RANK, seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    a = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in a)
    assert all(not value.any() for name, value in first.items() if "lora_B" in name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_of_a_bfloat16_model_are_float32_and_train(architecture):
    model = adapted(architecture, dtype=torch.bfloat16)
    assert {value.dtype for value in adapters_of(model).values()} == {torch.float32}
    logits = model(input_ids=token_ids()).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert all(value.grad.dtype == torch.float32 and value.grad.any() for value in adapters_of(model).values())
    assert all(value.grad is None for name, value in model.named_parameters() if ".lora_" not in name)


def test_adapters_of_a_float64_model_are_float64():
    assert {value.dtype for value in adapters_of(adapted("llama", dtype=torch.float64)).values()} == {torch.float64}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_called_as_before(architecture):
    model = adapted(architecture)
    tokens, plain = token_ids(), logits_of(model)
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(tokens), 1, length, length)
    places = torch.arange(length).expand(len(tokens), length)
    with torch.no_grad():
        kept = model(input_ids=tokens, logits_to_keep=torch.tensor([2, 5])).logits
        masked = model(input_ids=tokens, attention_mask=causal, position_ids=places, use_cache=False).logits
        head = model(input_ids=tokens[:, :4], use_cache=True)
        tail = model(input_ids=tokens[:, 4:], past_key_values=head.past_key_values).logits
    torch.testing.assert_close(kept, plain[:, [2, 5]], atol=CLOSE, rtol=0)
    torch.testing.assert_close(masked, plain, atol=CLOSE, rtol=0)
    torch.testing.assert_close(tail, plain[:, 4:], atol=CLOSE, rtol=0)


# --- switching off


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_switched_off_the_model_is_the_one_before(architecture, dtype):
    model = make_model(architecture, dtype=dtype)
    before = logits_of(model)
    on = logits_of(train_adapters(add_lora(model, RANK, seed=0)))
    with adapter_off(model):
        assert torch.equal(logits_of(model), before)
    assert torch.equal(logits_of(model), on)
    assert not torch.equal(on, before)


def test_switching_off_nests_and_is_undone_after_an_exception():
    model = adapted("llama")
    on = logits_of(model)
    with adapter_off(model):
        off = logits_of(model)
        with adapter_off(model):
            assert torch.equal(logits_of(model), off)
        assert torch.equal(logits_of(model), off)
        with pytest.raises(KeyError), adapter_off(model):
            raise KeyError
        assert torch.equal(logits_of(model), off)
    assert torch.equal(logits_of(model), on)
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert torch.equal(logits_of(model), on)


def test_switching_off_leaves_what_is_trained_as_it_was():
    model = adapted("llama")
    frozen = model.model.layers[0].mlp.up_proj.lora_A["default"].weight.requires_grad_(False)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with adapter_off(model):
        pass
    assert not frozen.requires_grad
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before


def test_a_gradient_passes_by_a_reference_that_was_computed_on_the_way():
    model = adapted("llama")

    def gradient(reference: bool) -> list[torch.Tensor]:
        logits = model(input_ids=token_ids()).logits
        if reference:
            with adapter_off(model), torch.no_grad():
                model(input_ids=token_ids())
        return list(torch.autograd.grad(logits.square().sum(), list(adapters_of(model).values())))

    assert all(torch.equal(a, b) for a, b in zip(gradient(False), gradient(True), strict=True))


def test_a_model_without_adapters_cannot_be_its_own_reference():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no adapters to switch off; add_lora\(model, rank"):
        with adapter_off(make_model("llama")):
            pass


def test_the_state_tells_on_from_off_from_merged_from_scaled():
    model = make_model("llama")
    plain = adapter_state(model)
    on = adapter_state(add_lora(model, RANK, seed=0))
    with adapter_off(model):
        off = adapter_state(model)
    layer = model.model.layers[1].mlp.up_proj
    layer.scale_layer(2.0)
    scaled = adapter_state(model)
    layer.unscale_layer()
    assert adapter_state(train_adapters(model)) == on
    layer.merge()
    assert len({plain, on, off, scaled, adapter_state(model)}) == 5


def test_is_lora():
    model = make_model("gpt2")
    assert not is_lora(model)
    add_lora(model, RANK, seed=0)
    assert is_lora(model)
    with adapter_off(model):
        assert is_lora(model)
    assert is_lora(copy.deepcopy(model))


# --- merged


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_compute_what_the_adapters_do_and_the_model_is_untouched(architecture):
    plain, model = make_model(architecture), adapted(architecture)
    before, on = snapshot(model), logits_of(model)
    merged = merged_state_dict(model)
    assert_same(before, model.state_dict())
    assert torch.equal(logits_of(model), on)
    assert list(merged) == list(plain.state_dict())
    assert not any(value.requires_grad for value in merged.values())
    difference = (on - logits_of(plain)).abs().max()
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits_of(plain), on, atol=CLOSE, rtol=0)
    assert difference > 1000 * CLOSE


@pytest.mark.parametrize("architecture", ["llama tied", "gemma", "gpt2", "opt"])
def test_tied_weights_stay_tied(architecture):
    model = adapted(architecture)
    merged = merged_state_dict(model)
    head, embedding = (f"{name}.weight" for name in ("lm_head", embedding_name(model)))
    assert merged[head].data_ptr() == merged[embedding].data_ptr() == model.get_input_embeddings().weight.data_ptr()


def embedding_name(model: PreTrainedModel) -> str:
    return next(name for name, module in model.named_modules() if module is model.get_input_embeddings())


def test_merged_weights_do_not_depend_on_the_switch():
    model = adapted("gpt2")
    on = merged_state_dict(model)
    with adapter_off(model):
        assert_same(on, merged_state_dict(model))


def test_weights_that_hold_the_adapters_already_are_not_added_to_again():
    model = adapted("llama")
    expected = merged_state_dict(model)
    for module in model.modules():
        if hasattr(module, "merged_adapters"):
            module.merge()
    assert_same(expected, merged_state_dict(model))


def test_merged_in_half_precision_the_sum_is_rounded_once():
    model = adapted("llama", dtype=torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = layer.base_layer.weight.double() + 16 * (b @ a)
    merged = merged_state_dict(model)["model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert ((merged.double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_a_plain_model_is_its_own_merged_model():
    model = make_model("gpt2")
    merged = merged_state_dict(model)
    assert all(merged[name].data_ptr() == value.data_ptr() for name, value in model.state_dict().items())


# --- refused


@pytest.mark.parametrize(
    ("rank", "error", "words"),
    [
        (0, ValueError, r"rank=0; give an integer of at least 1"),
        (-3, ValueError, r"rank=-3; give an integer of at least 1"),
        (1.5, TypeError, r"rank=1.5 is a float; give an integer of at least 1"),
        (True, TypeError, r"rank=True is a bool; give an integer of at least 1"),
        ("8", TypeError, r"rank='8' is a str; give an integer of at least 1"),
    ],
)
def test_a_rank_that_is_none(rank, error, words):
    model = make_model("llama")
    with pytest.raises(error, match=words):
        add_lora(model, rank, seed=0)
    assert not is_lora(model)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_none(alpha):
    with pytest.raises(ValueError, match=r"alpha=.*; give a finite number above 0"):
        add_lora(make_model("llama"), RANK, seed=0, alpha=alpha)


def test_adapters_are_added_once():
    with pytest.raises(ValueError, match="LlamaForCausalLM has adapters already; give a model without"):
        add_lora(adapted("llama"), RANK, seed=0)


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    model = make_model("llama")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'textgym\[lora\]', or pip install -e '\.\[lora\]' in a checko"):
        add_lora(model, RANK, seed=0)
    assert not is_lora(model) and adapter_state(model) == ()
