"""Configurations with keys and values that nobody foresaw."""

import json
from functools import cache

from hypothesis import strategies as st
from omegaconf import OmegaConf

from herl.config.build import make
from herl.config.check import check
from tests.support.configuration import composed
from tests.support.fuzz.texts import JSON


@cache
def _plain():
    return json.dumps(OmegaConf.to_container(composed(), resolve=True))


def _places(node, path=()):
    if not isinstance(node, dict):
        return [path]
    return [path, *(place for name, child in node.items() for place in _places(child, (*path, name)))]


@cache
def _all_places():
    return [place for place in _places(json.loads(_plain())) if place]


LIGHT = ("loss", "rollout", "hindsight", "bonus", "selection", "advantages", "callbacks")


def configuration(changes):
    plain = json.loads(_plain())
    for number, what, value in changes:
        place = _all_places()[number % len(_all_places())]
        node = plain
        for name in place[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        if what == "set":
            node[place[-1]] = value
        elif what == "add":
            node[f"{place[-1]}x"] = value
        else:
            node.pop(place[-1], None)
    try:
        config = OmegaConf.create(plain)
    except Exception:  # not a configuration, such as a mapping with odd keys: OmegaConf's error
        return
    check(config)
    for name in LIGHT:
        if name in config and OmegaConf.is_config(config[name]):
            make(config[name])


CHANGE = st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "set", "add", "drop"]), JSON)
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)
