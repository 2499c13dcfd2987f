import gymnasium as gym
import numpy as np

from textgym import oracle

env = gym.make("textgym:TextGen-v0", task="palindrome", level=2)  # 4 symbols, 5 tokens: 1024 texts
tree = oracle.enumerate_tree(env)  # every state, every text and what it scores
policy = np.log([[0.1, 0.2, 0.3, 0.4]]).repeat(tree.num_nodes, axis=0)  # log π(a | s), a row for each of N states
print("J(π)", oracle.values(tree, policy).objective)
print("J*", oracle.optimum(tree).objective)
print("best of 16", oracle.best_of_n(tree, policy, n=16).objective)

reference, beta = tree.uniform(), 0.1
soft = oracle.soft_optimum(tree, reference, beta)  # the best of J(π) - β KL(π‖π_ref)
print("J_β* - J_β(π)", soft.objective - oracle.regularised_objective(tree, policy, reference, beta))
print("β KL(π‖π*)", beta * oracle.kl(tree, policy, soft.log_probs))
