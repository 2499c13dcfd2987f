"""A policy of a chat model: trained on messages, saved with its chat template, opened by transformers and by us."""

from pathlib import Path

import gymnasium as gym
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.textgym.cases import CASES
from textgym.vocabulary import make_vocabulary

ASK = [{"role": "user", "content": "ab"}]
ASKED = "<bos>U:ab<eos>A:"


def make_envs(tokenizer: Path | str) -> gym.vector.VectorEnv:
    return gym.make_vec("textgym:TextGen-v0", num_envs=4, **{**CASES["chat"], "tokenizer": tokenizer})


def test_a_policy_learns_on_messages_and_is_saved_with_its_template(tmp_path):
    envs = make_envs(CASES["chat"]["tokenizer"])
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1)
    PolicyGradient(policy, envs, group_size=2, episodes_per_update=8).learn(20)
    policy.save_pretrained(tmp_path / "policy")
    TransformerPolicy.from_pretrained(tmp_path / "policy").save_pretrained(tmp_path / "again")
    for folder in (tmp_path / "policy", tmp_path / "again"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True) == ASKED
        ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
        assert ids == [4, 5, 7, 2, 3, 6, 7]
        assert make_vocabulary(folder).render(ASK) == ASKED
        assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size >= 8
        opened = TransformerPolicy.from_pretrained(folder)
        rollout = collect(opened, make_envs(folder), 6, np.random.default_rng(0))
        assert {ASKED, "<bos>U:b<eos>A:a", "<bos>ba"} >= {rollout.texts(row)[0] for row in range(6)}
