"""What a Hugging Face folder says of its tokenizer beside the tokenizer.json: stop tokens, chat template, settings."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from textgym.escape import excerpt, shown, type_name


def setting_files(folder: Path) -> list[Path]:
    """What else makes the tokenizer of a folder: special tokens, and how a chat is written."""
    names = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
    return [folder / name for name in names if (folder / name).is_file()]


def folder_stop_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Every `eos_token_id` of generation_config.json, or failing that the id of the configured `eos_token`."""
    eos = read_json(folder / "generation_config.json").get("eos_token_id")
    if eos is not None:
        ids = eos if isinstance(eos, list) else [eos]
        for one in ids:
            if type(one) is not int or one < 0:
                raise ValueError(
                    f"{str(folder / 'generation_config.json')!r}: eos_token_id holds {shown(one)}; it must be an id "
                    "from 0, or a list of them"
                )
        return ids
    places = ("tokenizer_config.json", "special_tokens_map.json")
    eos_token = next((token for name in places if (token := read_json(folder / name).get("eos_token"))), None)
    if eos_token is not None:
        eos_token = _token_text("eos_token", eos_token, repr(str(folder)))
    eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
    if eos_token and eos_id is None:
        message = (
            f"the eos_token {excerpt(eos_token)} of {str(folder)!r} is no token of its tokenizer.json and is dropped"
        )
        warnings.warn(message, UserWarning, stacklevel=2)
    return [] if eos_id is None else [eos_id]


def chat_template(settings: Mapping[str, bytes], source: str) -> str | None:
    """The template that writes chats, None where the folder has none.

    Args:
        settings: name -> content of the files that `setting_files` lists.
        source: what errors call the tokenizer.

    Raises:
        ValueError: what stands there is no template, or several stand there and none is the default.
    """
    if "chat_template.jinja" in settings:
        return _text(settings, "chat_template.jinja", source)
    names = ("tokenizer_config.json", "chat_template.json")
    found = ((name, _object(settings, name, source).get("chat_template")) for name in names)
    name, template = next(((name, template) for name, template in found if template is not None), ("", None))
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        if "default" not in named:
            raise ValueError(
                f"{name} of {source} has the chat templates {shown(list(named))} and none with the name 'default'; "
                "give that name to the one to use"
            )
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise ValueError(f"the chat_template in {name} of {source} is {shown(template)}; it must be a text")
    return template


def special_tokens(settings: Mapping[str, bytes], source: str) -> dict[str, str]:
    """Name -> text of the special tokens, `bos_token` and the like, as a chat template knows them.

    Args:
        settings: name -> content of the files that `setting_files` lists.
        source: what errors call the tokenizer.
    """
    tokens = _object(settings, "tokenizer_config.json", source)
    if "added_tokens_decoder" not in tokens:  # a config that has it says all; before, the map said more
        tokens |= _object(settings, "special_tokens_map.json", source)
    extra = tokens.get("extra_special_tokens")
    if isinstance(extra, dict):
        tokens |= extra
    # Names such as `add_bos_token` are those of switches.
    given = {name: token for name, token in tokens.items() if name.endswith("_token") and not isinstance(token, bool)}
    return {name: _token_text(name, token, source) for name, token in given.items() if token is not None}


def _token_text(name: str, token: Any, source: str) -> str:
    text = token.get("content") if isinstance(token, dict) else token  # an added token with its options, or its text
    if not isinstance(text, str):
        raise ValueError(f"the {name} of {source} is {shown(text)}; it must be a text")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    return _parsed(path.read_bytes(), repr(str(path))) if path.is_file() else {}


def _object(settings: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    return _parsed(settings[name], f"{name} of {source}") if name in settings else {}


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} is a JSON {type_name(parsed)}; it must be an object")
    return parsed


def _text(settings: Mapping[str, bytes], name: str, source: str) -> str:
    try:
        return settings[name].decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{name} of {source} is not UTF-8: {error}") from error
