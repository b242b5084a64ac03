"""YAML values with their file and line, so that the error for a wrong value names them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roofscale.errors import ConfigError, did_you_mean
from roofscale.files import read_text


@dataclass(frozen=True)
class YamlNode:
    """One value of a YAML file, with its line."""

    file: Path
    line: int  # from 1
    value: Any  # a plain scalar, a tuple of YamlNodes, or a dict of name -> YamlNode

    def error(self, message: str) -> ConfigError:
        """Return a ConfigError that begins with this value's file and line."""
        return ConfigError(f"{self.file}:{self.line}: {message}")

    def mapping(self, what: str, known: Iterable[str] | None = None) -> dict[str, "YamlNode"]:
        """Return this value as name -> YamlNode; an empty value is an empty mapping.

        Raises:
            ConfigError: the value is no mapping, or has a name that is not among ``known``.
        """
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"{what}: expected lines like 'name: value', found {_shown(self)}.")
        if known is not None:
            names = tuple(known)
            for name, node in self.value.items():
                if name not in names:
                    raise node.error(f"{name!r} is no {what}.{did_you_mean(name, names)}")
        return self.value

    def items(self, what: str) -> Iterator["YamlNode"]:
        """Return the items of a list.

        Raises:
            ConfigError: the value is no list.
        """
        if not isinstance(self.value, tuple):
            raise self.error(f"{what}: expected a list, one '- ' item a line, found {_shown(self)}.")
        return iter(self.value)

    def text(self, what: str) -> str:
        """Return this value as a text without outer blanks; raise ConfigError if it is no text or is empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"{what}: expected a text, found {_shown(self)}.")
        return self.value.strip()

    def number(self, what: str) -> float:
        """Return this value as a finite number, also 1e-4, which PyYAML reads as text; else raise ConfigError."""
        try:
            if isinstance(self.value, bool | dict | tuple):
                raise ValueError
            number = float(self.value)
        except (TypeError, ValueError):
            raise self.error(f"{what}: expected a number, found {_shown(self)}.") from None
        if number - number != 0:  # inf and NaN
            raise self.error(f"{what}: expected a finite number, found {_shown(self)}.")
        return number

    def whole(self, what: str, low: int) -> int:
        """Return this value as a whole number of at least ``low``; raise ConfigError if it is none."""
        number = self.number(what)
        if number != int(number) or number < low:
            raise self.error(f"{what}: expected a whole number of at least {low}, found {_shown(self)}.")
        return int(number)

    def choice(self, what: str, choices: Iterable[str]) -> str:
        """Return this value if it is one of ``choices``; else raise a ConfigError that suggests the nearest."""
        words = tuple(choices)
        if self.value not in words:
            raise self.error(
                f"{what}: expected {' or '.join(words)}, found {_shown(self)}.{did_you_mean(str(self.value), words)}"
            )
        return str(self.value)

    def plain(self) -> Any:
        """Return the value as plain Python, without lines."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


def read_yaml(file: Path) -> YamlNode:
    """Read one YAML document.

    Raises:
        ConfigError: the file is missing, is no YAML, is empty, or names a key twice.
    """
    try:
        loader = yaml.SafeLoader(read_text(file))
        root = loader.get_single_node()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is no phase file: it is nested too deep.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}:{line}: is no valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is no valid YAML: {error}.") from error
    if root is None:
        raise ConfigError(f"{file}: is empty.")
    return _build(file, loader, root)


def _build(file: Path, loader: yaml.SafeLoader, node: yaml.Node) -> YamlNode:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return YamlNode(file, line, tuple(_build(file, loader, child) for child in node.value))
    if isinstance(node, yaml.MappingNode):
        return YamlNode(file, line, _build_mapping(file, loader, node))
    try:
        return YamlNode(file, line, loader.construct_object(node))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}:{line}: {node.value!r} cannot be read ({error}).") from error


def _build_mapping(file: Path, loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, YamlNode]:
    content: dict[str, YamlNode] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{file}:{line}: expected a name before the colon.")
        if key.value in content:
            raise ConfigError(f"{file}:{line}: {key.value!r} stands here a second time; keep one.")
        # a value is reported with the line of its key, where a user looks for it
        content[key.value] = YamlNode(file, line, _build(file, loader, child).value)
    return content


def _shown(node: YamlNode) -> str:
    if isinstance(node.value, dict):
        return f"a mapping with {', '.join(map(repr, node.value)) or 'nothing'}"
    if isinstance(node.value, tuple):
        return f"a list of {len(node.value)}"
    return "nothing" if node.value is None else repr(node.value)
