import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec

from agents.adapters.rllib import TransformerModule

TASK, LEVEL, STEPS = "sort", 1, 65_536

config = (
    PPOConfig()
    .environment("textgym:TextGen-v0", env_config={"task": TASK, "level": LEVEL})
    .env_runners(num_env_runners=0, num_envs_per_env_runner=256, gym_env_vectorize_mode="vector_entry_point")
    .rl_module(rl_module_spec=RLModuleSpec(module_class=TransformerModule, model_config={"policy": {"num_layers": 2}}))
    .training(lr=[[0, 2e-3], [STEPS, 1e-5]], gamma=1.0, grad_clip=0.5, clip_param=0.2, use_kl_loss=False)
    # Without shuffling, the states of an episode share a minibatch, and the policy reads them in one pass.
    .training(train_batch_size=2048, minibatch_size=512, num_epochs=4, shuffle_batch_per_epoch=False)
    .evaluation(evaluation_duration=500)
    .reporting(metrics_num_episodes_for_smoothing=500)
)
ray.init(include_dashboard=False, object_store_memory=100_000_000)
ppo = config.build_algo()
while ppo.train()["num_env_steps_sampled_lifetime"] < STEPS:
    pass
print("mean return of 500 episodes:", ppo.evaluate()["env_runners"]["episode_return_mean"])
module = ppo.get_module()
ray.shutdown()


def agent(observations):
    logits = module.forward_inference({"obs": torch.from_numpy(observations)})["action_dist_inputs"]
    return torch.distributions.Categorical(logits=logits).sample().numpy()
