"""A stranger's own model: doctor, sample, train, open what was saved with transformers, evaluate.

In CI every architecture goes through the commands in this process and is trained for a moment; the full checks run
each command in a process of its own, with sockets blocked, and train until the reward has risen.
"""

import json
import re

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.cli import run
from tests.agents.zoo import write_folder
from tests.stories.run import textgym

MODELS = ("llama", "qwen2", "qwen3", "gpt2", "gemma", "gpt-neox", "opt", "mistral-window")
PROMPTS = ("red green", "one dog two", "blue cat")
REWARD = '''
def score(completions, **columns):
    """Share of the letter e."""
    return [text.count("e") / max(1, len(text)) for text in completions]
'''
OWN = ("--prompts", "prompts.jsonl", "--reward", "my_reward.py:score", "--max-new-tokens", "8")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def through_the_commands(command, tokens):
    """The sampled return before and after a training; what was saved writes the same in transformers."""
    assert command("doctor", "--model", "model").count("passed  ") == 6
    before = sampled_return(command, "model")
    shown = command("train", "--model", "model", *OWN, "--total-timesteps", tokens, "--learning-rate", "0.01")
    assert "self-check passed" in shown and "next: textgym evaluate --model runs/prompts-rloo/policy" in shown
    policy = "runs/prompts-rloo/policy"
    lines = command(
        "sample", "--model", policy, "--prompts", "prompts.jsonl", "--max-new-tokens", "8", "--greedy", "--json"
    )
    samples = [json.loads(line) for line in lines.splitlines()]
    assert [sample["completion_ids"] for sample in samples] == [generated(policy, prompt) for prompt in PROMPTS]
    return before, sampled_return(command, policy)


def sampled_return(command, model):
    shown = command("evaluate", "--model", model, *OWN, "--sampled", "--episodes", "192")
    return float(re.search(r"sampled\s+return\s+192\s+(\S+)", shown).group(1))


def generated(policy, prompt):
    """What transformers writes after a prompt, by the files alone; what pads the embedding is no token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    size = Tokenizer.from_file(f"{policy}/tokenizer.json").get_vocab_size()
    padding = list(range(size, model.config.vocab_size)) or None
    with torch.no_grad():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            suppress_tokens=padding,
        )
    return written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:the model attends to the last:UserWarning")
def test_every_architecture_goes_through_the_commands(name, folder, capsys):
    def command(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    write_folder(name, folder / "model")
    through_the_commands(command, tokens=500)


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_learns(name, folder):
    def command(*arguments):
        result = textgym(*arguments, cwd=folder)
        assert result.returncode == 0, result.stderr
        return result.stdout

    write_folder(name, folder / "model")
    before, after = through_the_commands(command, tokens=40_000)
    print(name, "sampled return", before, "→", after)
    assert after > before + 0.1
