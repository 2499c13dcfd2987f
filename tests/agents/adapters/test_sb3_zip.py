"""Zips that stable-baselines3 saves: read without running what they hold, and played as their library plays them."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from agents.adapters.stable_baselines3 import MaskableTextGenPolicy, TextGenPolicy, TransformerFeatures, make_vec_env
from agents.policy import TransformerPolicy
from agents.sb3_zip import NetworkAgent, open_zip
from tests.agents.commands import exit_code

V, L = 8, 8  # of sort


def small():
    return {"d_model": 32, "num_layers": 1}


def features(**more):
    return {"features_extractor_class": TransformerFeatures, "features_extractor_kwargs": small(), **more}


def envs(**env_kwargs):
    return make_vec_env(n_envs=4, seed=0, env_kwargs=env_kwargs)


AGENTS = {
    "TextGenPolicy": lambda: PPO(TextGenPolicy, envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs=small()),
    "MaskableTextGenPolicy": lambda: MaskablePPO(
        MaskableTextGenPolicy, envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs=small()
    ),
    "MlpPolicy": lambda: A2C("MlpPolicy", envs(), device="cpu"),
    "MlpPolicy with ReLU": lambda: PPO(
        "MlpPolicy",
        envs(),
        n_steps=8,
        batch_size=32,
        device="cpu",
        policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": [16, 24]},
    ),
    "features": lambda: PPO("MlpPolicy", envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs=features()),
    "DQN": lambda: DQN("MlpPolicy", envs(), learning_starts=8, buffer_size=64, device="cpu"),
    "DQN with features": lambda: DQN(
        "MlpPolicy", envs(), learning_starts=8, buffer_size=64, device="cpu", policy_kwargs=features(net_arch=[])
    ),
}


@pytest.fixture(scope="module", params=AGENTS)
def saved(request, tmp_path_factory):
    agent = AGENTS[request.param]()
    agent.learn(64)
    path = tmp_path_factory.mktemp("zip") / "agent.zip"
    agent.save(path)
    return request.param, agent, path


def histories():
    generator = np.random.default_rng(0)
    tokens = generator.integers(V, size=(64, L))
    return np.where(np.arange(L) < generator.integers(4, 8, size=64)[:, None], tokens, V)


def test_it_chooses_what_its_library_chooses(saved):
    name, agent, path = saved
    opened = open_zip(path, V, L, seed=0)
    expected, _ = agent.predict(histories(), deterministic=True)
    if isinstance(opened, TransformerPolicy):
        found, _ = opened.act(histories(), deterministic=True)
    else:
        found, _ = opened.act(histories(), deterministic=True)
        assert opened.draws == (not name.startswith("DQN"))
        net = agent.policy.q_net if name.startswith("DQN") else None
        if net is not None:
            assert torch.allclose(opened.outputs(histories()), net(torch.as_tensor(histories())), atol=1e-5)
    assert found.tolist() == expected.tolist()


def test_what_it_draws_has_the_probabilities_of_its_library(saved):
    name, agent, path = saved
    if name.startswith("DQN"):
        return
    opened = open_zip(path, V, L, seed=0)
    observations = histories()
    actions, log_probs = opened.act(observations)
    with torch.no_grad():
        distribution = agent.policy.get_distribution(torch.as_tensor(observations))
    assert log_probs == pytest.approx(distribution.log_prob(torch.as_tensor(actions)).numpy(), abs=1e-5)
    again, _ = open_zip(path, V, L, seed=0).act(observations)
    other, _ = open_zip(path, V, L, seed=1).act(observations)
    assert again.tolist() == actions.tolist() != other.tolist()


def test_it_is_measured(saved, capsys):
    name, _, path = saved
    assert exit_code("evaluate", "--agent", path, "--episodes", 32) == 0
    said = capsys.readouterr().out
    assert "greedy" in said and ("sampled" in said) == (not name.startswith("DQN"))


def test_networks_of_masked_training_keep_to_their_masks(tmp_path):
    env_kwargs = {"task": "brackets", "observation": "tokens"}
    agent = MaskablePPO(
        "MlpPolicy", make_vec_env(n_envs=4, env_kwargs=env_kwargs), n_steps=8, batch_size=32, device="cpu"
    )
    agent.save(tmp_path / "agent.zip")
    opened = open_zip(tmp_path / "agent.zip", 3, 8, seed=0)
    assert isinstance(opened, NetworkAgent) and opened.masked
    assert exit_code("evaluate", "--agent", tmp_path / "agent.zip", "--task", "brackets", "--episodes", 64) == 0


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def rewritten(path, target, **parts):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, parts.get(name.split(".")[0], old.read(name)))
    return target


def test_objects_of_the_description_are_never_loaded(saved, tmp_path):
    import base64

    _, _, path = saved
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("data"))
    bomb = base64.b64encode(pickle.dumps(_Bomb(tmp_path / "exploded"))).decode()
    for value in description.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = bomb
    open_zip(rewritten(path, tmp_path / "bomb.zip", data=json.dumps(description)), V, L, seed=0)
    assert not (tmp_path / "exploded").exists()


def test_weights_that_are_more_than_weights_are_refused(saved, tmp_path):
    _, _, path = saved
    file = io.BytesIO()
    torch.save({"weight": _Bomb(tmp_path / "exploded")}, file)
    with pytest.raises(ValueError, match="Python objects of a file are never loaded"):
        open_zip(rewritten(path, tmp_path / "bomb.zip", policy=file.getvalue()), V, L, seed=0)
    assert not (tmp_path / "exploded").exists()


def test_tensors_that_claim_more_than_the_file_holds_are_refused(saved, tmp_path):
    _, _, path = saved
    file = io.BytesIO()
    torch.save({"action_net.weight": torch.zeros(1).expand(2**20, 2**20)}, file)
    with pytest.raises(ValueError, match="no weights by name"):
        open_zip(rewritten(path, tmp_path / "wide.zip", policy=file.getvalue()), V, L, seed=0)


def test_weights_that_are_zipped_too_well_are_refused(saved, tmp_path):
    _, _, path = saved
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("data", old.read("data"))
        new.writestr("policy.pth", bytes(2**24))
    with pytest.raises(ValueError, match="compressed more"):
        open_zip(tmp_path / "bomb.zip", V, L, seed=0)


def test_what_only_objects_describe_is_refused(tmp_path):
    recurrent = RecurrentPPO("MlpLstmPolicy", envs(), n_steps=8, batch_size=32, device="cpu")
    recurrent.save(tmp_path / "recurrent.zip")

    class Own(TransformerFeatures):
        def get_extra_state(self):
            return torch.zeros(0, dtype=torch.uint8)

    own = PPO(
        "MlpPolicy", envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs={"features_extractor_class": Own}
    )
    own.save(tmp_path / "own.zip")
    # Without layers of its own, and as wide as the features: its weights look like those of another policy.
    kwargs = features(lstm_hidden_size=32, net_arch=[])
    alike = RecurrentPPO("MlpLstmPolicy", envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs=kwargs)
    alike.save(tmp_path / "alike.zip")

    class Scaled(FlattenExtractor):
        def forward(self, observations):
            return super().forward(observations) / 8

    kwargs = {"features_extractor_class": Scaled}
    scaled = PPO("MlpPolicy", envs(), n_steps=8, batch_size=32, device="cpu", policy_kwargs=kwargs)
    scaled.save(tmp_path / "scaled.zip")

    class OwnPolicy(ActorCriticPolicy):
        pass

    PPO(OwnPolicy, envs(), n_steps=8, batch_size=32, device="cpu").save(tmp_path / "policy.zip")
    for name in ("recurrent", "own", "alike", "scaled", "policy"):
        with pytest.raises(ValueError, match=rf"{name}.zip"):
            open_zip(tmp_path / f"{name}.zip", V, L, seed=0)


def test_other_files_and_other_tasks_are_refused(saved, tmp_path, capsys):
    name, _, path = saved
    with pytest.raises(ValueError, match="environment 3|here are"):
        open_zip(path, 3, L, seed=0)
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for file in ("text.zip", "empty.zip", "nowhere.zip"):
        assert exit_code("evaluate", "--agent", tmp_path / file) == 1
        said = capsys.readouterr().err
        assert file in said and "Traceback" not in said


@pytest.mark.parametrize("setting", ["n_embd", "n_layer", "n_positions", "vocab_size"])
def test_a_description_of_a_huge_model_takes_no_memory(setting, saved, tmp_path):
    name, agent, path = saved
    if name != "TextGenPolicy":
        return
    weights = agent.policy.state_dict()
    description = json.loads(weights["_extra_state"].numpy().tobytes())
    description["config"][setting] = 2**28
    weights["_extra_state"] = torch.from_numpy(np.frombuffer(json.dumps(description).encode(), dtype=np.uint8).copy())
    file = io.BytesIO()
    torch.save(weights, file)
    with pytest.raises(ValueError, match="are there"):
        open_zip(rewritten(path, tmp_path / "huge.zip", policy=file.getvalue()), V, L, seed=0)
