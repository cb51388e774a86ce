"""Dotted keys into plain YAML trees, and the numbers YAML 1.1 reads as text."""

from __future__ import annotations

from typing import Any

from harness.errors import ConfigError


def assign(tree: Any, key: str, value: Any) -> None:
    """Set a dotted key; list items by index, arms by name."""
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = _child(node, part, key)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"key {key!r}", rule=f"{parents[-1]} holds a single value", remedy="set that key itself")


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise ConfigError(f"key {key!r}", rule=f"nothing lies below {part!r}", remedy="check the dotted path")


def _index(items: list[Any], part: str, key: str) -> int:
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return position
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise ConfigError(f"key {key!r}", rule=f"{part!r} is not an item of that list", remedy="use its name or its index")


def number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and not value[0].isalpha() else value
        except (ValueError, IndexError):
            return value
    return value


def numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(k): numbers(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [numbers(v) for v in tree]
    return number(tree)
