"""Which keywords the flags of a model become, and which devices there are."""

from pathlib import Path

import pytest
import torch

from agents import opening
from agents.env_settings import AdvancedModelSettings, ModelSettings
from agents.opening import SetupError, open_policy, prepare
from agents.policy import TransformerPolicy
from textgym.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_symbols(["a", "b", "<eos>"])


@pytest.fixture
def opened(monkeypatch):
    """What `from_pretrained` is called with."""
    calls = []
    monkeypatch.setattr(TransformerPolicy, "from_pretrained", lambda *given, **keywords: calls.append(keywords))
    return calls


def test_what_no_flag_says_is_left_to_the_folder(opened):
    open_policy(ModelSettings(model=Path("model")), VOCABULARY, seed=3)
    assert opened == [{"seed": 3, "dtype": torch.float32, "device": "cpu"}]


def test_every_flag_of_the_model_is_a_keyword(opened):
    advanced = AdvancedModelSettings(temperature=0.5, top_k=7, top_p=0.9, min_p=0.0, dtype="bfloat16")
    open_policy(ModelSettings(Path("model"), "cuda:1", advanced), VOCABULARY, seed=0)
    sampling = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.0}
    assert opened == [{"seed": 0, "dtype": torch.bfloat16, "device": "cuda:1", **sampling}]


def test_a_saved_policy_opens_as_the_flags_say(tmp_path):
    TransformerPolicy.small(3, d_model=16, temperature=0.5).save_pretrained(tmp_path)
    saved = open_policy(ModelSettings(tmp_path), VOCABULARY, seed=0)
    other = open_policy(ModelSettings(tmp_path, "cpu", AdvancedModelSettings(2.0, dtype="bfloat16")), VOCABULARY, 0)
    assert (saved.temperature, other.temperature) == (0.5, 2.0)
    assert [next(policy.parameters()).dtype for policy in (saved, other)] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("count", [0, 2])
def test_devices_that_are_not_here_are_refused_by_name(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    here = ["cpu", "cuda:0", "cuda:1"][: count + 1]
    assert opening.available_devices() == here
    for device in (*here, *(["cuda"] if count else [])):
        prepare(ModelSettings(device=device))
    for device in ("cuda:2", "mps", "gpu", "", *([] if count else ["cuda"])):
        with pytest.raises(SetupError, match=f"--device '{device}' is not available; here are {', '.join(here)}"):
            prepare(ModelSettings(device=device))
