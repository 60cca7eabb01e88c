"""Says on the screen that a run waits for its judge, and why; otherwise it would only seem to hang."""

from __future__ import annotations

import asyncio
import logging

from herl.display.duration import duration
from herl.prompt_text import visible

logger = logging.getLogger(__name__)
LONGEST_REASON = 120


class WaitNotice:
    """Counts requests under way and watches when the last usable reply came.

    Args:
        after_seconds: Time without a usable reply after which a line is printed. A shorter wait that the
            judge asks for is not worth one.
        again_seconds: Shortest time between two lines.
    """

    def __init__(self, after_seconds: float = 30.0, again_seconds: float = 60.0) -> None:
        self._after = after_seconds
        self._again = again_seconds
        self._requests = 0
        self._since = 0.0
        self._said_at = float("-inf")
        self._reason = ""

    def began(self) -> None:
        """A request begins."""
        if not self._requests:
            self._since, self._reason = asyncio.get_running_loop().time(), "no reply yet"
        self._requests += 1

    def replied(self) -> None:
        """A usable reply came."""
        self._since, self._reason = asyncio.get_running_loop().time(), "no reply since"

    def ended(self) -> None:
        """A request ends, with a reply or without one."""
        self._requests -= 1

    def failed(self, error: Exception, pause: float = 0.0) -> None:
        """A try failed, and the judge asks all requests to pause for these seconds."""
        words = " ".join(visible(str(error)).split())
        asked = f", Retry-After {pause:.0f} s" if pause >= 1 else ""
        self._reason = (words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}...") + asked
        if pause >= self._after:
            self._say()

    async def watch(self) -> None:
        """Prints the lines, until it is canceled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._after / 10)
            if self._requests and loop.time() - self._since >= self._after:
                self._say()

    def _say(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= self._again:
            self._said_at = now
            logger.warning(
                "waiting for the judge: %d request%s, %s, %s so far",
                self._requests,
                "" if self._requests == 1 else "s",
                self._reason,
                duration(now - self._since),
            )
