"""A policy out of the zip that stable-baselines3 saves, without running anything that the zip holds.

Such a zip has weights and a description in pickled Python objects. The weights are read by `weights_only=True`, the
objects never: what they would say is read off the weights' names and shapes, and off the plain text beside them. Does
not import stable-baselines3. What a wrapper did to the observations, VecNormalize for instance, is not in a zip.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agents.description import policy_from
from agents.policy import TransformerPolicy
from agents.sampling import TokenDistribution
from textgym.escape import shown, told

_MOST_TEXT = 2**26  # bytes of the description
_MOST_COMPRESSION = 100
_EXTRA_STATE = "_extra_state"
_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU)}
_INSTEAD = "load it with its library and give 'file.py:agent' instead"


class Layout(NamedTuple):
    """Where a kind of policy keeps its networks, and what stable-baselines3 puts between their layers by default."""

    hidden: str  # prefix of the numbered layers
    output: str | None  # prefix of the last one; None where it is the last of the numbered ones
    features: str  # prefix of the features extractor
    activation: str
    draws: bool  # whether it draws its actions, or takes the best


_LAYOUTS = (
    Layout("mlp_extractor.policy_net", "action_net", "pi_features_extractor", "Tanh", draws=True),
    Layout("q_net.q_net", None, "q_net.features_extractor", "ReLU", draws=False),
)


class NetworkAgent:
    """A network of stable-baselines3's over histories, or over what a transformer makes of them.

    Args:
        layers: from features [N, d] to logits or action values [N, V].
        transformer: makes the features; None where they are the ids themselves, as numbers.
        masked: whether it was trained with action masks.
        draws: whether the outputs are logits to draw from; otherwise the largest is taken.
        seed: of the draws.
    """

    def __init__(
        self, layers: nn.Module, transformer: TransformerPolicy | None, masked: bool, draws: bool, seed: int
    ) -> None:
        self.layers, self.transformer, self.masked, self.draws = layers, transformer, masked, draws
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(
        self,
        observations: np.ndarray,
        generator: torch.Generator | None = None,
        action_mask: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions int64 [N] and their log-probs float32 [N] in the states of int64 [N, L]."""
        logits = self.outputs(observations)
        mask = torch.as_tensor(action_mask) if self.masked and action_mask is not None else None
        distribution = TokenDistribution(logits, logits.shape[-1], action_mask=mask)
        greedy = deterministic or not self.draws
        actions = distribution.mode() if greedy else distribution.sample(generator or self.generator)
        log_probs = torch.zeros(len(actions)) if greedy else distribution.log_prob(actions)
        return actions.numpy(), log_probs.float().numpy()

    @torch.no_grad()
    def outputs(self, observations: np.ndarray) -> Tensor:
        """Logits or action values, [N, V]."""
        if self.transformer is None:
            return self.layers(torch.as_tensor(observations, dtype=torch.float32))
        return self.layers(self.transformer.features(observations, cached=True))


_KNOWN = {  # the parts that a policy's weights may have beside its layers, which play no part in acting
    "mlp_extractor.policy_net": (
        "mlp_extractor",
        "value_net",
        "features_extractor",
        "vf_features_extractor",
        "log_std",
    ),
    "q_net.q_net": ("q_net_target",),
}
_EXTRACTORS = ("FlattenExtractor", "TransformerFeatures")
_LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "agents.adapters.stable_baselines3")


def open_zip(path: Path, size: int, length: int, seed: int) -> TransformerPolicy | NetworkAgent:
    """The policy of a zip that stable-baselines3 saved.

    Args:
        path: of the zip.
        size: V of the environment.
        length: L, the columns of its histories.
        seed: of the draws.

    Raises:
        FileNotFoundError, ValueError: no such zip, no weights, or a policy that Python objects alone describe.
    """
    name = f"agent {str(path)!r}"
    weights, description = _read(path, name)
    try:
        return _opened(weights, description, (size, length), seed, name)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{name} holds no policy of stable-baselines3: {told(error)}") from error


def _opened(
    weights: dict[str, Tensor], description: dict[str, Any], shape: tuple[int, int], seed: int, name: str
) -> TransformerPolicy | NetworkAgent:
    if _EXTRA_STATE in weights:
        _check_library(description, name)
        policy = policy_from(_extra_state(weights[_EXTRA_STATE], name), _under("transformer", weights), name, seed)
        return _fitting(policy, shape[0], name)
    for layout in _LAYOUTS:
        if any(key.startswith(f"{layout.hidden}.") or key == f"{layout.output}.weight" for key in weights):
            return _network(layout, weights, description, shape, seed, name)
    raise ValueError(f"{name} holds no policy that can be read without running its objects; {_INSTEAD}")


def _read(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the description, in which pickled objects are mere text."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("data").file_size > _MOST_TEXT:
                raise ValueError("its description is too large to be one")
            description = json.loads(archive.read("data"))
            entry = archive.getinfo("policy.pth")
            if entry.file_size > _MOST_COMPRESSION * max(1, entry.compress_size):
                raise ValueError("its policy.pth is compressed more than weights can be")
            weights = torch.load(io.BytesIO(archive.read(entry)), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name}: its policy.pth holds more than weights, and Python objects of a file are never loaded"
        ) from error
    except (KeyError, ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} is no zip that stable-baselines3 saved: {told(error)}") from error
    tensors = isinstance(weights, Mapping) and all(isinstance(key, str) and _is_whole(weights[key]) for key in weights)
    if not tensors or not isinstance(description, dict):
        raise ValueError(f"{name} is no zip that stable-baselines3 saved: its policy.pth holds no weights by name")
    return dict(weights), description


def _is_whole(tensor: Any) -> bool:
    """Whether a value is a tensor of real numbers that are all there; an expanded one claims more than a file holds."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_library(description: dict[str, Any], name: str) -> None:
    """Refuse a policy of a class of one's own, which may choose otherwise than its weights say."""
    module = str(_plain(description, "policy_class").get("__module__", ""))
    if not module.startswith(_LIBRARIES):
        raise ValueError(f"{name} has a policy of its own class, of {shown(module)}; {_INSTEAD}")


def _check_parts(layout: Layout, weights: dict[str, Tensor], description: dict[str, Any], name: str) -> None:
    """Refuse what these layers are not all of: a recurrent state, or features of a class of one's own."""
    allowed = (layout.hidden, layout.features, layout.output or layout.hidden, *_KNOWN[layout.hidden])
    for key in weights:
        if not any(key == part or key.startswith(f"{part}.") for part in allowed):
            raise ValueError(f"{name} has parts that are not known here, {shown(key)}; {_INSTEAD}")
    extractor = _plain(description, "policy_kwargs").get("features_extractor_class")
    if extractor is not None and str(extractor).removesuffix("'>").rpartition(".")[2] not in _EXTRACTORS:
        raise ValueError(f"{name} has a features extractor of its own class; {_INSTEAD}")


def _network(
    layout: Layout,
    weights: dict[str, Tensor],
    description: dict[str, Any],
    shape: tuple[int, int],
    seed: int,
    name: str,
) -> NetworkAgent:
    size, length = shape
    _check_library(description, name)
    _check_parts(layout, weights, description, name)
    features = _under(layout.features, weights)
    transformer = None
    if features:
        if _EXTRA_STATE not in features:
            raise ValueError(f"{name} has a features extractor of its own class; {_INSTEAD}")
        described = _extra_state(features[_EXTRA_STATE], name)
        transformer = _fitting(policy_from(described, _under("transformer", features), name), size, name)
    layers = _layers(layout, weights, _activation(layout, description, name))
    inputs, outputs = layers[0].in_features, layers[-1].out_features
    expected = length if transformer is None else transformer.model.get_output_embeddings().weight.shape[1]
    if (inputs, outputs) != (expected, size):
        raise ValueError(
            f"{name} takes {inputs} numbers and chooses among {outputs} actions, and here are {expected} and {size}; "
            f"measure it on the task it was trained on, or {_INSTEAD}"
        )
    masked = "maskable" in str(_plain(description, "policy_class").get("__module__", ""))
    return NetworkAgent(layers, transformer, masked, layout.draws, seed)


def _layers(layout: Layout, weights: dict[str, Tensor], activation: type[nn.Module]) -> nn.Sequential:
    hidden = _under(layout.hidden, weights)
    numbers = sorted({int(key.split(".")[0]) for key in hidden if re.fullmatch(r"\d+\.(weight|bias)", key)})
    prefixes = [f"{layout.hidden}.{number}" for number in numbers]
    if layout.output is not None:
        prefixes.append(layout.output)
    parts: list[nn.Module] = []
    for prefix in prefixes:
        weight = weights[f"{prefix}.weight"]
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": weights[f"{prefix}.bias"]})
        parts += [linear, activation()]
    return nn.Sequential(*parts[:-1])


def _activation(layout: Layout, description: dict[str, Any], name: str) -> type[nn.Module]:
    said = _plain(description, "policy_kwargs").get("activation_fn")
    kind = layout.activation if said is None else str(said).removesuffix("'>").rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        raise ValueError(f"{name} has the activation {shown(said)}; known are {', '.join(_ACTIVATIONS)}, or {_INSTEAD}")
    return _ACTIVATIONS[kind]


def _plain(description: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of the description; of an object that is pickled, what is written beside it in plain text."""
    part = description.get(key)
    return part if isinstance(part, dict) else {}


def _extra_state(state: Tensor, name: str) -> dict[str, Any]:
    try:
        content = json.loads(state.numpy().tobytes())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: the description beside its weights is none: {told(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name}: the description beside its weights is none")
    return content


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in weights.items() if key.startswith(f"{prefix}.")}


def _fitting(policy: TransformerPolicy, size: int, name: str) -> TransformerPolicy:
    if policy.size != size:
        raise ValueError(f"{name} has {policy.size} tokens and the environment {size}")
    return policy
