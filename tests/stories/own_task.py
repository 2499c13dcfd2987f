import gymnasium as gym

import textgym


def only_vowels(prompts, completions):  # one number a completion; TRL's signature
    answers = ["".join(letter for letter in prompt if letter in "aeiou") for prompt in prompts]
    return [float(text == answer) for text, answer in zip(completions, answers)]


@textgym.register_task("vowels", levels=(1, 2), description="the vowels of the prompt, in order")
def make(level):
    return textgym.Task(
        name="vowels",
        level=level,
        tokenizer=[*"abcdefg", "<eos>"],
        prompts=["ace", "bee", "dab"] if level == 1 else ["facade", "cabbage", "defaced"],
        max_prompt_tokens=8,
        max_new_tokens=4,
        reward=only_vowels,
        optimum=1.0,
    )


env = gym.make("TextGen-v0", task="vowels", level=2)
env.reset(options={"prompt": "cabbage"})
for action in env.unwrapped.vocabulary.encode("aae<eos>"):
    observation, reward, terminated, truncated, info = env.step(action)
print(info["score"], env.unwrapped.optimum)
