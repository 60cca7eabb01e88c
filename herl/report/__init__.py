"""A finished run in words and pictures: report.html, the first card in TensorBoard, `herl compare`.

Reads only the files in a run's folder, and needs no torch.
"""
