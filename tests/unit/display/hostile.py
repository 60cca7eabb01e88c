"""A text that would take over a terminal."""

EVIL = "\x1b]0;owned\x07\x1b]8;;http://x\x1b\\a\x1b[31m\x9b31m\u202e\u2066\u200f\ud83d$x_$ <script>alert(1)</script>"


def controls(text):
    """The characters of a text that a terminal or a page may act on."""
    return {
        c
        for c in text
        if (ord(c) < 32 and c not in "\n\t")
        or 127 <= ord(c) < 160
        or 0xD800 <= ord(c) < 0xE000
        or c in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    }
