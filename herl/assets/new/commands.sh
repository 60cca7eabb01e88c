#!/usr/bin/env bash
# From rows to a model, in five commands: bash commands.sh runs them all, in a few minutes on a CPU. Or copy them one by one.
set -euo pipefail
cd "$(dirname "$0")"
export HERL_ALLOW_TARGETS=reward  # the configuration may name functions in reward.py

python test_reward.py  # does the judge say what you mean?

herl lint --config-dir . experiment=mine                             # 1. duplicates, leaks and doubtful criteria
herl fit --config-dir . experiment=mine dry_run=true                 # 2. what the model sees; time and memory
herl fit --config-dir . experiment=mine hydra.run.dir=runs/first     # 3. train
herl inspect runs/first                                              # 4. answers beside their revisions
herl export run=runs/first out=my_model                              # 5. a folder for transformers and vLLM
