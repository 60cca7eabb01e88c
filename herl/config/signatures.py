"""Reads the types of a target's arguments from its source, without importing it.

`herl.config.check` imports a target to see its signature, and with it torch and Lightning, which takes
seconds. A mistyped value can be refused at once with what is read here. A type that is not plain to see is
left to that check.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Union

PLAIN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, object, list, dict, tuple)},
    "Any": Any, "Path": Path, "Sequence": Sequence, "Mapping": Mapping, "Callable": Callable,
}  # fmt: skip
BUILT_ON_TEXT = {"Enum", "StrEnum", "IntEnum", "str", "int", "float", "dict", "TypedDict"}
"""A class with such a base may be made from a plain value."""


class _NotPlain(Exception):
    """The source does not show at once what is asked for."""


def argument_type(target: str, name: str) -> Any:
    """Returns the type of an argument, for `pydantic.TypeAdapter`, or `Any` if the source does not show it.

    Classes of the source stand as empty classes of the same name.

    Args:
        target: Dotted path of a class or a function.
        name: The argument.

    >>> argument_type("herl.update.schedule.learning_rate_share", "step")
    <class 'int'>
    """
    module, _, attribute = target.rpartition(".")
    try:
        return _argument(*_found(module, attribute), name)
    except _NotPlain:
        return Any


def _argument(module: str, node: ast.stmt, name: str) -> Any:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if one.arg == name and one.annotation is not None:
                return _type(module, one.annotation)
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            match member:
                case ast.FunctionDef(name="__init__"):
                    return _argument(module, member, name)
                case ast.AnnAssign(target=ast.Name(id=field)) if field == name:
                    return _type(module, member.annotation)
        for base in node.bases:
            if isinstance(base, ast.Name):
                return _argument(*_found(module, base.id), name)
    raise _NotPlain


def _type(module: str, node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(quoted)):
            return _type(module, ast.parse(quoted, mode="eval").body)
        case ast.BinOp(op=ast.BitOr()):
            return Union[_type(module, node.left), _type(module, node.right)]  # noqa: UP007  # made at run time
        case ast.Name(id=name):
            return PLAIN[name] if name in PLAIN else _named(module, name)
        case ast.Subscript(value=ast.Name(id=name)):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return _generic(module, name, inner)
    raise _NotPlain


def _generic(module: str, name: str, inner: Sequence[ast.expr]) -> Any:
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(one) for one in inner)]
    if name == "Annotated":
        return _type(module, inner[0])
    if name in ("Callable", "type"):
        return PLAIN.get(name, type)
    if name == "tuple":
        return tuple
    parts = tuple(_type(module, one) for one in inner)
    if name == "Union":
        return Union[parts]  # noqa: UP007  # made at run time
    if name == "Optional":
        return Union[(*parts, None)]
    if name in ("list", "dict", "Sequence", "Mapping"):
        return PLAIN[name][parts]
    raise _NotPlain


def _named(module: str, name: str) -> Any:
    """The type that a name stands for: an alias's value, or an empty class in place of a class."""
    home, node = _found(module, name)
    if isinstance(node, ast.ClassDef):
        if {one.id for one in node.bases if isinstance(one, ast.Name)} & BUILT_ON_TEXT:
            raise _NotPlain
        return type(name, (), {})
    value = getattr(node, "value", None)  # of an alias
    if isinstance(value, ast.expr):
        return _type(home, value)
    raise _NotPlain


def _found(module: str, name: str) -> tuple[str, ast.stmt]:
    """Returns where a name is defined, and its definition, wherever it was imported from."""
    for _ in range(10):
        node = _names(module).get(name)
        if node is None:
            raise _NotPlain
        if not isinstance(node, ast.ImportFrom):
            return module, node
        name = next(one.name for one in node.names if (one.asname or one.name) == name)
        module = _absolute(module, node)
    raise _NotPlain


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (_file(module).name == "__init__.py")
    return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


@cache
def _names(module: str) -> Mapping[str, ast.stmt]:
    """The definitions and imports at the top of a module, by name."""
    try:
        tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise _NotPlain from error
    found: dict[str, ast.stmt] = {}
    for node in _top(tree.body):
        match node:
            case ast.ImportFrom(names=names):
                found |= {one.asname or one.name: node for one in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
    return found


def _top(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):  # imports for type checkers, or of optional packages
            yield from _top(node.body)
        else:
            yield node


@cache
def _file(module: str) -> Path:
    package, *rest = module.split(".")
    spec = find_spec(package) if package else None  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise _NotPlain
    place = Path(next(iter(spec.submodule_search_locations)), *rest)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        raise _NotPlain
    return file
