"""Strings and JSON values that other parts are made of."""

from hypothesis import strategies as st

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "Says x.", "Essential Criteria: y", "\x00", "{}", "null", "[1"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
