"""Print a digest of one rollout of every case, for comparison between processes."""

import hashlib
import json
from typing import Any

import numpy as np

from tests.textgym.cases import CASES, MODES, arrays, legal_actions, make, make_vec


def main() -> None:
    """Print one line of JSON: a digest of the bytes of the observations, rewards and infos of each case."""
    print(json.dumps({name: _digest(name) for name in CASES}))


def _digest(name: str) -> str:
    digest = hashlib.sha256()
    for env in (make(name), *(make_vec(name, mode=mode) for mode in MODES[:2])):
        rng = np.random.default_rng(11)
        _add(digest, env.reset(seed=5))
        for _ in range(12):
            result = env.step(legal_actions(env, rng))
            _add(digest, result)
            if not hasattr(env, "num_envs") and (result[2] or result[3]):
                _add(digest, env.reset())
    return digest.hexdigest()


def _add(digest: Any, result: tuple[Any, ...]) -> None:
    digest.update(repr(result).encode())
    for array in arrays(result):
        if array.dtype != object:
            digest.update(array.tobytes())


if __name__ == "__main__":
    main()
