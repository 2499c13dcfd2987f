"""Log-probabilities and entropies of sampled tokens, without ever holding the logits of all of them.

A model is run up to its output layer; what that layer reads is projected on the vocabulary for the tokens that count
alone, a bounded number of logits at a time, and `backward` projects it again rather than keep it. Which distribution
logits stand for is left to `agents.sampling`, and which tokens count to the caller.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agents.models import forward_parameters
from agents.plain_modules import is_watched
from agents.sampling import TokenDistribution

# 16 MiB of float32, of which there are several copies at a time. Blocks of more than 32 MiB glibc gives back to the
# system as soon as they are free, and asks for again: page by page, that takes as long as all the arithmetic.
MAX_LOGITS = 2**22

# Of logits [n, V'], and of which of the tokens they are:
Distribution = Callable[[Tensor, slice], TokenDistribution]
Terms = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # what `scored` says


class TokenScores(NamedTuple):
    """What a policy says of the tokens of B episodes; 0 where not mask."""

    log_probs: Tensor  # [B, T] log π_θ(a_t | s_t)
    entropy: Tensor  # [B, T] H(π_θ(· | s_t)) in nats
    values: Tensor | None  # [B, T] V(s_t); None where they were not asked for


def features_at(model: PreTrainedModel, tokens: Tensor, places: Tensor) -> tuple[Tensor]:
    """What the output layer reads at some places; but for one of them nothing is projected on the vocabulary.

    Args:
        model: one of which `head_is_last` is true.
        tokens: int64 [B, T], ids that the model has embeddings for.
        places: int64 [B, K], columns of `tokens`.

    Returns:
        [B, K, d].
    """
    read: list[Tensor] = []

    def first_place(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        read.append(inputs[0])
        return inputs[0][:1, :1], *inputs[1:]

    with _hooked(model.get_output_embeddings().register_forward_pre_hook(first_place)):
        _run(model, tokens, places)
    [features] = read
    if "logits_to_keep" not in forward_parameters(type(model)):  # a model that projects every place
        features = torch.take_along_dim(features, places[:, :, None], dim=1)
    return (features,)


@torch.no_grad()
def head_is_last(model: PreTrainedModel) -> bool:
    """Whether a model's logits are what its output layer says, place by place, and nothing is done to them after.

    Some models scale them or bend them. Small logits would hardly show it, so that the layer is made to say others.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    said: list[Tensor] = []

    def wide(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        said.append(torch.linspace(-100, 100, output.numel()).to(output).reshape(output.shape))
        return said[-1]

    tokens = torch.ones((1, 2), dtype=torch.int64, device=model.device)
    with _hooked(head.register_forward_hook(wide)):
        logits = _run(model, tokens, torch.tensor([[0, 1]], device=model.device))
    return len(said) == 1 and said[0].shape == logits.shape and bool((said[0] == logits).all())


def scored(
    features: Tensor,
    head: nn.Module | None,
    distribution: Distribution,
    actions: Tensor,
    entropy_gradient: bool = True,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log π(a | s) and H(π(· | s)) of M tokens, [M] each, with gradient.

    Args:
        features: [M, d] what the output layer reads.
        head: the output layer, [n, d] to logits [n, V']; None where the features are the logits.
        distribution: which the logits stand for.
        actions: int64 [M].
        entropy_gradient: whether the entropies carry a gradient.
        max_logits: the most that are there at a time, but for those of one token; up to twice as many are taken at once
            and kept, rather than computed again.
    """
    width = features.shape[-1] if head is None else len(head.weight)  # type: ignore[arg-type]
    whole = len(features) * width <= 2 * max_logits
    parts = [slice(None)] if whole else _parts(len(features), max(1, max_logits // width))

    def terms_of(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        said = distribution(logits, part)
        log_prob, entropy = _Terms.apply(said.log_probs, actions[part], said.support is not None)
        return log_prob, entropy if entropy_gradient else entropy.detach()

    def part_of(features: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return terms_of(features if head is None else head(features), part)

    if len(parts) == 1 or not torch.is_grad_enabled():
        found = [part_of(features[part], part) for part in parts]
    elif type(head) is nn.Linear and not is_watched(head, features.device):
        return _Projected.apply(features, head.weight, head.bias, terms_of, parts)
    else:
        found = [
            checkpoint(part_of, features[part], part, use_reentrant=False, preserve_rng_state=False) for part in parts
        ]
    log_probs, entropies = zip(*found, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, count, size)]


def spread_out(values: Tensor, mask: Tensor) -> Tensor:
    """Values [M] of the places where mask, in order, as [B, T]; 0 where not mask.

    >>> spread_out(torch.tensor([2.0, 3.0]), torch.tensor([[True, False], [True, False]]))
    tensor([[2., 0.],
            [3., 0.]])
    """
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


class _Projected(torch.autograd.Function):
    """Log-probs and entropies of features, projected on the vocabulary in parts, for `backward` once more.

    What a checkpoint of each part would say, but that the weights' gradient is added up in one place: a tensor of their
    size for each part takes longer than its products where a vocabulary is large.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, terms_of: Terms, parts: list[slice]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features, weight, bias)
        ctx.terms_of, ctx.parts = terms_of, parts
        found = [terms_of(nn.functional.linear(features[part], weight, bias), part) for part in parts]
        log_probs, entropies = zip(*found, strict=True)
        return torch.cat(log_probs), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        exact = torch.promote_types(weight.dtype, torch.float32)  # half precision would lose what is added up
        of_features = torch.empty_like(features) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=exact) if wanted[1] else None
        of_bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=exact)
        for part in ctx.parts:
            logits = nn.functional.linear(features[part], weight, bias).requires_grad_()
            with torch.enable_grad():
                terms = ctx.terms_of(logits, part)
            # The entropy may stand still.
            moving = [index for index, term in enumerate(terms) if term.requires_grad]
            [of_logits] = torch.autograd.grad(
                [terms[index] for index in moving], logits, [gradients[index][part] for index in moving]
            )
            if of_features is not None:
                of_features[part] = of_logits @ weight
            if of_weight is not None:
                _add_product(of_weight, of_logits.T, features[part])
            if of_bias is not None:
                of_bias += of_logits.sum(dim=0)
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return of_features, of_weight, None if of_bias is None else of_bias.to(bias.dtype), None, None


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


class _Terms(torch.autograd.Function):
    """Log π(a | s) and H(π(· | s)), [n], of log-probabilities [n, V] that are the outcome of a softmax.

    What `TokenDistribution` says of them, in fewer passes over memory. Log-probabilities can only move so that their
    probabilities sum to 1, along which -p log p - p and -p log p are the same gradient of the entropy: one tensor, that
    the entropy is summed up from, serves both ways.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, actions: Tensor, partial: bool) -> tuple[Tensor, Tensor]:
        terms = log_probs.exp().mul_(log_probs)
        if partial or terms.sum().isnan():
            terms.masked_fill_(log_probs == float("-inf"), 0.0)  # 0 · -inf is NaN
        ctx.save_for_backward(terms, actions)
        return log_probs.gather(-1, actions[:, None]).squeeze(-1), -terms.sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        terms, actions = ctx.saved_tensors
        log_prob, entropy = (each[:, None] for each in gradients)
        return (terms * -entropy).scatter_add_(-1, actions[:, None], log_prob), None, None


def _run(model: PreTrainedModel, tokens: Tensor, places: Tensor) -> Tensor:
    keep = {"logits_to_keep": places} if "logits_to_keep" in forward_parameters(type(model)) else {}
    return model(input_ids=tokens, use_cache=False, **keep).logits


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
