"""A learner's folder: policy, optimizer, reference, generators and settings; a training continues exactly from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import AXES, Algorithm
from agents.lora import is_lora
from agents.models import read_json
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from textgym.errors import unknown
from textgym.escape import shown

_SETTINGS_FILE = "learner.json"
_STATE_FILE = "learner.safetensors"
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_KEYS = frozenset(
    "algorithm axes functions dtype gradient_checkpointing lora trained settings num_timesteps "
    "num_updates num_prompts kl_coef reference_dtype prompt_generator minibatch_generator".split()
)
_LORA_FOLDER = "lora"  # base and adapters, which the merged weights of policy/ cannot be taken apart into


def save(learner: Any, folder: Path) -> None:
    """Write a learner; see `PolicyGradient.save`."""
    policy = learner.policy
    policy.save_pretrained(folder / "policy")
    before = _saved_before(folder)
    if before.get("lora"):
        shutil.rmtree(folder / _LORA_FOLDER, ignore_errors=True)
    if before.get("reference_dtype"):
        ReferencePolicy.remove(folder)
    if is_lora(policy.model):
        policy.save_pretrained(folder / _LORA_FOLDER, merge_adapters=False)
    if learner.reference is not None:
        learner.reference.save(folder)
    tensors = {"action_generator": learner.action_generator.get_state()}
    tensors["policy_generator"] = policy.generator.get_state()
    for index, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in moments.items()}
    tensors |= {f"weights.{name}": value for name, value in learner.weights.state().items()}
    save_file(tensors, folder / _STATE_FILE)
    (folder / _SETTINGS_FILE).write_text(json.dumps(_content(learner), indent=2) + "\n", encoding="utf-8")


def load(
    kind: type,
    folder: Path,
    envs: VectorEnv | Callable[[TransformerPolicy], VectorEnv],
    algorithm: str | Algorithm | None,
    device: str | torch.device,
) -> Any:
    """Read a learner; see `PolicyGradient.load`."""
    content = _read_content(folder)
    policy = _load_policy(folder, content, device)
    envs = envs(policy) if callable(envs) else envs
    settings = content["settings"]
    own = content["reference_dtype"]
    reference = ReferencePolicy.load(folder, getattr(torch, own), device) if own else None
    learner = kind(policy, envs, algorithm or _row(content), reference=reference, **settings)
    try:
        tensors = load_file(folder / _STATE_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"learner {str(folder / _STATE_FILE)!r} does not load: {error}") from error
    learner.action_generator.set_state(tensors.pop("action_generator"))
    policy.generator.set_state(tensors.pop("policy_generator"))
    learner.prompt_generator.bit_generator.state = content["prompt_generator"]
    learner.minibatch_generator.bit_generator.state = content["minibatch_generator"]
    for count in ("num_timesteps", "num_updates", "num_prompts", "kl_coef"):
        setattr(learner, count, content[count])
    learner.weights.load_state(_of("weights", tensors))
    state = learner.optimizer.state_dict()
    for name, value in _of("optimizer", tensors).items():
        index, moment = name.split(".")
        state["state"].setdefault(int(index), {})[moment] = value
    learner.optimizer.load_state_dict(state)
    return learner


def _saved_before(folder: Path) -> dict[str, Any]:
    """What an earlier `save` to the folder wrote of itself; nothing where there was none."""
    try:
        return read_json(folder / _SETTINGS_FILE)
    except ValueError:
        return {}


def _read_content(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"learner {str(folder)!r}: there is no file {str(file)!r}")
    content = read_json(file)
    missing = sorted(_KEYS - content.keys())
    known = not missing and content["dtype"] in _DTYPES and content["reference_dtype"] in (None, *_DTYPES)
    if not known or not isinstance(content["settings"], dict):
        what = f"lacks {', '.join(missing)}" if missing else "holds no settings or number format of a learner"
        raise ValueError(f"learner {str(file)!r} {what}; give a folder that PolicyGradient.save of this version wrote")
    return content


def _content(learner: Any) -> dict[str, Any]:
    policy, row = learner.policy, learner.algorithm
    return {
        "algorithm": row.name,
        # What differs from the row of the name; a function has no place in a file, and the row must be given again.
        "axes": {axis: value for axis, value in _changed(row).items() if not callable(value)},
        "functions": [axis for axis, value in _changed(row).items() if callable(value)],
        "dtype": _name(policy.model.dtype),
        "gradient_checkpointing": policy.gradient_checkpointing,
        "compile_decoding": policy.compile_decoding,
        "lora": is_lora(policy.model),
        "trained": [name for name, weights in policy.named_parameters() if weights.requires_grad],
        "settings": learner.settings,
        "num_timesteps": learner.num_timesteps,
        "num_updates": learner.num_updates,
        "num_prompts": learner.num_prompts,
        "kl_coef": learner.kl_coef,
        "reference_dtype": _name(learner.reference.dtype) if learner.reference and learner.reference.dtype else None,
        "prompt_generator": learner.prompt_generator.bit_generator.state,
        "minibatch_generator": learner.minibatch_generator.bit_generator.state,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _changed(row: Algorithm) -> dict[str, Any]:
    known = ALGORITHMS.get(row.name)
    return {axis: getattr(row, axis) for axis in AXES if known and getattr(row, axis) != getattr(known, axis)}


def _row(content: dict[str, Any]) -> Algorithm:
    name, functions = content["algorithm"], content["functions"]
    if functions:
        raise ValueError(
            f"the saved algorithm {shown(name)} has a function of one's own for {shown(functions)}, which no file "
            "holds; give the row again: load(..., algorithm=...)"
        )
    if name not in ALGORITHMS:
        raise ValueError(f"{unknown('algorithm', name, ALGORITHMS)} Give a row of one's own: load(..., algorithm=...)")
    return make_algorithm(content["algorithm"], **content["axes"])


def _load_policy(folder: Path, content: dict[str, Any], device: str | torch.device) -> TransformerPolicy:
    policy = TransformerPolicy.from_pretrained(
        folder / (_LORA_FOLDER if content["lora"] else "policy"),
        dtype=getattr(torch, content["dtype"]),
        device=device,
        gradient_checkpointing=content["gradient_checkpointing"],
        compile_decoding=content.get("compile_decoding", False),
    )
    for name, weights in policy.named_parameters():
        weights.requires_grad_(name in content["trained"])
    return policy


def _of(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part, by the names that it gave them."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
