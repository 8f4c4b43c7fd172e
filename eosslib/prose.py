"""Texts that take their numbers from findings: Jinja templates with a few words chosen by the numbers.

In a text ``{{ gap.slope.fc_tanh }}`` is that finding with its error, ``{{ paper.gap_slope }}`` what the paper says, ``preset`` the
preset's name, ``{% if has("gap.slope.cnn_mse") %}`` asks whether something was measured, ``found("gap.slope." ~ entry)`` looks up
a key that a loop makes. ``compare`` and ``agree`` choose words by numbers. A key that is not there is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

from eosslib.findings import Finding, Findings
from eosslib.papers import Value
from eosslib.powerlaw import number

CLEAR = 2.0  # standard errors from which on two numbers differ


def fill(text: str, findings: Findings, papers: Mapping[str, Value], **more: Any) -> str:
    """Fill a text with findings.

    Args:
        text: A Jinja template; indents and line breaks in it are kept.
        findings: Of the figure.
        papers: What the papers say.
        more: Further names for the template.

    Returns:
        The text.

    Raises:
        ValueError: It asks for a finding that is not there, or is no template; the message says which or where.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["digits"] = lambda value, decimals=None: number(_value(value), decimals)
    environment.filters["percent"] = lambda value, decimals=0: number(100 * _value(value), decimals)

    def found(key: str) -> Finding:
        if (name := key.replace("-", "_")) not in findings:
            raise jinja2.UndefinedError(f"'{name}' is undefined")
        return findings[name]

    def has(*keys: str) -> bool:
        names = [key.replace("-", "_") for key in keys]
        return all(name in findings and np.isfinite(findings[name].ours) for name in names)

    names = {**findings.nested(), "paper": papers, "found": found, "has": has, "compare": compare, "agree": agree, **more}
    try:
        return environment.from_string(text).render(names)
    except jinja2.UndefinedError as error:
        raise ValueError(f"a text asks for a finding that is not there: {error.message}") from None
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"a text is no template, line {error.lineno}: {error.message}") from None


def compare(one: Finding | float, other: Finding | float, below: str, alike: str, above: str) -> str:
    """Choose the word for where one number stands to another; alike are those within two of their combined standard errors.

    Example:
        >>> compare(1.0, 2.0, "below", "at", "above")
        'below'
    """
    if agree(one, other):
        return alike
    return below if _value(one) < _value(other) else above


def agree(one: Finding | float, other: Finding | float) -> bool:
    """Whether two numbers lie within two of their combined standard errors.

    Example:
        >>> agree(Finding("a", None, 1.0, 0.1), 1.15), agree(1.0, 1.15)
        (True, False)
    """
    return bool(abs(_value(one) - _value(other)) <= CLEAR * np.hypot(_error(one), _error(other)))


def _value(number: Finding | float) -> float:
    return number.ours if isinstance(number, Finding) else float(number)


def _error(number: Finding | float) -> float:
    return (number.error or 0.0) if isinstance(number, Finding) else 0.0
