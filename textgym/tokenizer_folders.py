"""What a Hugging Face folder says of its tokenizer beside the tokenizer.json: stop tokens and settings."""

import json
import warnings
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
    if isinstance(eos_token, dict):  # an added token with its options
        eos_token = eos_token.get("content")
    if eos_token is not None and not isinstance(eos_token, str):
        raise ValueError(f"the eos_token of {str(folder)!r} is {shown(eos_token)}; it must be a text")
    eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
    if eos_token and eos_id is None:
        message = (
            f"the eos_token {excerpt(eos_token)} of {str(folder)!r} is no token of its tokenizer.json and is dropped"
        )
        warnings.warn(message, UserWarning, stacklevel=2)
    return [] if eos_id is None else [eos_id]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is a JSON {type_name(content)}; it must be an object")
    return content
