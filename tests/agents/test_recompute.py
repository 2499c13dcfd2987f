"""Blocks that are run again in `backward`: the same numbers, in less memory."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.lora import adapter_off, add_lora
from agents.recompute import recompute_activations
from tests.agents.small_models import ARCHITECTURES, logits_of, make_model, token_ids
from tests.agents.test_lora import assert_same, snapshot, train_adapters

LAYERS = 3


def make(architecture: str, lora: bool = False) -> PreTrainedModel:
    layers = {"n_layer" if architecture == "gpt2" else "num_hidden_layers": LAYERS}
    model = make_model(architecture, dtype=torch.float64, **layers)
    return train_adapters(add_lora(model, 2, seed=0)) if lora else model


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def loss_of(model: PreTrainedModel) -> Tensor:
    tokens = token_ids()
    log_probs = model(input_ids=tokens, use_cache=False, logits_to_keep=6).logits.log_softmax(dim=-1)
    return -log_probs.take_along_dim(tokens[:, 1:, None], dim=-1).mean()


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


class Calls:
    """How often each block's attention ran, which is how often the block did."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.counts = [0] * len(blocks_of(model))
        for index, block in enumerate(blocks_of(model)):
            attention = next(child for name, child in block.named_modules() if name.endswith(("attn", "attention")))
            attention.register_forward_pre_hook(lambda *_, index=index: self._count(index))

    def _count(self, index: int) -> None:
        self.counts[index] += 1


def kept_bytes(model: PreTrainedModel) -> int:
    """Bytes that the graph of a loss holds, beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_the_same(architecture, lora):
    model = make(architecture, lora)
    values, expected = logits_of(model), gradients(model)
    assert recompute_activations(model) is model
    assert torch.equal(logits_of(model), values)
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    assert all(".lora_" in name for name in actual) or not lora
    for name, value in expected.items():
        assert value.any()
        torch.testing.assert_close(actual[name], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_block_runs_twice_a_gradient_and_once_without(architecture, lora):
    model = recompute_activations(make(architecture, lora))
    calls = Calls(model)
    logits_of(model)
    assert calls.counts == [1] * LAYERS
    loss = loss_of(model)
    assert calls.counts == [2] * LAYERS
    loss.backward()
    assert calls.counts == [3] * LAYERS
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_less_memory_is_kept(architecture, lora):
    model = make(architecture, lora)
    before = kept_bytes(model)
    assert kept_bytes(recompute_activations(model)) < before / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_key_value_cache_is_extended_once(architecture):
    model = recompute_activations(make(architecture))
    expected, tokens = logits_of(model), token_ids()
    calls, cache = Calls(model), DynamicCache(config=model.config)
    head = model(input_ids=tokens[:, :4], past_key_values=cache, use_cache=True).logits  # with gradients enabled
    tail = model(input_ids=tokens[:, 4:], past_key_values=cache, use_cache=True).logits
    assert cache.get_seq_length() == tokens.shape[1]
    torch.testing.assert_close(torch.cat([head, tail], dim=1), expected, atol=1e-12, rtol=0)
    tail.sum().backward()
    assert cache.get_seq_length() == tokens.shape[1]
    assert calls.counts == [2] * LAYERS


def test_in_training_mode_the_second_run_drops_what_the_first_did():
    model = make_model("gpt2", dtype=torch.float64, resid_pdrop=0.5).train()

    def seeded_gradients() -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return gradients(model)

    expected = seeded_gradients()
    recompute_activations(model)
    assert all(torch.equal(value, expected[name]) for name, value in seeded_gradients().items())
    assert not torch.equal(gradients(model.eval())["transformer.wpe.weight"], expected["transformer.wpe.weight"])


def test_a_second_call_changes_nothing():
    model = recompute_activations(make("llama"))
    kinds = [type(block) for block in blocks_of(model)]
    calls = Calls(recompute_activations(model))
    assert [type(block) for block in blocks_of(model)] == kinds
    loss_of(model).backward()
    assert calls.counts == [2] * LAYERS


def test_adapters_may_be_added_afterwards():
    model, other = make("llama"), make("llama", lora=True)
    train_adapters(add_lora(recompute_activations(model), 2, seed=0))
    expected = gradients(other)
    assert all(torch.equal(value, expected[name]) for name, value in gradients(model).items())
    with adapter_off(model), adapter_off(other), torch.no_grad():
        assert torch.equal(loss_of(model), loss_of(other))


def test_a_copy_runs_its_own_weights():
    model = recompute_activations(make("llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert logits_of(other).any()
    assert all(value.any() for value in gradients(other).values())


def test_names_weights_and_files_are_the_same(tmp_path):
    model = make("llama")
    before, printed = snapshot(model), repr(model)
    recompute_activations(model)
    assert_same(before, model.state_dict())
    assert repr(model) == printed
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(logits_of(opened), logits_of(model))
    assert [type(block) for block in blocks_of(opened)] == [type(block) for block in blocks_of(make("llama"))]


def test_other_models_of_the_architecture_are_left_alone():
    recompute_activations(make("llama"))
    model = make("llama")
    calls = Calls(model)
    loss_of(model).backward()
    assert calls.counts == [1] * LAYERS


def test_a_model_without_blocks_is_refused():
    model = make("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(
        ValueError, match="LlamaForCausalLM has no blocks that transformers can checkpoint; train it wi"
    ):
        recompute_activations(model)
