"""Stage 11: the losses, as functions of the answer tokens of a row.

`base.py` holds the interface `Loss`; `policy.py`, PPO with the terms that HeRL adds for revisions. The losses
in `sft.py` and `dpo.py` learn from selected answers without policy gradients.
"""
