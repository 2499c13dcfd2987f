"""Half-precision weights that follow float32 copies: steps that rounding would lose, exact sums, exact resumption."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.full_precision import FullPrecision
from agents.lora import add_lora
from tests.agents.small_models import make_model, token_ids

HALF = [torch.bfloat16, torch.float16]


def weight_of(*values: float, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def loss_of(model: PreTrainedModel, rows: slice = slice(None)) -> Tensor:
    tokens = token_ids(rows=6)[rows]
    log_probs = model(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
    return -log_probs.take_along_dim(tokens[:, 1:, None], dim=-1).mean()


def train(model: PreTrainedModel, steps: int, optimizer_type=torch.optim.SGD, **settings) -> FullPrecision:
    weights = FullPrecision(model.parameters())
    walk(model, weights, optimizer_type(weights.parameters, **settings), steps)
    return weights


def walk(model: PreTrainedModel, weights: FullPrecision, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        weights.zero_grad()
        for rows in (slice(0, 4), slice(4, 6)):
            loss_of(model, rows).backward()
            weights.take_gradients()
        torch.nn.utils.clip_grad_norm_(weights.parameters, 1.0)
        optimizer.step()
        weights.write_back()


def flat(parameters) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in parameters])


# --- small steps


def test_steps_that_bfloat16_rounds_away_add_up():
    # Adam's step under a constant gradient is the learning rate: 100 of .0001 from 1. The neighbours of 1 below it are
    # multiples of 1/256; .99 is nearest to 253/256.
    alone, weight = weight_of(1.0), weight_of(1.0)
    weights = FullPrecision([weight])
    own, theirs = (torch.optim.Adam(what, lr=1e-4) for what in ([alone], weights.parameters))
    for _ in range(100):
        weights.zero_grad()
        alone.grad, weight.grad = torch.ones_like(alone), torch.ones_like(weight)
        own.step()
        weights.take_gradients()
        theirs.step()
        weights.write_back()
    assert alone.item() == 1.0
    assert weights.parameters[0].item() == pytest.approx(0.99, abs=1e-5)
    assert weight.item() == 253 / 256


@pytest.mark.parametrize("dtype", HALF)
def test_with_the_same_gradients_the_copies_are_a_float32_run_and_the_weights_its_rounding(dtype):
    start = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    slopes = torch.randn(7, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight, reference = nn.Parameter(start.clone()), nn.Parameter(start.float())
    weights = FullPrecision([weight])
    own, theirs = torch.optim.Adam([reference], lr=1e-3), torch.optim.Adam(weights.parameters, lr=1e-3)
    for slope in slopes:
        own.zero_grad()
        weights.zero_grad()
        (reference * slope.float()).sum().backward()
        (weight * slope).sum().backward()  # its gradient is the slope, exactly
        weights.take_gradients()
        own.step()
        theirs.step()
        weights.write_back()
    assert torch.equal(weights.parameters[0], reference)
    assert torch.equal(weight, reference.to(dtype))
    assert not torch.equal(weight, start)


@pytest.mark.parametrize("architecture", ["llama tied", "gpt2"])
def test_a_model_moves_as_in_float32(architecture):
    start, half, alone = (make_model(architecture, dtype=torch.bfloat16) for _ in range(3))
    whole = start.float()
    first = flat(whole.parameters())
    train(whole, steps=20, lr=1e-3)
    weights = train(half, steps=20, lr=1e-3)
    optimizer = torch.optim.SGD(alone.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        (loss_of(alone, slice(0, 4)) + loss_of(alone, slice(4, 6))).backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimizer.step()
    moved = flat(whole.parameters()) - first

    def error(parameters) -> float:
        return float((flat(parameters) - first - moved).norm() / moved.norm())

    assert error(weights.parameters) < 0.05  # bfloat16 gradients have an error of about 1%
    assert error(alone.parameters()) > 0.5
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(half.parameters(), weights.parameters, strict=True))


# --- gradients


@pytest.mark.parametrize(("dtype", "small"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_gradients_of_microbatches_are_summed_in_float32(dtype, small):
    weight, alone = weight_of(3.0, dtype=dtype), weight_of(3.0, dtype=dtype)
    weights = FullPrecision([weight])
    for slope in (1.0, small, small, small):
        (alone * slope).sum().backward()
        (weight * slope).sum().backward()
        weights.take_gradients()
        assert weight.grad is None
    assert alone.grad.item() == 1.0  # where each small one is rounded away
    (copy,) = weights.parameters
    assert (copy.grad.dtype, copy.grad.item()) == (torch.float32, 1.0 + 3 * small)


def test_a_parameter_without_a_gradient_has_none_and_stays():
    used, unused = weight_of(1.0), weight_of(2.0)
    weights = FullPrecision([used, unused])
    used.grad = torch.ones_like(used)
    weights.take_gradients()
    assert weights.parameters[1].grad is None
    torch.optim.SGD(weights.parameters, lr=0.5).step()
    weights.write_back()
    assert (used.item(), unused.item()) == (0.5, 2.0)


def test_zero_grad_leaves_no_gradient_anywhere():
    half, whole = weight_of(1.0), weight_of(1.0, dtype=torch.float32)
    weights = FullPrecision([half, whole])
    half.grad, whole.grad = torch.ones_like(half), torch.ones_like(whole)
    weights.take_gradients()
    half.grad = torch.ones_like(half)
    weights.zero_grad()
    assert [parameter.grad for parameter in (half, whole, *weights.parameters)] == [None] * 4


# --- which parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_of_full_precision_are_used_themselves_and_nothing_changes(dtype):
    model, plain = make_model("gpt2", dtype=dtype), make_model("gpt2", dtype=dtype)
    weights = FullPrecision(model.parameters())
    own = list(model.parameters())
    assert len(weights.parameters) == len(own)
    assert all(a is b for a, b in zip(weights.parameters, own, strict=True))
    assert weights.state() == {}
    loss_of(model).backward()
    gradients, versions = [p.grad for p in own], [p._version for p in own]
    weights.take_gradients()
    weights.write_back()
    weights.load_state({})
    assert all(p.grad is gradient for p, gradient in zip(own, gradients, strict=True))
    assert [p._version for p in own] == versions
    walk(model, weights, torch.optim.Adam(weights.parameters, lr=1e-3), 3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(plain, slice(0, 4)).backward()
        loss_of(plain, slice(4, 6)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(own, plain.parameters(), strict=True))


def test_frozen_parameters_are_left_out():
    model = add_lora(make_model("llama", dtype=torch.bfloat16), 2, seed=0)
    weights = FullPrecision(model.parameters())
    adapters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    assert all(a is b for a, b in zip(weights.parameters, adapters, strict=True))
    assert weights.state() == {}


def test_some_are_copied_and_some_are_not_in_the_models_order():
    first, second, third = weight_of(1.0), weight_of(2.0, dtype=torch.float32), weight_of(3.0, dtype=torch.float16)
    weights = FullPrecision([first, second, third])
    assert [parameter.item() for parameter in weights.parameters] == [1.0, 2.0, 3.0]
    assert [parameter.dtype for parameter in weights.parameters] == [torch.float32] * 3
    assert weights.parameters[1] is second
    assert set(weights.state()) == {"0", "2"}


# --- writing back


def test_weights_change_in_place_and_say_so():
    model = make_model("llama tied", dtype=torch.bfloat16)
    weights = FullPrecision(model.parameters())
    before = [(parameter, parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
    with torch.no_grad():
        for copy in weights.parameters:
            copy += 1
    weights.write_back()
    for (parameter, address, version), now in zip(before, model.parameters(), strict=True):
        assert parameter is now and now.data_ptr() == address and now._version > version
        assert now.requires_grad and now.is_leaf
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", HALF)
def test_before_any_step_writing_back_changes_no_weight(dtype):
    model, same = make_model("gpt2", dtype=dtype), make_model("gpt2", dtype=dtype)
    FullPrecision(model.parameters()).write_back()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


# --- saving


def learner(model: PreTrainedModel) -> tuple[PreTrainedModel, FullPrecision, torch.optim.Optimizer]:
    weights = FullPrecision(model.parameters())
    return model, weights, torch.optim.Adam(weights.parameters, lr=1e-4)


@pytest.mark.parametrize("with_copies", [True, False])
def test_a_resumed_training_continues_exactly_and_not_without_the_copies(with_copies, tmp_path: Path):
    whole = learner(make_model("gpt2", dtype=torch.bfloat16))
    walk(*whole, 6)
    model, weights, optimizer = learner(make_model("gpt2", dtype=torch.bfloat16))
    walk(model, weights, optimizer, 3)
    save_file(weights.state(), tmp_path / "copies.safetensors")
    model.save_pretrained(tmp_path)

    resumed = learner(type(model).from_pretrained(tmp_path).eval())
    assert resumed[0].dtype == torch.bfloat16
    if with_copies:
        resumed[1].load_state(load_file(tmp_path / "copies.safetensors"))
    resumed[2].load_state_dict(optimizer.state_dict())
    walk(*resumed, 3)
    pairs = list(zip(whole[1].parameters, resumed[1].parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) is with_copies


def test_loading_sets_the_weights_to_the_rounded_copies():
    weight = weight_of(1.0)
    FullPrecision([weight]).load_state({"0": torch.tensor([0.99])})
    assert weight.item() == 253 / 256


def test_a_state_can_be_saved_whatever_the_layout_of_the_weight(tmp_path):
    weight = nn.Parameter(torch.arange(6.0).view(2, 3).bfloat16().T)
    save_file(FullPrecision([weight]).state(), tmp_path / "state.safetensors")
    assert torch.equal(load_file(tmp_path / "state.safetensors")["0"], weight.float())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, r"parameter '0' is nothing in the saved state and float32 \[2\] in training"),
        ({"0": torch.zeros(3)}, r"parameter '0' is float32 \[3\] in the saved state and float32 \[2\] in training"),
        ({"0": torch.zeros(2).half()}, r"parameter '0' is float16 \[2\] in the saved state"),
        (
            {"0": torch.zeros(2), "1\x1b": torch.zeros(1)},
            r"parameter '1\\x1b' is float32 \[1\] in the saved state and nothing",
        ),
    ],
)
def test_a_state_of_other_parameters_is_refused(state, words):
    weight = weight_of(1.0, 2.0)
    weights = FullPrecision([weight])
    with pytest.raises(ValueError, match=words):
        weights.load_state(state)
    assert weights.parameters[0].tolist() == weight.tolist() == [1.0, 2.0]
