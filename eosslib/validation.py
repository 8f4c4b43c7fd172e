"""Checks of settings and presets against ``preset.schema.json``, with messages of one line that name the key."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import fastjsonschema  # jsonschema takes a second to import, in every training job

from eosslib.errors import ConfigError


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of a preset."""
    return json.loads(resources.files("eosslib").joinpath("preset.schema.json").read_text(encoding="utf-8"))


def _explain(error: fastjsonschema.JsonSchemaValueException, source: str) -> str:
    """Turn a schema error into one line that names the file, the key and what would be right."""
    where = ".".join(str(part) for part in error.path[1:])
    value, rule = error.value, error.rule
    if rule == "additionalProperties" and isinstance(value, Mapping):
        known = list(error.definition.get("properties", {}))
        unknown = next(key for key in value if key not in known)
        close = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{source}: unknown key '{unknown}'{f' in {where}' if where else ''}{hint}"
    if rule == "required":
        missing = next(key for key in error.rule_definition if key not in value)
        return f"{source}: key '{missing}' is missing{f' in {where}' if where else ''}"
    allowed = f"{value!r} is not {_allowed(error.definition)}"
    hint = " (write 1.0e-3, not 1e-3)" if rule == "type" and isinstance(value, str) and "e" in value else ""
    return f"{source}: {where or 'preset'}: {allowed}{hint}"


def _allowed(definition: Mapping[str, Any]) -> str:
    """Say in words what a part of the schema allows."""
    if "$ref" in definition:
        definition = schema()["$defs"][definition["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in definition:
        return " or ".join(_allowed(part) for part in definition["anyOf"])
    if "enum" in definition:
        return f"one of {', '.join(map(str, definition['enum']))}"
    if "const" in definition:
        return f"'{definition['const']}'"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "exclusiveMaximum": "below", "minItems": "of length at least"}
    bounds |= {"minProperties": "with keys, at least"}
    limits = [f"{words} {definition[key]}" for key, words in bounds.items() if key in definition]
    unique = ["without repetition"] if definition.get("uniqueItems") else []
    return " ".join(["of type", definition.get("type", "any"), *limits, *unique])


@cache
def _validator(part: str | None) -> Callable[[Any], Any]:
    """Compile the schema of a preset (None) or of one of its definitions."""
    whole = schema()
    return fastjsonschema.compile({**whole["$defs"][part], "$defs": whole["$defs"]} if part else whole, use_default=False)


def validate(instance: Any, part: str | None, source: str) -> None:
    """Check a whole preset (part None) or one of the schema's definitions.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or is out of range; one line names it.
    """
    try:
        _validator(part)(instance)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ConfigError(_explain(error, source)) from None


def check_settings(settings: Mapping[str, Any], source: str) -> None:
    """Check a set of settings against the schema.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range; the message names it.
    """
    validate(dict(settings), "settings", source)
    check_numbers(settings, source)


def check_numbers(settings: Mapping[str, Any], source: str) -> None:
    """Refuse what the schema lets pass: 8.0 counts as an integer there, and NaN and infinity as numbers.

    Raises:
        ConfigError: A number is not finite, or a whole one was asked for; the message names its key.
    """
    real = {key for key, rule in schema()["$defs"]["settings"]["properties"].items() if rule.get("type") == "number"}
    for change in settings.get("schedule", []):
        check_numbers(change, f"{source}.schedule")
    for key, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not (key in real and math.isfinite(number)):
                raise ConfigError(f"{source}: {key}: {number!r} is not {'a finite number' if key in real else 'an integer'}")
