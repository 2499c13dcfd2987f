"""Folders of models with adapters: what transformers and peft make of them, exact round trips, and broken ones."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from agents.lora import adapter_off, add_lora, is_lora
from agents.lora_files import load_adapter, save_adapter, save_merged
from tests.agents.small_models import ARCHITECTURES, logits_of, make_model
from tests.agents.test_lora import CLOSE, adapted, adapters_of, assert_same, snapshot, train_adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder of Llama adapters."""
    save_adapter(adapted("llama"), tmp_path / "adapters")
    return tmp_path / "adapters"


def edit_config(folder: Path, **changes) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | changes))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


# --- merged


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_folder_opens_without_peft(architecture, tmp_path):
    model = adapted(architecture)
    before, on, generator = snapshot(model), logits_of(model), torch.get_rng_state()
    config = model.config.to_dict()
    save_merged(model, tmp_path / "merged")
    assert_same(before, model.state_dict())
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(logits_of(model), on)
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert type(opened) is type(model) and not is_lora(opened)
    torch.testing.assert_close(logits_of(opened.eval()), on, atol=CLOSE, rtol=0)
    plain = make_model(architecture)
    assert opened.num_parameters() == plain.num_parameters()
    plain.save_pretrained(tmp_path / "plain")
    names = [set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("merged", "plain")]
    assert names[0] == names[1]


def test_a_merged_folder_needs_no_peft_installed(tmp_path, monkeypatch):
    model = adapted("llama")
    save_merged(model, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(opened), logits_of(model), atol=CLOSE, rtol=0)


def test_a_merged_folder_keeps_dtype_and_generation_settings(tmp_path):
    model = adapted("gpt2", dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [3, 5]
    save_merged(model, tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.dtype == torch.bfloat16
    assert opened.generation_config.eos_token_id == [3, 5]


def test_merging_into_a_folder_of_adapters_is_refused(adapters):
    with pytest.raises(ValueError, match=r"adapters' holds adapter_config\.json.*give another folder"):
        save_merged(adapted("llama"), adapters)
    assert not (adapters / "config.json").exists()


def test_the_models_own_save_writes_adapters_and_no_folder_that_passes_for_the_model(tmp_path):
    model = adapted("llama")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert torch.equal(logits_of(load_adapter(make_model("llama"), tmp_path)), logits_of(model))


# --- adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_base_and_adapters_give_the_same_logits_to_the_last_bit(architecture, dtype, tmp_path):
    model = adapted(architecture, dtype=dtype)
    save_adapter(model, tmp_path)
    base = make_model(architecture, dtype=dtype)
    before, generator = logits_of(base), torch.get_rng_state()
    assert load_adapter(base, tmp_path) is base
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same(snapshot(model), base.state_dict())
    assert torch.equal(logits_of(base), logits_of(model))
    assert not torch.equal(logits_of(base), before)
    with adapter_off(base):
        assert torch.equal(logits_of(base), before)
    trained = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    assert trained == set(adapters_of(base))


def test_a_folder_holds_the_adapters_alone(adapters):
    assert {file.name for file in adapters.iterdir()} == {CONFIG, WEIGHTS}
    names = set(load_file(adapters / WEIGHTS))
    assert len(names) == 2 * 2 * 7
    assert "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in names
    content = json.loads((adapters / CONFIG).read_text())
    assert (content["peft_type"], content["task_type"], content["r"], content["lora_alpha"]) == (
        "LORA",
        "CAUSAL_LM",
        2,
        32,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_opens_the_folder(architecture, tmp_path):
    model = adapted(architecture)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(make_model(architecture), tmp_path)
    assert torch.equal(logits_of(theirs), logits_of(model))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "v_proj"]}])
def test_a_folder_of_pefts_own_is_opened(settings, tmp_path):
    config = LoraConfig(**({"r": 3, "lora_alpha": 5, "lora_dropout": 0.5, "target_modules": "all-linear"} | settings))
    theirs = get_peft_model(make_model("llama"), config).eval()
    train_adapters(theirs)
    theirs.save_pretrained(tmp_path)
    model = load_adapter(make_model("llama"), tmp_path)
    assert torch.equal(logits_of(model), logits_of(theirs))
    assert torch.equal(logits_of(model.train()), logits_of(theirs))  # dropout is not kept


def test_adapters_are_saved_whether_they_are_on_or_off(adapters, tmp_path):
    model = adapted("llama")
    with adapter_off(model):
        save_adapter(model, tmp_path / "off")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "off" / name).read_bytes() == (adapters / name).read_bytes()


def test_the_names_of_the_layers_are_sorted(adapters):
    names = json.loads((adapters / CONFIG).read_text())["target_modules"]  # a set to peft, of an order that changes
    assert len(names) == 14 and names == sorted(names)


def test_a_model_of_many_layers_comes_back_too(tmp_path):
    model = train_adapters(add_lora(make_model("llama", num_hidden_layers=4), 2, seed=0))
    save_adapter(model, tmp_path)
    base = make_model("llama", num_hidden_layers=4)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]  # peft shortens long lists
    assert torch.equal(logits_of(load_adapter(base, tmp_path)), logits_of(model))


def test_files_are_as_readable_as_any_other(adapters):
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in adapters.iterdir()} == {0o666 & ~umask}


def test_no_name_of_a_base_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    model = make_model("llama")
    model.name_or_path = "nobody/nothing"
    save_adapter(train_adapters(add_lora(model, 2, seed=0)), tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "nobody/nothing"
    assert torch.equal(logits_of(load_adapter(make_model("llama"), tmp_path)), logits_of(model))


# --- refused


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_a_pickle_is_refused_and_never_run(adapters, tmp_path):
    mark = tmp_path / "it ran"
    torch.save(Payload(mark), adapters / "adapter_model.bin")
    torch.load(adapters / "adapter_model.bin", weights_only=False)
    assert mark.exists(), "the payload works"
    mark.unlink()
    load_adapter(make_model("llama"), adapters)  # the safetensors beside it
    (adapters / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.bin' is a pickle, which is never read.*as safetensors"):
        load_adapter(make_model("llama"), adapters)
    (adapters / WEIGHTS).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors' does not load"):
        load_adapter(make_model("llama"), adapters)
    assert not mark.exists()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(adapters, name):
    (adapters / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"adapters '.*adapters': there is no file '.*{name}'"):
        load_adapter(make_model("llama"), adapters)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not load: Expecting"),
        ("[]", "does not load: it holds no JSON object"),
        ("\ud800", "does not load"),
        ("{}", "peft_type is None; only 'LORA' is read"),
        ('{"peft_type": "IA3"}', "peft_type is 'IA3'; only 'LORA' is read"),
        ('{"peft_type": "LORA"}', "rank=None is a NoneType; give an integer of at least 1"),
        ('{"peft_type": "LORA", "r": 0}', "rank=0; give an integer of at least 1"),
    ],
)
def test_a_broken_config_is_named(adapters, text, words):
    (adapters / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=rf"adapter_config\.json' .*{words}"):
        load_adapter(make_model("llama"), adapters)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2]]},
        {"a\x1bsetting of tomorrow": {"on": True}},
    ],
)
def test_what_is_more_than_plain_lora_is_refused(adapters, changes):
    edit_config(adapters, **changes)
    name = next(iter(changes)).replace("\x1b", r"\\x1b")
    with pytest.raises(ValueError, match=rf"adapter_config\.json' sets {name}=.*; only plain LoRA is read"):
        load_adapter(make_model("llama"), adapters)


@pytest.mark.parametrize("layer", ["model.embed_tokens", "lm_head"])
def test_adapters_of_embeddings_and_the_head_are_refused(layer, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", layer.split(".")[-1]])
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ValueError, match=rf"adapter_config\.json' adapts {layer}; only linear layers before the outp"):
        load_adapter(make_model("llama"), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"target_modules": ["nowhere"]}, {"target_modules": ["mlp"]}, {"lora_alpha": "much"}]
)
def test_settings_that_do_not_fit_the_model_name_the_file(adapters, changes):
    edit_config(adapters, **changes)
    with pytest.raises(ValueError, match=r"adapter_config\.json' does not fit LlamaForCausalLM: "):
        load_adapter(make_model("llama"), adapters)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_broken_weights_are_named(adapters, cut):
    file = adapters / WEIGHTS
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors' does not load"):
        load_adapter(make_model("llama"), adapters)


NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(NAME), rf"it holds {NAME} as nothing and the model as \[2, 16\]"),
        (
            lambda tensors: tensors.update({NAME: torch.zeros(2, 9)}),
            rf"it holds {NAME} as \[2, 9\] and the model as \[2, 16\]; load the adapters into the base",
        ),
        (lambda tensors: tensors.update({"a\x1b": torch.zeros(3)}), r"it holds a\\x1b as \[3\] and the model as nothi"),
    ],
)
def test_weights_that_do_not_fit_are_named(adapters, change, words):
    edit_weights(adapters, change)
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors' does not fit LlamaForCausalLM: {words}"):
        load_adapter(make_model("llama"), adapters)


def test_adapters_of_another_rank_than_they_say(adapters):
    edit_config(adapters, r=4)
    with pytest.raises(ValueError, match=r"as \[2, 24\] and the model as \[4, 24\]"):
        load_adapter(make_model("llama"), adapters)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_adapters_of_another_architecture_are_refused_unless_all_layers_agree(adapters, architecture):
    model: PreTrainedModel = make_model(architecture)
    if architecture == "qwen2":  # Llama's layers by name and shape; nothing in the folder tells them apart
        assert is_lora(load_adapter(model, adapters))
    else:
        with pytest.raises(ValueError, match=r"adapter_config\.json' does not fit GPT2LMHeadModel: "):
            load_adapter(model, adapters)


def test_a_plain_model_has_no_adapters_to_save(tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no adapters to save"):
        save_adapter(make_model("llama"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_adapters_are_loaded_once(adapters):
    with pytest.raises(ValueError, match="has adapters already; give a model without"):
        load_adapter(adapted("llama"), adapters)
