"""A language model as judge: prompt -> chat (endpoint, server or local) -> parse.

judge.py         the judge: which criteria are asked about together, and in which order
prompt.py        the prompts' text, beside it as .txt files
client.py        requests, retries, and the cache of replies
chat.py          the interface to a model; endpoint.py, server.py and local.py implement it
parse.py         replies -> verdicts
scale.py         graded verdicts
"""
