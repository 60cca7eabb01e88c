"""Times the LLM judge against an endpoint that takes a fixed time per call.

    python tools/bench/judge.py [--answers 256] [--concurrency 32] [--latency 0.1] [--rounds 5] [--json FILE]

Ideal is answers / concurrency * latency, pure waiting. bare: the same requests sent by aiohttp, without any
other work. herl: the judge with its cache on disk. cached: the same answers again. The endpoint is a separate
process. Rounds alternate; medians are shown.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from herl.judge import JudgeRunner
from herl.judge.llm.client import Limits
from herl.judge.llm.endpoint import Endpoint
from herl.judge.llm.judge import LLMJudge
from herl.judge.llm.reply_cache import ReplyCache
from herl.testing import make_rollout, make_task

TASK = make_task()
REPLY = {
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": json.dumps({"verdicts": {n: {"reason": "so", "verdict": "met"} for n in "12"}}),
            },
        }
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
}


def serve(
    latency: float, port: "multiprocessing.Queue[int]", calls: "multiprocessing.sharedctypes.Synchronized"
) -> None:
    data = json.dumps(REPLY).encode()
    reply = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
    )

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                arrived = time.perf_counter()
                place = head.lower().index(b"content-length:") + 15
                await reader.readexactly(int(head[place : head.index(b"\r\n", place)]))
                calls.value += 1
                await asyncio.sleep(arrived + latency - time.perf_counter())
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def herl(url: str, arguments: argparse.Namespace, cache: str) -> float:
    chat = Endpoint(url, "m", structured="none")
    judge = LLMJudge(chat, limits=Limits(concurrency=arguments.concurrency), cache=ReplyCache(cache))
    with JudgeRunner(judge) as runner:
        warm = runner.submit(TASK, make_rollout("warm up", id="w/0"))  # the first call imports and connects
        warm.result()
        started = time.perf_counter()
        futures = [
            runner.submit(TASK, make_rollout(f"fish {n}", id=f"g/{n}")) for n in range(arguments.answers)
        ]
        rewards = [future.result().judgement.reward for future in futures]
        seconds = time.perf_counter() - started
    assert rewards == [1.0] * arguments.answers
    return seconds


async def bare(url: str, arguments: argparse.Namespace) -> float:
    slots = asyncio.Semaphore(arguments.concurrency)
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 1500}]}
    async with aiohttp.ClientSession() as session:

        async def call() -> None:
            async with slots, session.post(f"{url}/chat/completions", json=body) as reply:
                assert (await reply.json())["choices"]

        await call()
        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(arguments.answers)))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    calls = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(arguments.latency, port, calls), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    seconds: dict[str, list[float]] = {"bare": [], "herl": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            cache = f"{folder}/{turn}.sqlite"
            if turn % 2:
                seconds["bare"].append(asyncio.run(bare(url, arguments)))
            seconds["herl"].append(herl(url, arguments, cache))
            before = calls.value
            seconds["cached"].append(herl(url, arguments, cache))
            assert calls.value == before, "the second run must not call the endpoint"
            if not turn % 2:
                seconds["bare"].append(asyncio.run(bare(url, arguments)))
    server.kill()
    ideal = arguments.answers / arguments.concurrency * arguments.latency
    table = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{arguments.answers} answers, {arguments.concurrency} at once, {arguments.latency:g} s per call")
    print(f"ideal   {ideal:7.3f} s")
    for name, value in table.items():
        print(f"{name:7} {value:7.3f} s   {value / ideal:5.2f} of ideal   best {min(seconds[name]):.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ideal": ideal, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
