"""Fills the templates of strangers' task files, which may neither run code nor hold up the run.

Jinja's sandbox keeps a template from code, but not from taking time and memory. Here it may only have the
operations that tasks use, and what each gives is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

UNFIT = (
    jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, SyntaxError,
    RecursionError, MemoryError,
)  # fmt: skip
"""What a template raises that Python cannot parse, or that does not fit the document."""
NODES = {
    "Output", "TemplateData", "If", "For", "Name", "Const", "List", "Tuple", "Getattr", "Getitem", "Slice",
    "Call", "CondExpr", "Compare", "Operand", "And", "Or", "Not", "Neg", "Add", "Sub", "Test", "Filter",
}  # fmt: skip
"""What a template may be made of: nothing that multiplies texts, stores values or calls itself."""
FILTERS = ("first", "int", "last", "length", "lower", "string", "trim", "upper")
"""Filters of Jinja; `join` and `replace` are added."""
METHODS = {
    "capitalize", "endswith", "get", "index", "join", "lower", "lstrip", "replace", "rstrip", "split",
    "startswith", "strip", "title", "upper",
}  # fmt: skip
LONGEST = 1_000_000
"""Characters of what a template or one of its filters and methods gives."""
LONGEST_RANGE = 1000


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Fills templates in time and memory that their length and the document's limit.

    A template may use `if`, one level of `for`, + and -, comparisons, and the filters and methods above; what
    each of those gives, and the whole, has at most `LONGEST` characters. Not limited: the time of a loop over
    a list of the document, which grows with its entries times the length of the template and of the document.
    """

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        filters: dict[str, Callable[..., Any]] = {"join": _joined, "replace": _replaced}
        filters |= {name: self.filters[name] for name in FILTERS}
        self.filters = {name: _short_enough(one) for name, one in filters.items()}
        self.globals = {"range": _short_range}

    def made(self, source: str) -> jinja2.Template:
        """Returns the template; what it may not have in it is an error in its syntax."""
        tree = self.parse(source)
        for node in tree.find_all(nodes.Node):
            if type(node).__name__ not in NODES:
                raise jinja2.TemplateSyntaxError(f"{type(node).__name__} is not allowed", node.lineno)
            if isinstance(node, nodes.For) and (node.recursive or node.find(nodes.For)):
                raise jinja2.TemplateSyntaxError("a loop in a loop is not allowed", node.lineno)
        return self.from_string(tree)

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of a plain value, or range."""
        of, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if called is not _short_range and not (isinstance(of, str | list | tuple | dict) and name in METHODS):
            raise SecurityError(f"a call of {name or type(called).__name__} is not allowed")
        if isinstance(of, str) and name in ("join", "replace"):
            called = partial(_joined, separator=of) if name == "join" else partial(_replaced, of)
        return _short_enough(called)(*args, **kwargs)


def filled(template: jinja2.Template, document: Mapping[str, Any]) -> str:
    """Returns the template filled with a document's columns; raises one of `UNFIT` if it does not fit."""
    pieces: list[str] = []
    length = 0
    for piece in template.generate(document):
        _check_length(length := length + len(piece))
        pieces.append(piece)
    return "".join(pieces)


def _check_length(length: int, longest: int = LONGEST) -> None:
    if length > longest:
        raise OverflowError(f"expected a length of at most {longest}, got {length}")


def _short_range(*args: int) -> range:
    made = range(*args)
    _check_length(len(made), LONGEST_RANGE)
    return made


def _short_enough(made: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(made)  # with Jinja's mark of what it passes to a filter
    def checked(*args: Any, **kwargs: Any) -> Any:
        value = made(*args, **kwargs)
        _check_length(len(value) if isinstance(value, str) else 0)
        return value

    return checked


def _joined(values: Iterable[Any], separator: Any = "") -> str:
    texts = [str(value) for value in values]
    _check_length(sum(map(len, texts)) + len(str(separator)) * len(texts))
    return str(separator).join(texts)


def _replaced(text: Any, old: str, new: str, count: int = -1) -> str:
    _check_length(len(str(text)) + str(text).count(old) * len(new))
    return str(text).replace(old, new, count)
