import gymnasium as gym

import textgym
from textgym.schemes import Length


def right(completions, answer):
    return [float(text == correct) for text, correct in zip(completions, answer)]


def brief(completions):
    return [1 / len(text) if text else None for text in completions]  # None: does not apply


env = gym.make(
    "TextGen-v0",
    prompts=[{"prompt": "2+3=", "answer": "5"}, {"prompt": "7+5=", "answer": "12"}],
    prompt_order="sequential",
    tokenizer=[*"0123456789+=;", "<eos>"],
    stop=[";"],  # besides the stop token <eos>
    reward={"right": right, "brief": (brief, 0.5)},
    scheme=["terminal", Length(0.1)],  # the score at the end, and a price for each token
    max_new_tokens=4,
    text_info=True,
)
for answer in ("5;", "12<eos>"):
    env.reset()
    for action in env.unwrapped.vocabulary.encode(answer):
        observation, reward, terminated, truncated, info = env.step(action)
    print(info["prompt"], info["completion"], info["scores"], info["score"], reward)
