"""A fake of an OpenAI-compatible endpoint, over real HTTP on the loopback interface, with faults on demand.

It judges by the convention of `make_task`: a criterion "Says X." is met by an answer that contains X.
"""

import asyncio
import gzip
import hashlib
import json
import random
import re
import threading
from collections import Counter

MIB = 2**20
FAULTS = ("server", "rate_limit", "hang", "cut", "malformed", "wrong_count")
HOSTILE = {
    "drip": "timeout", "endless": "malformed", "bomb": "malformed", "odd_packing": "malformed",
    "nested_json": "malformed", "nested": "malformed", "long": "malformed",
}  # fmt: skip
"""Faults of an endpoint that means harm, and the causes they count by."""


class FakeEndpoint:
    """Serves chat completions in a thread.

    Args:
        fault_share: Share of requests that go wrong, in [0, 1].
        seconds: Delay before each reply.
        refuses_schema: Whether response_format is answered by HTTP 400.
        judge: Material by name -> reply text; None for verdicts by `Says X.`.
        key: The key that it requires.
        retry_after: Seconds reported with HTTP 429.
        refuse: Request -> None, or the status and the body of an error: text, or an object sent as JSON.
        shape: Completion -> the completion to send.
        location: Where the fault "redirect" leads.
        reply: Last message -> reply text, for questions without herl's fences; None for `judge`.
    """

    def __init__(
        self, fault_share=0.0, seconds=0.0, refuses_schema=False, judge=None, key=None, retry_after=0.05, seed=0,
        faults=FAULTS, refuse=lambda body: None, shape=lambda reply: reply, location="", reply=None,
    ):  # fmt: skip
        self.fault_share = fault_share
        self.seconds = seconds
        self.refuses_schema = refuses_schema
        self.judge = judge or verdicts_by_word
        self.key = key
        self.retry_after = retry_after
        self.faults = faults
        self.refuse = refuse
        self.shape = shape
        self.location = location
        self.reply = reply
        self.sent = []
        """All requests, in order."""
        self.served = Counter()
        """Counts of requests by outcome: ok, or the fault."""
        self.bodies = []
        """Requests that were answered in full."""
        self.open_now = self.open_most = self.hung_up = 0
        self.fails_from = None
        """Number of requests after which all fail; None for never."""
        self._random = random.Random(seed)

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self):
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # sockets close in the next iterations of the loop
            await asyncio.sleep(0)

    async def _connection(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: *(\d+)", head, re.I)[1])
                body = json.loads(await reader.readexactly(length))
                self.open_now += 1
                self.open_most = max(self.open_most, self.open_now)
                try:
                    if not await self._reply(head, body, writer):
                        return
                finally:
                    self.open_now -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            self.hung_up += 1
        finally:
            writer.close()

    async def _reply(self, head, body, writer):
        """Answers one request; returns whether the connection stays open."""
        self.sent.append(body)
        if refused := self.refuse(body):
            return await self._send(writer, *refused)
        if self.key is not None and f"authorization: bearer {self.key}".lower() not in head.decode().lower():
            return await self._send(writer, 401, {"error": {"message": f"bad key: {_key(head)}"}})
        if self.refuses_schema and "response_format" in body:
            return await self._send(writer, 400, {"error": {"message": "response_format is not known"}})
        fault = self._random.choice(self.faults) if self._random.random() < self.fault_share else "ok"
        if self.fails_from is not None and sum(self.served.values()) >= self.fails_from:
            fault = "server"
        self.served[fault] += 1
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "close":
            return False
        if fault == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{")
            await writer.drain()
            return False
        if fault == "drip":
            return await self._stream(writer, b" ", seconds=0.02)
        if fault == "endless":
            return await self._stream(writer, b"x" * 65536)
        if fault == "bomb":
            return await self._send(
                writer, 200, gzip.compress(bytes(64 * MIB), 1), "content-encoding: gzip\r\n"
            )
        if fault == "odd_packing":
            return await self._send(writer, 200, "x", "content-encoding: br\r\n")
        if fault == "nested_json":
            return await self._send(writer, 200, '{"a":' * 400_000)
        if fault == "redirect":
            return await self._send(writer, 307, "", f"location: {self.location}\r\n")
        if fault == "server":
            return await self._send(writer, 500, {"error": {"message": f"broken, had got {_key(head)}"}})
        if fault == "rate_limit":
            error = {"error": {"message": "slow down"}}
            return await self._send(writer, 429, error, f"retry-after: {self.retry_after}\r\n")
        await asyncio.sleep(self.seconds)
        asked = body["messages"][-1]["content"]
        text = self.reply(asked) if self.reply else self.judge(material(asked))
        if fault == "nested":
            text = '{"a":' * 90_000 + text
        if fault == "long":
            text = '{"a":' * 400_000 + text
        if fault == "malformed":
            text = "I think that " + text[: len(text) // 2]
        if fault == "wrong_count":
            text = json.dumps({"verdicts": {"1": {"reason": "", "verdict": "met"}, "77": {"verdict": "met"}}})
        message = {"role": "assistant", "content": text}
        reply = {
            "id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }  # fmt: skip
        going_on = await self._send(writer, 200, self.shape(reply))
        if fault == "ok":
            self.bodies.append(json.dumps(body, sort_keys=True))
        return going_on

    async def _stream(self, writer, part, seconds=0.0):
        """Sends the same part without an end."""
        head = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        while True:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            await asyncio.sleep(seconds)

    async def _send(self, writer, status, body, headers=""):
        data = (
            body
            if isinstance(body, bytes)
            else body.encode()
            if isinstance(body, str)
            else json.dumps(body).encode()
        )
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True


def _key(head):
    """The header with the key, which some servers repeat in their errors."""
    return re.search(r"authorization: .*", head.decode(), re.IGNORECASE)[0].strip()


def material(text):
    """The parts of a judge's request, by the names in its fences."""
    found = re.findall(r"^=== ([\w ]+) ([0-9a-f]{8}) ===\n(.*?)\n=== END \1 \2 ===$", text, re.M | re.S)
    return {name: part for name, _, part in found}


def verdicts_by_word(parts):
    if "ANSWER" not in parts:
        return of_group(parts, verdicts_by_word)
    lines = [line.split(". ", 1) for line in parts["RUBRIC"].split("\n")]
    verdicts = {
        number: {"reason": f"looked for it: {text}", "verdict": "met" if _word(text) in parts["ANSWER"] else "not met"}
        for number, text in lines
    }  # fmt: skip
    return json.dumps({"verdicts": verdicts})


def of_group(parts, judge):
    """A judge's verdicts on each of several answers, as if each were asked about alone."""
    names = [name for name in parts if name.startswith("ANSWER ")]
    found = {
        n.removeprefix("ANSWER "): json.loads(judge(parts | {"ANSWER": parts[n]}))["verdicts"] for n in names
    }
    return json.dumps({"answers": found})


def verdicts_by_hash(parts):
    """Verdicts that depend only on criterion and answer, and differ enough to learn from."""
    if "ANSWER" not in parts:
        return of_group(parts, verdicts_by_hash)
    lines = dict(line.split(". ", 1) for line in parts["RUBRIC"].split("\n"))
    return json.dumps({"verdicts": {
        number: {"reason": "", "verdict": "met" if hashlib.md5((text + parts["ANSWER"]).encode()).digest()[0] % 2 else "not met"}
        for number, text in lines.items()
    }})  # fmt: skip


def _word(text):
    return re.match(r"Says (.*)\.", text)[1]
