"""The files of a model with LoRA adapters: merged into a plain model, or the adapters alone in peft's own format.

Only JSON and safetensors are read. Says nothing of tokenizers and policies.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agents.lora import (
    ADAPTER,
    base_state_dict,
    checked_rank,
    inject_lora,
    is_lora,
    lora_layers,
    merged_state_dict,
)
from agents.models import save_model
from textgym.escape import escape, shown, told

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."  # of every name in peft's files

# Of peft's settings: those that say what plain adapters add and where, and those that change nothing about that.
_READ = (
    "r lora_alpha target_modules exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "use_rslora"
).split()
_OTHER = (
    "auto_mapping base_model_name_or_path fan_in_fan_out inference_mode lora_dropout megatron_core peft_type "
    "peft_version qalora_group_size revision task_type"
).split()
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian")}


def save_merged(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the plain model with the adapters added to its weights; it opens without peft.

    Args:
        model: with adapters, which stay as they are; see `agents.lora.merged_state_dict`.
        folder: made where it does not exist.

    Raises:
        ValueError: the folder holds an adapter_config.json, by which transformers would add adapters a second time.
    """
    folder = Path(folder)
    if (folder / _CONFIG_FILE).exists():
        raise ValueError(
            f"{str(folder)!r} holds {_CONFIG_FILE}, whose adapters transformers would add to the merged weights; "
            "give another folder"
        )
    _save_plain(model, merged_state_dict(model), folder)


def save_base(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the plain model as it was before the adapters; with what `save_adapter` writes it makes the model again."""
    _save_plain(model, base_state_dict(model), Path(folder))


def save_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the adapters alone; `load_adapter`, and peft's `PeftModel.from_pretrained(base, folder)`, open them.

    Args:
        model: with adapters, which are saved switched on or off.
        folder: made where it does not exist.

    Raises:
        ValueError: the model has no adapters.
    """
    if not is_lora(model):
        raise ValueError(f"{type(model).__name__} has no adapters to save; add_lora(model, rank, seed) adds them")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # peft's own writer puts sets down in an order that changes from one process to the next.
    settings = model.peft_config[ADAPTER].to_dict()
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    text = json.dumps(content, indent=2, sort_keys=True)
    (folder / _CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / _WEIGHTS_FILE).write_bytes(save(_tensors(model), {"format": "pt"}))


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Freeze a model and give it the adapters of a folder; with the base that they were trained on, to the last bit.

    Args:
        model: the base; changed in place, and of no use after an error.
        folder: what `save_adapter` or peft wrote, of plain LoRA; dropout that it was trained with is left out.

    Returns:
        The same model.

    Raises:
        FileNotFoundError, ValueError: no adapters there, or such as cannot be read or do not fit the model.
        ImportError: peft is not installed.
    """
    folder = Path(folder)
    settings, tensors = _read_settings(folder / _CONFIG_FILE), _read_tensors(folder)
    try:
        inject_lora(model, settings, seed=0)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{str(folder / _CONFIG_FILE)!r} does not fit {type(model).__name__}: {told(error)}"
        ) from error
    _check_layers(model, folder / _CONFIG_FILE)
    own = _tensors(model)
    for name in sorted(own.keys() | tensors.keys()):
        here, there = _shape(own.get(name)), _shape(tensors.get(name))
        if here != there:
            raise ValueError(
                f"{str(folder / _WEIGHTS_FILE)!r} does not fit {type(model).__name__}: it holds {escape(name)} as "
                f"{there} and the model as {here}; load the adapters into the base that they were trained on"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return model


def _save_plain(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    with torch.device("meta"):  # no memory and no random draws: every weight is put in below
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights, assign=True)
    plain.generation_config = model.generation_config
    save_model(plain, folder)


def _check_layers(model: PreTrainedModel, file: Path) -> None:
    """Others cannot be merged: an adapted head would no longer be the embedding that it is tied to."""
    head = model.get_output_embeddings()
    for name, layer in lora_layers(model):
        if layer is head or not isinstance(layer.get_base_layer(), (nn.Linear, Conv1D)):
            raise ValueError(f"{str(file)!r} adapts {escape(name)}; only linear layers before the output head are read")


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapters' own memory, by the names of peft's files."""
    from peft import get_peft_model_state_dict

    # The embeddings are never adapted; asked to find that out, peft looks for the base on the network.
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    return {_PREFIX + name: tensor for name, tensor in state.items()}


def _read_settings(file: Path) -> dict[str, Any]:
    """The settings that count, of plain LoRA."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        if content.get("peft_type") != "LORA":
            raise ValueError(f"peft_type is {shown(content.get('peft_type'))}; only 'LORA' is read")
        checked_rank(content.get("r"))
    except FileNotFoundError:
        raise FileNotFoundError(f"adapters {str(file.parent)!r}: there is no file {str(file)!r}") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} does not load: {error}") from error
    for name, value in content.items():
        if value and name not in (*_READ, *_OTHER) and value not in _PLAIN.get(name, ()):
            raise ValueError(f"{str(file)!r} sets {escape(name)}={shown(value)}; only plain LoRA is read")
    return {name: content[name] for name in _READ if name in content}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / _WEIGHTS_FILE
    if not file.is_file():
        if (folder / _PICKLE_FILE).exists():
            raise ValueError(
                f"{str(folder / _PICKLE_FILE)!r} is a pickle, which is never read: loading one runs what code it "
                "holds; have the adapters saved again as safetensors"
            )
        raise FileNotFoundError(f"adapters {str(folder)!r}: there is no file {str(file)!r}")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{str(file)!r} does not load: {error}") from error


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(list(tensor.shape))
