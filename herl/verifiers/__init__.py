"""Environments of the package `verifiers`: their rows, their replies and their rewards.

    HERL_ALLOW_TARGETS=wordle herl fit data=verifiers data.name=wordle environment=verifiers judge=verifiers

    loading.py -> an environment, loaded once in a process    episode.py -> one episode of it
    data.py, environment.py, judge.py -> its rows, replies and rewards as herl's own

`verifiers` plays an episode by its own loop, which asks a client for the model's answers. Here this client is
the policy: the loop waits in it until the episode's next answer was sampled. So whatever an environment may
override holds, and its state is its own.

    loop of verifiers    prompt -> client waits ................ answer -> stop? tools? -> prompt -> ...
    herl                 start -> [sampler] -> step(answer) ...................... -> reply -> [sampler]

The rewards are computed from this state as soon as the episode ends, in the process that played it, and kept
by the answer's id until a judge asks. They are not computed from the transcript: a state may hold what no
message shows, and to play an episode again would call its tools again.

Left out: messages with images, reward functions that compare a group's answers, rubrics with another way to
score, environments that rewrite earlier messages, and the package's v1 interface.
"""
