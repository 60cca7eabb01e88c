"""Stage 11: the losses, as functions of the answer tokens of a row.

`base.py` holds the interface `Loss`; `policy.py`, the policy loss with the terms that HeRL adds for
revisions; `surrogates.py` and `kl.py`, its formulas: PPO, DAPO, GSPO, CISPO, SAPO, and estimates of the KL.
The losses in `sft.py` and `dpo.py` learn from selected answers without policy gradients.
"""
