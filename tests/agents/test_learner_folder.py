"""A learner's folder: what lies beside it stays, and what is not a learner's is refused with its place."""

import json
import shutil

import pytest
import torch

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from tests.agents import tiny


def make_learner(**settings) -> PolicyGradient:
    envs = tiny.make_envs(16)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1)
    return PolicyGradient(policy, envs, "rloo", group_size=4, episodes_per_update=16, **settings)


def metrics_of(learner: PolicyGradient, tokens: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    learner.learn(tokens, lambda update: found.append(update.metrics))
    return found


def test_it_continues_to_the_last_digit_of_every_metric(tmp_path):
    learner = make_learner(kl_coef=0.1, seed=3)
    learner.learn(80)
    learner.save(tmp_path)
    expected = metrics_of(learner, 300)
    again = PolicyGradient.load(tmp_path, tiny.make_envs(16))
    assert len(expected) > 5 and metrics_of(again, 300) == expected
    for own, other in zip(learner.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(own, other)


def test_other_folders_beside_it_stay(tmp_path):
    for name in ("reference", "learner-reference", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    make_learner().save(tmp_path)
    for name in ("reference", "learner-reference", "lora"):
        assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_a_reference_of_an_earlier_learner_goes(tmp_path):
    make_learner(kl_coef=0.1).save(tmp_path)
    assert (tmp_path / "learner-reference").is_dir()
    make_learner().save(tmp_path)
    assert not (tmp_path / "learner-reference").exists()


def test_a_reference_that_was_lost_is_told(tmp_path):
    make_learner(kl_coef=0.1).save(tmp_path)
    shutil.rmtree(tmp_path / "learner-reference")
    with pytest.raises(FileNotFoundError, match="learner-reference"):
        PolicyGradient.load(tmp_path, tiny.make_envs(16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("axes"), "lacks axes"),
        (lambda content: content.update(dtype="nope\x1b[31m"), "no settings or number format of a learner"),
        (lambda content: content.update(reference_dtype="\x1b[31m"), "no settings or number format of a learner"),
        (lambda content: content.update(settings=[1]), "no settings or number format of a learner"),
        (lambda content: content.update(functions=["\x1b[31mX"]), "a function of one's own for"),
        (lambda content: content.update(algorithm="mine"), "unknown algorithm 'mine'.*algorithm=\\.\\.\\."),
    ],
)
def test_what_is_no_learner_is_refused(change, words, tmp_path):
    make_learner().save(tmp_path)
    content = json.loads((tmp_path / "learner.json").read_text())
    change(content)
    (tmp_path / "learner.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as error:
        PolicyGradient.load(tmp_path, tiny.make_envs(16))
    assert "\x1b" not in str(error.value)


def test_a_file_that_is_no_json_is_named(tmp_path):
    make_learner().save(tmp_path)
    (tmp_path / "learner.json").write_text("{")
    with pytest.raises(ValueError, match="learner.json"):
        PolicyGradient.load(tmp_path, tiny.make_envs(16))


def test_a_value_head_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    policy = TransformerPolicy.small(4, d_model=16, num_layers=1, value_head=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.any() for parameter in policy.value_head.parameters())


def test_a_reference_too_short_for_the_histories_is_refused():
    envs = tiny.make_envs(16)
    short = TransformerPolicy.small(envs, d_model=16, num_layers=1)
    short.model.config.max_position_embeddings = short.model.config.n_positions = 2
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1)
    with pytest.raises(ValueError, match="and the reference takes 2"):
        PolicyGradient(policy, envs, "rloo", group_size=4, episodes_per_update=16, kl_coef=0.1, reference=short)
