"""The files that a user brings: a small untrained character model, prompts of real text, a reward in a file."""

import json
import pydoc_data.topics
import string

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from textgym import Vocabulary

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
REWARD = '''
def score(completions, **columns):
    """Share of vowels."""
    return [sum(character in "aeiou" for character in text) / max(1, len(text)) for text in completions]
'''


def make_files(folder, seed=0):
    """Write model/, prompts.jsonl and my_reward.py."""
    vocabulary = Vocabulary.from_symbols([*CHARACTERS, "<eos>"])
    stop_id = vocabulary.stop_ids[0]
    config = GPT2Config(
        vocab_size=vocabulary.size,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=stop_id,
        eos_token_id=stop_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
    vocabulary.save(folder / "model")
    rows = [{"prompt": prompt, "topic": topic} for topic, prompt in first_lines()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "my_reward.py").write_text(REWARD, encoding="utf-8")


def first_lines(width=24):
    """The beginning of every page of the language reference that Python carries."""
    for topic, page in sorted(pydoc_data.topics.topics.items()):
        prompt = " ".join(page.split())[:width]
        if prompt and all(character in CHARACTERS for character in prompt):
            yield topic, prompt
