import gymnasium as gym

import textgym
from agents import PolicyGradient, TransformerPolicy


def score(completions, answer, **columns):  # one number a completion; TRL's signature
    return [(text[:1] == right) / 2 + (text == right) / 2 for text, right in zip(completions, answer)]


prompts = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10 - a)]
envs = gym.make_vec(
    "TextGen-v0", num_envs=128, prompts=prompts, tokenizer=[*"0123456789+=", "<eos>"], reward=score, max_new_tokens=3
)
learner = PolicyGradient(TransformerPolicy.small(envs), envs, episodes_per_update=128)
learner.learn(60_000, callback=lambda update: print(update.step, update.metrics["reward"]))
