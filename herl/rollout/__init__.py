"""Stage 8, which runs stages 1 to 7: a batch of prompts becomes groups of judged answers, then experiences.

stages.py         the components and settings of a run
check_prompts.py  the chat template and the vocabulary, tried on a run's prompts
streaming.py      sampling and judging at the same time
episodes.py       answers in several turns, with an environment's replies
collect.py        one training batch, from prompts to experiences
ahead.py          when it is drawn: before its update, or beside the one before
improve.py        the same loop at test time, without learning
"""
