"""A language model as the judge: prompt -> chat (endpoint, server or local) -> parse.

judge.py         the judge: asks the questions, counts the votes, returns the judgement
prompt.py        task and answer -> questions, worded by the .txt files in this folder
client.py        sends requests: limits, retries, budget
shared_limits.py limits that the ranks on one machine share
reply_cache.py   replies on disk
chat.py          the interface to a model; endpoint.py, server.py and local.py implement it
bounded_http.py  the endpoint's HTTP client: limits the size of replies, follows no redirect
wait_notice.py   says on the screen that the run waits for its judge
refusal.py       an endpoint's error: refuses a field, this answer, or every request
completion.py    an endpoint's completion -> its text and tokens
parse.py         replies -> verdicts
scale.py         the allowed verdicts and their values
"""
