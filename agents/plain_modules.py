"""Modules looked at from outside: which there are, and whether they compute what class and weights say, or more."""

from collections.abc import Iterator

import torch
from torch.nn import Module
from torch.nn.modules import module as modules

_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_OWN = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def parts_of(module: Module) -> Iterator[Module]:
    """A module and all those in it, each once; without the names that torch's own walk makes up."""
    waiting, seen = [module], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [child for child in part._modules.values() if child is not None]


def is_watched(module: Module, device: torch.device) -> bool:
    """Whether a module, or one in it, has hooks or a forward of its own, or another number format is asked for.

    Args:
        module: whose computation somebody means to write out.
        device: where it runs.
    """
    if torch.is_autocast_enabled(device.type) or any(getattr(modules, name) for name in _GLOBAL):
        return True
    return any("forward" in (own := vars(part)) or any(own[name] for name in _OWN) for part in parts_of(module))
