"""Copies of Hugging Face folders that declare other settings."""

import json


def changed(source, target, **values):
    """Copy a folder with other settings; names are `section__setting`."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    content = json.loads((source / "config.json").read_text())
    for name, value in values.items():
        *section, key = name.split("__")
        (content[section[0]] if section else content)[key] = value
    (target / "config.json").write_text(json.dumps(content))
    return target
