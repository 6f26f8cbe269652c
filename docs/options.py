"""Writes docs/options.md from the configuration's dataclasses: `python -m docs.options`.

An option's meaning is the comment in its line or, without one, what the docstring of its dataclass says after
"`option`:". The rest of the docstring stands above the table.
"""

import ast
import dataclasses
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config.experiment import CHOICES, Experiment

PAGE = Path(__file__).with_name("options.md")
TOP = """# Options

`make options` writes this page from the dataclasses, and a test holds it current. Set a key in a recipe
(`data: {batch_size: 32}`) or on the command line (`data.batch_size=32`); an unknown key is an error that names the
nearest one. Where a section has a `name`, it picks the class, and the options of that class are added to those of the
section: `model.quantizer.name=ema model.quantizer.decay=0.95`. A class with another default than its section
lists the option again. Runs that differ only in options with an asterisk are one run: these change no number."""


def page() -> str:
    """The whole page: a section for each dataclass, under the keys where it stands."""
    places: dict[type, list[str]] = {}
    for key, config in sections("", type(Experiment())):
        if key not in places.setdefault(config, []):
            places[config].append(key)
    return "\n\n".join([TOP, *(section(config, keys) for config, keys in places.items())]) + "\n"


def sections(key: str, config: type) -> Iterator[tuple[str, type]]:
    """The dataclass at `key`, or at a key that has a choice every class of it, bases first; then all below."""
    chosen = [config, *(entry[-1] for entry in CHOICES.get(key, {}).values())]
    classes = [base for each in chosen for base in reversed(bases(each))]
    for each in dict.fromkeys(classes):
        yield key, each
    for each in dict.fromkeys(classes):
        for field in dataclasses.fields(each):
            if dataclasses.is_dataclass(value := default(field)):
                below = f"{key}.{field.name}".lstrip(".")
                yield from sections(below, bases(type(value))[-1] if below in CHOICES else type(value))


def bases(config: type) -> list[type]:
    """The dataclass itself, and those that it extends."""
    return [base for base in config.__mro__ if dataclasses.is_dataclass(base)]


def section(config: type, keys: list[str]) -> str:
    """Heading, docstring and table of one dataclass."""
    choices = CHOICES.get(keys[0], {})
    names = [name for name, entry in choices.items() if issubclass(entry[-1], config)]
    title = ", ".join(f"`{key}`" for key in keys if key) or "The experiment"
    text, meanings = described(config)
    fields = {field.name: field for field in dataclasses.fields(config)}
    stated = options(config)
    if len(names) < len(choices):
        title += f" with `name: {' | '.join(names)}`"
        stated.pop("name", None)
    elif choices:
        meanings["name"] = ", ".join(f"`{name}`" for name in choices)
    rows = []
    for name, (kind, comment) in stated.items():
        mark = " *" if fields[name].metadata.get("identity") == "none" else ""
        rows.append((f"`{name}`{mark}", kind, shown(default(fields[name])), comment or meanings.get(name, "")))
    if not rows:  # its base's options, with the same defaults
        return f"## {title}" + f"\n\n{text}" * bool(text)
    table = [("option", "type", "default", "meaning"), ("---",) * 4, *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n\n".join(part for part in (f"## {title}", text, "\n".join(lines)) if part)


def default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def shown(value: Any) -> str:
    """A default as a YAML has it; of a section, its name and what differs from its own defaults."""
    if not dataclasses.is_dataclass(value):
        return "" if value is dataclasses.MISSING else f"`{json.dumps(value)}`"
    own, plain = vars(value), vars(type(value)())
    changed = {key: own[key] for key in own if own[key] != plain[key] and key != "name"}
    head = f"`{own['name']}`" if own.get("name") else "its defaults"
    return ", ".join([head, *(f"`{key}: {json.dumps(changed[key])}`" for key in changed)])


def options(config: type) -> dict[str, tuple[str, str]]:
    """What the class itself states, not its base: name -> type and comment."""
    source = textwrap.dedent(inspect.getsource(config))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in (kind := ast.unparse(node.annotation)):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[ast.unparse(node.target)] = kind, " ".join(comments[n] for n in lines if n in comments)
    return found


def described(config: type) -> tuple[str, dict[str, str]]:
    """The docstring without its "`option`: ..." entries, and these entries. An entry ends where the next sentence that
    starts with a name does, or the paragraph."""
    text, entries = [], {}
    names = "|".join(field.name for field in dataclasses.fields(config))
    written = config.__doc__ or ""
    if written.startswith(f"{config.__name__}("):  # made by `dataclass`
        return "", {}
    for paragraph in inspect.cleandoc(written).split("\n\n"):
        rest = []
        for sentences in re.split(r"(?<=\.)\s+(?=`)", " ".join(paragraph.split())):
            if entry := re.match(rf"`({names})`: (.*)", sentences):
                entries[entry[1]] = entry[2]
            else:
                rest.append(sentences)
        text.append(" ".join(rest))
    return "\n\n".join(part for part in text if part), entries


if __name__ == "__main__":
    PAGE.write_text(page())
