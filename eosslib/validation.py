"""Fields that say what they allow, the JSON schema made from them, and checks against it whose messages name file and key."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastjsonschema  # jsonschema takes a second to import, in every training job
import yaml

from eosslib.errors import ConfigError

TYPES = {"int": "integer", "float": "number"}


def read_yaml(path: Path, source: str) -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        source: What messages call it.

    Raises:
        ConfigError: It cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None


def setting(means: str, default: Any = dataclasses.MISSING, *, unit: str = "", **rule: Any) -> Any:
    """Declare a setting, a field of a dataclass.

    Args:
        means: What it is.
        default: Its default; without one it must be given.
        unit: What it is counted in; numbers of things have none.
        rule: What it allows, in words of JSON Schema; ``type`` is by default that of the field.
    """
    return dataclasses.field(default=default, metadata={"description": means + (f" [{unit}]" if unit else ""), "rule": rule})


def object_schema(kind: type) -> dict[str, Any]:
    """Make the JSON schema of a dataclass's settings, all of them optional: presets give some for all runs, some for one."""
    properties = {}
    for field in dataclasses.fields(kind):
        if "rule" in field.metadata:
            rule = {**field.metadata["rule"]}
            if not {"type", "enum", "anyOf"} & set(rule):
                rule = {"type": TYPES[str(field.type)], **rule}
            properties[field.name] = {**rule, "description": field.metadata["description"]}
    plain = json.dumps(properties, default=list)  # names of the catalogue are views of it
    return {"type": "object", "additionalProperties": False, "properties": json.loads(plain)}


def as_lines(value: Any, indent: str = "") -> str:
    """Write JSON with a line for whatever fits in one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(indent) + len(flat) < 200:
        return flat
    parts = [f"{indent}  {json.dumps(key)}: {as_lines(part, indent + '  ')}" for key, part in value.items()]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


class Checker:
    """A JSON schema, compiled."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Compile a schema."""
        self.schema, self._validate = schema, fastjsonschema.compile(schema, use_default=False)

    def __call__(self, instance: Any, source: str) -> None:
        """Check a value.

        Raises:
            ConfigError: A key is unknown or missing, or a value has the wrong type or is out of range; one line names it.
        """
        try:
            self._validate(instance)
        except fastjsonschema.JsonSchemaValueException as error:
            raise ConfigError(_explain(error, source)) from None


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
