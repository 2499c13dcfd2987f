"""Transformer policies and policy-gradient learners over `gym.make_vec("TextGen-v0")`."""
