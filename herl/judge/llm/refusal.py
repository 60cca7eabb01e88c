"""What an endpoint refused, in its own words: the request's form, the answer in it, or every request.

Endpoints agree on no form of errors. This reads JSON in the forms of OpenAI, FastAPI, Google, OpenRouter and
RFC 9457, plain text, HTML, and nothing at all.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

REFUSED = (400, 404, 405, 415, 422, 501)
"""Statuses by which endpoints refuse a field of a request."""
MAX_WORDS = 5000
"""Characters of an error that are read: the patterns below take time that grows faster than the text."""
ESSENTIAL = ("model", "messages")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_PLACES = ("param", "loc", "field", "path", "pointer", "parameter", "property")
_WORDS = (
    "message",
    "msg",
    "detail",
    "error",
    "errors",
    "error_description",
    "description",
    "reason",
    "title",
)
_ALIASES = {
    "response_format": (
        "json_schema", "json_object", "response_schema", "json schema", "json mode", "structured output",
        "structured outputs", "structured_outputs", "guided_json", "guided decoding", "schema", "grammar",
    ),
} | dict.fromkeys(TOKEN_LIMITS, (*TOKEN_LIMITS, "max_output_tokens", "max_new_tokens"))  # fmt: skip
_OF_THE_ANSWER = re.compile(
    r"context.{0,3}(?:length|window|size|limit)|reduce the (?:length|size)|max_model_len|input_tokens"
    r"|(?:prompt|input|inputs|message|messages|request|sequence)\W.{0,40}(?:too long|too large|exceed)"
    r"|too many (?:input |prompt )?tokens|\binputs\b.{0,3}tokens|string_above_max_length"
    r"|content.{0,3}(?:filter|policy|management|moderation)|\b(?:moderation|flagged)\b"
    r"|\b(?:content|prompt|input|message|text)s?\b.{0,60}\b(?:safety|inappropriate)\b"
    r"|\b(?:safety|inappropriate)\b.{0,60}\b(?:content|prompt|input|message|text)s?\b"
    r"|(?:un)?safe content|data_inspection_failed",
    re.IGNORECASE,
)
_ACCESS_CODES = re.compile(
    r"model_not_found|invalid_model|DeploymentNotFound|invalid_api_key|insufficient_quota|billing", re.I
)
_ACCESS = re.compile(
    r"\bmodel\b.{0,120}(?:not found|not exist|n't exist|unknown|not available|not served|not loaded|retired)"
    r"|(?:no such|unknown|invalid|not a valid|unsupported) model\b"
    r"|api.?key|\bkey limit|credential|unauthori[sz]ed|authenticat|\bbilling\b|\bcredits?\b|\bquota\b"
    r"|\broles?\b|chat template",
    re.IGNORECASE,
)
_OF_THE_FORM = re.compile(
    r"param|argument|\bfields?\b|properties|property|option|setting|\binput\b|\brequest\b|payload|\bbody\b|validat|schema"
    r"|format|structured|provider|support|not (?:allowed|permitted|implemented)|invalid|unknown"
    r"|unexpected|unrecogni[sz]ed|unprocessable",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An endpoint's error."""

    status: int
    """The HTTP status, or the code in an error that came with status 200."""
    words: str
    """The endpoint's own words on one line; empty if it gave none."""
    code: str = ""
    """Its own code of the error."""
    places: tuple[str, ...] = ()
    """What it names as the place of the error, such as response_format.json_schema."""

    @classmethod
    def of(cls, status: int, body: Any) -> Refusal:
        """Reads the body of an error: text, or JSON that has been parsed."""
        body = _parsed(body)
        found = list(_walk(body))
        codes = (str(value) for node in found for key in ("code", "type") if (value := node.get(key)))
        places = [place for node in found for place in _places(node)]
        return cls(
            status=status,
            words=" ".join(_words(body)[:MAX_WORDS].split()),
            code=" ".join(codes)[:MAX_WORDS],
            places=tuple(dict.fromkeys(places)),
        )

    @property
    def about_answer(self) -> bool:
        """Whether this answer is refused, for its length or content, and others may not be. A place that the
        error names, other than the messages, is the request's form."""
        if any(_root(place) not in (*ESSENTIAL, *TOKEN_LIMITS, "prompt", "input") for place in self.places):
            return False
        return self.status == 413 or bool(_OF_THE_ANSWER.search(f"{self.words} {self.code}"))

    @property
    def about_access(self) -> bool:
        """Whether every request is refused: the key, the credit or the model is wrong."""
        certain = self.status in (401, 402, 403) or "model" in self.places
        return certain or bool(_ACCESS_CODES.search(self.code))

    @property
    def may_pass(self) -> bool:
        """Whether an endpoint that has accepted other requests may accept the next one: a firewall refuses
        some texts by 403, and a gateway whose servers restart says 404."""
        said = _ACCESS_CODES.search(self.code) or _ACCESS.search(self.words)
        return self.status in (403, 404) and not self.places and not said

    def names(self, sent: Mapping[str, Any], model: str) -> tuple[list[str], bool]:
        """Returns the fields to leave out, and whether the error names them in a separate field.

        Without such a place, only the first field that its words name.
        """
        placed = [_field_at(place, sent) for place in self.places]
        if fields := [field for field in dict.fromkeys(placed) if field is not None]:
            return fields, True
        words = re.sub(rf"(?<![\w-]){re.escape(model)}(?![\w-])", " ", self.words)
        spotted = [(place, field) for field in sent for place in _spots(field, sent[field], words)]
        return [min(spotted)[1]] if spotted else [], False

    @property
    def may_be_a_field(self) -> bool:
        """Whether the cause may be a field, although none is named."""
        if _ACCESS.search(self.words):
            return False
        if self.status not in (400, 422, 501):  # the address is wrong, unless a router says otherwise
            return bool(re.search(r"param|argument|field", self.words, re.IGNORECASE))
        return not self.words or bool(_OF_THE_FORM.search(self.words))


def _parsed(body: Any) -> Any:
    """JSON in a string, which gateways pass on from the endpoints behind them, is read."""
    if isinstance(body, str) and body.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return body
    return body


def _walk(body: Any, depth: int = 6) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in an error, outermost first; what it repeats of the request (`input`) is left out."""
    body = _parsed(body)
    if depth == 0:
        return
    if isinstance(body, Mapping):
        yield body
        body = [value for key, value in body.items() if key not in ("input", "ctx")]
    if isinstance(body, list):
        for value in body[:20]:
            yield from _walk(value, depth - 1)


def _places(node: Mapping[str, Any]) -> Iterator[str]:
    for key in _PLACES:
        value = node.get(key)
        if isinstance(value, list) and value:
            yield ".".join(map(str, value))
        elif isinstance(value, str) and value:
            yield value
    named = node.get("errors")
    if isinstance(named, Mapping):  # {"errors": {"seed": ["unknown"]}}
        yield from map(str, named)


def _words(body: Any, depth: int = 6) -> str:
    body = _parsed(body)
    if isinstance(body, str):
        return _plain(body)
    if depth == 0 or body is None:
        return ""
    if isinstance(body, list):
        return "; ".join(filter(None, (_words(value, depth - 1) for value in body[:5])))
    if not isinstance(body, Mapping):
        return str(body)
    found = next(filter(None, (_words(body.get(key), depth - 1) for key in _WORDS)), "")
    metadata = body.get("metadata")
    if isinstance(metadata, Mapping) and (raw := _words(metadata.get("raw"), depth - 1)):
        found = f"{found}: {raw}"  # OpenRouter's own message only says that the provider refused
    if not found:
        return json.dumps(body) if depth == 6 and body else ""
    place = body.get("loc")
    return f"{'.'.join(map(str, place))}: {found}" if isinstance(place, list) and place else found


def _plain(text: str) -> str:
    """A text without HTML."""
    if not re.match(r"\s*<(?:!doctype|html|head|body|h\d|title|p|center)\b", text, re.IGNORECASE):
        return text.strip()
    text = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|$)|<!--.*?-->", " ", text[:MAX_WORDS])
    return html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()


def _root(place: str) -> str:
    parts = [part for part in re.findall(r"[\w-]+", place) if part not in ("body", "request")]
    return parts[0].lower() if parts else ESSENTIAL[0]


def _field_at(place: str, sent: Mapping[str, Any]) -> str | None:
    """The field of a place such as body.response_format.type, /seed or extra_body['top_k']."""
    for part in re.findall(r"[\w-]+", place):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower()
        for known in (part, name):
            if known in ESSENTIAL:
                return None
            if known in sent:
                return known
        for field in sent:
            if name in _ALIASES.get(field, ()):
                return field
    return None


def _spots(field: str, value: Any, words: str) -> Iterator[int]:
    """Where the words name a field: by its name, by an alias, or by a key inside its value."""
    if field in ESSENTIAL:
        return
    inner = [key for key in value if "_" in key] if isinstance(value, Mapping) else []
    for name in (field, *_ALIASES.get(field, ()), *inner):
        camel = re.sub(r"_(\w)", lambda match: match[1].upper(), name)
        plain = rf"(?:{re.escape(name)}|{re.escape(camel)})"
        if "_" in name or " " in name or name in ("temperature", "seed", "schema", "grammar"):
            pattern = rf"(?<![\w-]){plain}(?![\w-])"
        else:  # an everyday word such as stop or user is a field only where it is marked as one
            pattern = rf"""["'`]{plain}["'`]|\b(?:parameter|field|argument|option|name)s?:? {plain}\b"""
        if found := re.search(pattern, words, re.IGNORECASE):
            yield found.start()
