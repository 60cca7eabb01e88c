"""Small environments of the package `verifiers`, as modules that a user would install."""

SHOP = '''
"""A shop whose prices only its tool knows."""

import asyncio
from functools import partial

import verifiers as vf
from datasets import Dataset

PRICES = {"apple": 7, "pear": 12, "plum": 3}


async def price(fruit: str, seen: list) -> int:
    """Looks a price up.

    Args:
        fruit: Its name.
        seen: What was looked up.
    """
    await asyncio.sleep(0)
    seen.append(fruit)
    if fruit == "lychee":
        raise ValueError("sold out")
    return PRICES[fruit]


class Shop(vf.StatefulToolEnv):
    async def setup_state(self, state):
        state["seen"] = []
        return state

    def update_tool_args(self, tool_name, tool_args, messages, state, **kwargs):
        return {**tool_args, "seen": state["seen"]}


def looked_it_up(state, info) -> float:
    """Looks the fruit up before it answers.

    The second paragraph is for programmers.
    """
    return float(info["fruit"] in state["seen"])


async def right(completion, answer, parser) -> float:
    return float(answer in parser.parse_answer(completion))


def shouts(completion) -> float:
    """Shouts."""
    return float(completion[-1]["content"].isupper())


def load_environment(count: int = 3, extra: str = "", **kwargs):
    def rows(names):
        return Dataset.from_list(
            [
                {"question": f"What is the price of a {one}?", "answer": str(PRICES[one]), "info": {"fruit": one}}
                for one in names
            ]
        )

    rubric = vf.Rubric(funcs=[looked_it_up, right, shouts], weights=[1.0, 2.0, -1.0])
    if extra == "many":
        def leaves(completion) -> float:
            raise SystemExit(3)
        async def cancelled(completion) -> float:
            raise asyncio.CancelledError
        def nothing(completion) -> float:
            return None
        def several(completion) -> float:
            return [1.0]
        def no_number(completion) -> float:
            return float("nan")
        def certain(completion) -> float:
            return True
        for one in (leaves, cancelled, nothing, several, no_number, certain):
            rubric.add_reward_func(one)
    if extra == "partial":
        def at_most(completion, words) -> float:
            """Is brief."""
            return float(len(completion[-1]["content"].split()) <= words)
        rubric.add_reward_func(partial(at_most, words=3))
        rubric.add_reward_func(partial(at_most, words=9))
    if extra == "weight":
        rubric.weights[1] = float("nan")
    if extra == "slow":
        async def late(completion) -> float:
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:  # on purpose: it ignores that
                    pass
        rubric.add_reward_func(late)
    if extra == "raises":
        def broken(completion) -> float:
            raise KeyError("on purpose")
        rubric.add_reward_func(broken)
    if extra == "wide":
        def length(completion) -> float:
            return -1.5 + len(completion[-1]["content"])
        rubric.add_reward_func(length)
    if extra == "group":
        def best(completions) -> list[float]:
            return [0.0 for _ in completions]
        rubric.add_reward_func(best)
    shop = Shop(dataset=rows(list(PRICES)[:count]), eval_dataset=rows(["plum"]),
                system_prompt="You keep a shop.", rubric=rubric, **kwargs)
    shop.add_tool(price, args_to_skip=["seen"])
    return shop
'''

GUESS = '''
"""A number to guess. How near the guesses were is in the state alone."""

import asyncio

import verifiers as vf
from datasets import Dataset


class Guess(vf.MultiTurnEnv):
    def __init__(self, trouble="", **kwargs):
        super().__init__(**kwargs)
        self.trouble = trouble
        self.released = []

    async def setup_state(self, state):
        state["far"] = []
        if self.trouble == "sets_tools":
            state["tool_defs"] = [vf.Tool(name="peek", description="Peeks.", parameters={"type": "object"})]
        if self.trouble == "no_setup":
            raise RuntimeError("on purpose")
        if self.trouble == "long_setup":
            await asyncio.sleep(60)
        if self.trouble == "changes":
            state["prompt"] = [vf.UserMessage(content="Another question.")]

    async def env_response(self, messages, state, **kwargs):
        said = messages[-1]["content"].strip()
        if self.trouble == "hangs":
            await asyncio.sleep(60)
        if self.trouble == "raises":
            raise RuntimeError("on purpose")
        if self.trouble == "exits":
            raise SystemExit(3)
        if self.trouble == "cancels":
            raise asyncio.CancelledError
        if self.trouble == "is_silent":
            return []
        if self.trouble == "gives_up":
            raise vf.InfraError("no machine")
        number = int(said) if said.isdigit() else -1
        state["far"].append(abs(number - int(state["answer"])))
        if number == int(state["answer"]):
            state["final_env_response"] = [vf.UserMessage(content="Right.")]
            return state["final_env_response"]
        return [vf.UserMessage(content="Higher." if number < int(state["answer"]) else "Lower.")]

    async def get_prompt_messages(self, state):
        if self.trouble == "rewrites" and state["trajectory"]:
            return [vf.UserMessage(content="A summary."), vf.AssistantMessage(content="5"), vf.UserMessage(content="On.")]
        return await super().get_prompt_messages(state)

    @vf.cleanup
    async def release(self, state):
        self.released.append((state["stop_condition"] if state.get("is_completed") else None, list(state["far"])))


def near(state) -> float:
    return 1.0 / (1 + min(state["far"], default=9))


def words(completion) -> float:
    """Says something."""
    return float(any(one["content"] for one in completion if one["role"] == "assistant"))


def load_environment(trouble="", numbers=(5, 8)):
    rows = [{"prompt": [{"role": "user", "content": f"Guess number {place}."}], "answer": str(one)}
            for place, one in enumerate(numbers)]
    return Guess(trouble=trouble, dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[near, words]))
'''

CATALOG = '''
"""Questions of experiment=lookup, which the tiny model was made for."""

import verifiers as vf
from datasets import Dataset

from herl.data.catalog import catalog
from herl.environment.catalog import lookup


def looked_it_up(completion, info) -> float:
    """Looks the figure up before answering."""
    called = [call for one in completion if one["role"] == "assistant" for call in one["tool_calls"] or []]
    return float(any(info["name"] in call.arguments and info["attribute"] in call.arguments for call in called))


def tells_it(completion, answer) -> float:
    """Gives the figure of the catalog."""
    return float(answer in completion[-1]["content"].split())


def brevity(completion) -> float:
    """Is brief."""
    return max(0.0, 1.0 - len(completion[-1]["content"].split()) / 20)


def load_environment(count: int = 40):
    def rows(tasks):
        made = []
        for task in tasks[:count]:
            name, attribute = task.request.split('"')[1], task.meta["attribute"]
            made.append({"prompt": list(task.messages), "answer": lookup(name, attribute).split()[0],
                         "info": {"name": name, "attribute": attribute}})
        return Dataset.from_list(made)

    data = catalog()
    return vf.ToolEnv(
        tools=[lookup],
        dataset=lambda: rows(data.train),
        eval_dataset=lambda: rows(data.heldout),
        rubric=vf.Rubric(funcs=[looked_it_up, tells_it, brevity], weights=[1.0, 3.0, 0.5]),
    )
'''
