"""TRL's GRPOTrainer on the workload of the speed benchmark, as its documentation sets it up; its steps are timed.

TRL, datasets and transformers' trainer are imported when a trainer is made.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks import workload


class Trainer:
    """GRPO with groups of 8, one step of AdamW an update, no KL, constant learning rate.

    Args:
        model: copied.
        prompts: texts of the workload's tokens.
        episodes: of an update.
        batch: completions in one backward pass.
        learning_rate: of AdamW, without decay.
        seed: of everything that the library draws.
        folder: for what it writes, which is nothing of use.
        clock: tells the time in seconds.

    Attributes:
        seconds: of every step so far.
        rewards: mean reward of every step so far.
        tokens: of all completions of every step so far.
        batch: as above.
        random_state: of torch's generator, at the next call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[str],
        episodes: int,
        batch: int,
        learning_rate: float,
        seed: int,
        folder: Path,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        self.seconds: list[float] = []
        self.rewards: list[float] = []
        self.tokens: list[int] = []
        self.batch = batch
        own = self

        class Watch(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.start = clock()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                own.seconds.append(clock() - self.start)

        def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
            scores = workload.score(completion_ids)
            own.rewards.append(sum(scores) / len(scores))
            own.tokens.append(sum(map(len, completion_ids)))
            return scores

        with torch.random.fork_rng(devices=[]):  # the library seeds torch's own generator, and draws from it
            self.trainer = GRPOTrainer(
                copy.deepcopy(model),
                reward_funcs=score,
                args=GRPOConfig(
                    output_dir=str(folder),
                    per_device_train_batch_size=batch,
                    gradient_accumulation_steps=episodes // batch,
                    num_generations=workload.GROUP_SIZE,
                    max_completion_length=workload.HORIZON,
                    learning_rate=learning_rate,
                    lr_scheduler_type="constant",
                    weight_decay=0.0,
                    max_grad_norm=1.0,
                    beta=0.0,
                    loss_type="grpo",
                    temperature=1.0,
                    max_steps=1,
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    logging_strategy="no",
                    report_to="none",
                    save_strategy="no",
                    disable_tqdm=True,
                    seed=seed,
                ),
                train_dataset=Dataset.from_dict({"prompt": prompts}),
                processing_class=_tokenizer(),
                callbacks=[Watch()],
            )
            self.random_state = torch.random.get_rng_state()
        self.trainer.remove_callback(PrinterCallback)  # which prints every step's metrics

    def train(self, updates: int) -> None:
        """Make so many updates; the completions are drawn on from where the call before left off."""
        self.trainer.args.max_steps = updates
        with torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(self.random_state)
            self.trainer.train()
            self.random_state = torch.random.get_rng_state()


def _tokenizer() -> PreTrainedTokenizerFast:
    """The workload's symbols as words, and one more token, the model's last, as padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [symbol.strip() for symbol in workload.symbols()]
    vocabulary = {word: id_ for id_, word in enumerate([*words, "<pad>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[workload.STOP_ID], pad_token="<pad>")
