"""Made-up logits for the tests of the metrics."""

import torch


def example(n=500, classes=5, seed=0, scale=2.0):
    """logits (n, classes) in float64, right more often than by chance; their best temperature is near `scale`."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), target] += 1.0
    return scale * logits, target
