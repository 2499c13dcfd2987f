"""TRL's trainers over a tiny model, told what they generated and, where asked, what the log-probabilities are.

Everything else is TRL's own code. TRL is imported when a trainer is made: it is in the extra "parity" alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.agents import tiny

LEARNING_RATE = 0.5


class Generated(NamedTuple):
    """What a trainer is told that it generated, in the order of its groups."""

    prompts: list[str]  # one a group
    completion_ids: list[list[int]]  # as many for each prompt
    rewards: list[float | None]  # one a completion; None: it could not be scored


def write_model(folder: Path, seed: int = 0) -> Path:
    """A float64 model with V outputs, whose positions are relative: TRL pads prompts on the left."""
    config = LlamaConfig(
        vocab_size=len(tiny.SYMBOLS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tiny.STOP,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
    model.double().save_pretrained(folder)
    return folder


def open_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def make_trainer(name: str, folder: Path, generated: Generated, **settings: Any) -> Any:
    """A trainer that steps by plain gradient descent, all episodes at once, and keeps the first step's size.

    Args:
        name: "GRPO" or "RLOO".
        folder: of the model, which is the reference too.
        generated: what it will say that it generated.
        settings: of its config.
    """
    import trl
    from datasets import Dataset

    trainer_type, config_type = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    model, count = open_model(folder), len(generated.completion_ids)
    common = dict(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=count,
        num_generations=count // len(generated.prompts),
        learning_rate=LEARNING_RATE,
        max_grad_norm=0.0,  # none
        max_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    trainer = trainer_type(
        model,
        reward_funcs=_told_rewards(generated),
        args=config_type(**(common | settings)),
        train_dataset=Dataset.from_dict({"prompt": generated.prompts}),
        processing_class=_tokenizer(),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    completion_ids = generated.completion_ids
    trainer._generate_single_turn = lambda *_: completion_ids if name == "RLOO" else (completion_ids, None)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # as training sets it
    trainer.model.train()
    return trainer


def prepared_inputs(trainer: Any, generated: Generated) -> dict[str, Any]:
    """What TRL makes of the episodes, advantages included, before they are cut into parts."""
    each = len(generated.completion_ids) // len(generated.prompts)
    rows = [{"prompt": prompt} for prompt in generated.prompts for _ in range(each)]
    return trainer._generate_and_score_completions(rows)


def loss_of(trainer: Any, inputs: dict[str, Any], log_probs: Tensor, parts: int = 1) -> Tensor:
    """TRL's loss of given log-probabilities [B, T]: the sum over the parts that a step accumulates."""
    from trl.trainer.utils import split_tensor_dict

    losses = []
    for own, part in zip(log_probs.chunk(parts), split_tensor_dict(inputs, parts), strict=True):
        trainer._get_per_token_logps_and_entropies = lambda *_, own=own, **__: (own, torch.zeros_like(own), None)
        losses.append(trainer.compute_loss(trainer.model, part))
    return torch.stack(losses).sum()


def _told_rewards(generated: Generated) -> Any:
    def told(completions: Sequence[str], **columns: Any) -> list[float | None]:
        assert len(completions) == len(generated.rewards)
        return generated.rewards

    return told


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: id_ for id_, symbol in enumerate(tiny.SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
