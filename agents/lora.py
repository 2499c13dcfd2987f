"""LoRA: train a small low-rank addition α/r · BA to every linear layer of a frozen model, through peft.

The adapters are injected in place: the model keeps its class, its forward and its generation, and with the adapters
switched off it is the model that it was before. Files are `agents.lora_files`' matter.
"""

import operator
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from textgym.escape import escape, shown, type_name

ADAPTER = "default"  # peft's name for the only adapter
_ALPHA = 32.0  # a constant: with α/r as the scale, the best learning rate hardly depends on the rank


def add_lora(model: PreTrainedModel, rank: int, seed: int, alpha: float | None = None) -> PreTrainedModel:
    """Freeze a model and give each of its linear layers but the output head an adapter that can be trained.

    Until the adapters are trained the model is unchanged, B = 0. There is no dropout. Adapters are in float32 where
    the model is in half precision.

    Args:
        model: a causal language model; changed in place.
        rank: r, the rank of each addition.
        seed: of the initial weights; the global generator stays as it is.
        alpha: α, of the scale α/r; by default 32.

    Returns:
        The same model.

    Raises:
        ImportError: peft is not installed.
        TypeError, ValueError: a rank or alpha outside its range, or a model that has adapters already, no linear
            layer, or such as are not; it is of no use then.
    """
    rank = checked_rank(rank)
    alpha = _ALPHA if alpha is None else float(alpha)
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha={alpha}; give a finite number above 0")
    inject_lora(model, {"r": rank, "lora_alpha": alpha, "target_modules": "all-linear"}, seed)
    for name, layer in lora_layers(model):
        if not isinstance(layer.get_base_layer(), (nn.Linear, Conv1D)):
            raise ValueError(
                f"{type(model).__name__}: {escape(name)} is no linear layer of its own (experts of a mixture, for "
                "example), and its adapters could not be merged; train it without LoRA"
            )
    return model


def is_lora(model: PreTrainedModel) -> bool:
    """Whether a model has adapters, switched on or off."""
    return any(True for _ in lora_layers(model))


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model is the one before `add_lora`, to the last bit; may be nested.

    Raises:
        ValueError: the model has no adapters, so that it would be its own reference.
    """
    if not is_lora(model):
        raise ValueError(f"{type(model).__name__} has no adapters to switch off; add_lora(model, rank, seed) adds them")
    layers = [layer for _, layer in lora_layers(model) if not layer.disable_adapters]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in frozen:  # switching on makes every adapter trainable
            parameter.requires_grad_(False)


def adapter_state(model: PreTrainedModel) -> Hashable:
    """What decides, beside the weights, what the adapters add: it differs when they were switched, scaled or merged."""
    return tuple(
        (layer.disable_adapters, *layer.active_adapters, *layer.merged_adapters, *layer.scaling.values())
        for _, layer in lora_layers(model)
    )


@torch.no_grad()
def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the plain model that computes what the adapted one does, W + α/r · BA.

    The model stays as it is: merging in place and back again would round its weights. Adapters count whether they are
    switched on or off. Weights without an adapter are the model's own tensors, tied ones the same tensor.

    Returns:
        By the plain model's names and in its dtypes; in half precision the sums are rounded to that.
    """
    return _plain_state_dict(model, _with_adapters)


def base_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the model before `add_lora`, its own tensors, by their names then.

    Raises:
        ValueError: peft has merged adapters into them.
    """
    if any(layer.merged for _, layer in lora_layers(model)):
        raise ValueError(f"the adapters of {type(model).__name__} are merged into its weights; unmerge them first")
    return _plain_state_dict(model, lambda weight, layer: weight)


def lora_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The adapted layers, peft's `LoraLayer`s, and their names; none, without peft, where the model has no adapters."""
    if hasattr(model, "peft_config"):
        from peft.tuners.lora import LoraLayer

        yield from _found(model, LoraLayer, "")


def inject_lora(model: PreTrainedModel, settings: dict[str, Any], seed: int) -> PreTrainedModel:
    """Freeze a model and put in adapters of these settings of peft's `LoraConfig`; see `add_lora`."""
    if hasattr(model, "peft_config"):
        raise ValueError(f"{type(model).__name__} has adapters already; give a model without")
    try:
        from peft import LoraConfig
        from peft.functional import cast_adapter_dtype
    except ImportError as error:
        raise ImportError(
            "LoRA needs peft: pip install 'textgym[lora]', or pip install -e '.[lora]' in a checkout"
        ) from error
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(**settings, fan_in_fan_out=transposed, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(operator.index(seed))
        model.add_adapter(config, ADAPTER)
    cast_adapter_dtype(model, ADAPTER)
    return model.train(model.training)


def checked_rank(rank: Any) -> int:
    """The rank as an int; TypeError or ValueError where it is none of at least 1."""
    if isinstance(rank, bool) or not hasattr(rank, "__index__"):
        raise TypeError(f"rank={shown(rank)} is a {type_name(rank)}; give an integer of at least 1")
    if rank < 1:
        raise ValueError(f"rank={shown(rank)}; give an integer of at least 1")
    return operator.index(rank)


def _plain_state_dict(model: PreTrainedModel, weigh: Callable[[Tensor, Any], Tensor]) -> dict[str, Tensor]:
    layers = dict(lora_layers(model))
    plain = {}
    for name, value in model.state_dict().items():
        place = next((place for place in layers if name.startswith(f"{place}.")), None)
        if place is None:
            plain[name] = value
        elif name.startswith(f"{place}.base_layer."):
            parameter = name.removeprefix(f"{place}.base_layer.")
            plain[f"{place}.{parameter}"] = weigh(value, layers[place]) if parameter == "weight" else value
    return plain


def _with_adapters(weight: Tensor, layer: Any) -> Tensor:
    if layer.merged:
        return weight
    additions = sum(layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A)
    return (weight + additions).to(weight.dtype)


def _found(module: nn.Module, kind: type, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a kind; not searched inside, where most modules of an adapted model are."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            yield prefix + name, child
        else:
            yield from _found(child, kind, f"{prefix}{name}.")
