"""Every configuration of the environment can be learned on, in every mode; what is sampled there is what is scored."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from agents.learner import PolicyGradient, Update
from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.textgym.cases import CASES, MODES, make_vec


@pytest.mark.filterwarnings("ignore::UserWarning")  # of dropped episodes, and of parts left to the default task
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_configuration_can_be_learned_on(name: str, mode: AutoresetMode) -> None:
    envs = make_vec(name, mode=mode)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1).double()
    updates: list[Update] = []
    PolicyGradient(policy, envs, group_size=2, episodes_per_update=8).learn(10, updates.append)
    assert all(np.isfinite(list(update.metrics.values())).all() for update in updates)
    rollout = collect(policy, envs, 10, np.random.default_rng(0), group_size=2)
    scored = policy.log_probs(rollout).detach().numpy()
    np.testing.assert_allclose(scored[rollout.mask], rollout.log_probs[rollout.mask], atol=1e-6)
    prompts = [rollout.texts(row)[0] for row in range(10)]
    assert prompts[::2] == prompts[1::2]  # groups share theirs
