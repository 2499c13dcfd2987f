import tempfile

import gymnasium as gym
from trl import GRPOConfig, GRPOTrainer

from agents import TransformerPolicy
from agents.adapters.trl import grpo_inputs

TASK, LEVEL, STEPS, BATCH = "sort", 1, 250_000, 256

envs = gym.make_vec("textgym:TextGen-v0", num_envs=512, task=TASK, level=LEVEL)
inputs = grpo_inputs(task=TASK, level=LEVEL)
config = GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    max_steps=STEPS // (BATCH * inputs.max_completion_length),
    per_device_train_batch_size=BATCH,  # completions
    num_generations=8,
    max_completion_length=inputs.max_completion_length,
    learning_rate=2e-3,
    bf16=False,
    use_cpu=True,
    gradient_checkpointing=False,  # a small model in float32 needs neither
    report_to="none",
)
data = dict(train_dataset=inputs.train_dataset, processing_class=inputs.processing_class)
trainer = GRPOTrainer(TransformerPolicy.small(envs).model, inputs.reward_funcs, config, **data)
trainer.train()
trainer.save_model()
policy = TransformerPolicy.from_pretrained(config.output_dir, envs.unwrapped.vocabulary)


def agent(observations):
    return policy.act(observations)[0]


observations, returns = envs.reset(seed=0)[0], 0
for _ in range(inputs.max_completion_length):
    observations, rewards, *_ = envs.step(agent(observations))
    returns += rewards
print("mean return:", returns.mean())
