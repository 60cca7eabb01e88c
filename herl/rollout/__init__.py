"""Stage 8, where stages 1 to 7 meet: a batch of prompts becomes groups of judged answers, and experiences.

stages.py      the components and settings of a run
render.py      conversations -> prompt token ids
streaming.py   sampling and judging side by side
collect.py     one training batch, from prompts to experiences
improve.py     the same loop at test time, without learning
"""
