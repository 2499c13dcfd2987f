import gymnasium as gym
import numpy as np

import textgym
from textgym.oracle import NGram, fold, folded_kl, folded_optimum, folded_soft_optimum, folded_values

env = gym.make("TextGen-v0", task="regex", level=4, max_new_tokens=300)  # lists of binary numbers: [0,101,1]
folded = fold(env)  # states × tokens left, in place of some 5^300 texts

likes_digits = np.array([0.3, 0.3, 0.1, 0.1, 0.1, 0.1])  # 0 1 , [ ] <eos>
after = np.tile(likes_digits, (7, 1))  # a row for each token that came last, and one for the beginning
after[3] = [0.5, 0.5, 0, 0, 0, 0]  # a digit after [
with np.errstate(divide="ignore"):
    reference = NGram(np.log(after))  # π_ref, a bigram model

best = folded_soft_optimum(folded, reference, beta=0.1)  # π*, the best of J(π) - β KL(π‖π_ref)
print("J* =", folded_optimum(folded).objective)
print("J(π_ref) =", folded_values(folded, reference).objective)
print("J(π*) =", folded_values(folded, best.policy).objective)
print("KL(π*‖π_ref) =", folded_kl(best.policy, reference))
print("J_β* =", best.objective)

env.reset()
for token in best.policy.sample(1, np.random.default_rng(0))[0]:
    observation, reward, terminated, truncated, info = env.step(token)
    if terminated:
        break
print(env.unwrapped.vocabulary.decode(observation[: info["length"] - 1]), reward)
