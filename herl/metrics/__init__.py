"""What a step is reported by: pure functions from records to named numbers, and torchmetrics on top."""
