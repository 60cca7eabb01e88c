"""The metrics of a step: pure functions from records to named numbers, aggregated by torchmetrics."""
