"""Nets for short texts; what they take is a batch of `Encoded.batch`.

    model = build_model({"arch": "ngram+textcnn", ...}, 150, encoder)
    logits = model(inputs)                               # (B, C): the mean of what the nets say
    model.branches(inputs)                               # {net: (B, C)}; in training each has a loss of its own

Shapes: B texts of L tokens at most (0 pads), C classes. Reads and writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from project_nlp_intent.encode import PAD, UNKNOWN, Encoder


class TextCNN(nn.Module):
    """Convolutions over token embeddings, each channel's maximum over the text, a linear head (Kim 2014).

    tokens (B, L) → logits (B, C). Padding never changes an answer, and a text may be shorter than a kernel.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        dim: int = 128,
        channels: int = 256,
        kernels: tuple[int, ...] = (1, 2, 3),
        dropout: float = 0.5,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.embedding.weight[PAD].detach())
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, channels, size, padding=size - 1) for size in kernels)
        self.drop = nn.Dropout(min(0.2, dropout))
        wide = channels * len(kernels)
        self.head = nn.Sequential(nn.BatchNorm1d(wide), nn.Dropout(dropout), nn.Linear(wide, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, C)."""
        x = self.drop(self.embedding(tokens)).transpose(1, 2)  # (B, dim, L)
        length = (tokens != PAD).sum(1).clamp(min=1)
        return self.head(torch.cat([self._strongest(conv, x, length) for conv in self.convolutions], dim=1))

    def _strongest(self, conv: nn.Conv1d, x: Tensor, length: Tensor) -> Tensor:
        """(B, channels): the maximum over the places where the kernel meets the text."""
        y = conv(x).relu()  # (B, channels, L + size - 1): the last window holds the last token and padding
        place = torch.arange(y.shape[2], device=y.device)
        beyond = place >= (length + conv.kernel_size[0] - 1)[:, None]
        return y.masked_fill(beyond[:, None], 0.0).amax(2)


class TransformerEncoder(nn.Module):
    """Self-attention blocks, normalised before each part (Xiong et al. 2020), mean over the tokens, a linear head."""

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        dim: int = 128,
        heads: int = 4,
        layers: int = 2,
        max_len: int = 32,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.embedding.weight[PAD].detach())
        self.place = nn.Parameter(torch.randn(max_len, dim) * 0.1)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64, L <= max_len → (B, C)."""
        seen = (tokens != PAD).float()[:, :, None]  # (B, L, 1)
        x = self.drop(self.embedding(tokens) + self.place[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, tokens != PAD)
        return self.head((self.norm(x) * seen).sum(1) / seen.sum(1).clamp(min=1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, L, dim), seen (B, L) bool: False for padding, which nothing attends to."""
        b, length, dim = x.shape
        q, k, v = self.mix(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # a text without a token would attend to nothing, which is NaN: there the padding may be seen
        mask = (seen | ~seen.any(1, keepdim=True))[:, None, None]
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        x = x + self.out(y.transpose(1, 2).reshape(b, length, dim))
        return x + self.mlp(self.norm2(x))


class NgramLinear(nn.Module):
    """A weight for every n-gram and class, as a linear SVM has them on TF-IDF; `scale` multiplies the logits.

    Weights start at zero: what is not seen in training stays silent.
    """

    def __init__(self, ngrams: int, num_classes: int, scale: float = 5.0):
        super().__init__()
        self.bag = nn.EmbeddingBag(max(1, ngrams), num_classes, mode="sum")
        nn.init.zeros_(self.bag.weight)
        self.bias, self.scale = nn.Parameter(torch.zeros(num_classes)), scale

    def forward(self, grams: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """An EmbeddingBag's input → (B, C)."""
        return self.scale * self.bag(grams, offsets, per_sample_weights=weights) + self.bias


class NgramMLP(nn.Module):
    """The sum of a text's n-gram embeddings through one hidden layer (Iyyer et al. 2015, on n-grams)."""

    def __init__(self, ngrams: int, num_classes: int, dim: int = 256, dropout: float = 0.5):
        super().__init__()
        self.bag = nn.EmbeddingBag(max(1, ngrams), dim, mode="sum")
        nn.init.normal_(self.bag.weight, std=0.1)
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, num_classes))

    def forward(self, grams: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """An EmbeddingBag's input → (B, C)."""
        return self.head(self.bag(grams, offsets, per_sample_weights=weights))


class IntentNet(nn.Module):
    """Several nets that look at one text in their own ways; the answer is the mean of their logits over their heat.

    heat (nets,): a temperature for each, so that it counts as much as it deserves; set on validation.
    gram_drop: share of the n-grams that training leaves out, token_drop: of the tokens that it makes unknown, both
    drawn anew in every step.
    """

    def __init__(self, nets: dict[str, nn.Module], gram_drop: float, token_drop: float):
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.gram_drop, self.token_drop = gram_drop, token_drop
        self.register_buffer("heat", torch.ones(len(nets)))

    def branches(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `Encoded.batch` → (B, C) logits of each net, by its name."""
        tokens, weights = inputs["tokens"], inputs["weights"]
        if self.training:
            lost = (torch.rand(tokens.shape, device=tokens.device) < self.token_drop) & (tokens != PAD)
            tokens = tokens.masked_fill(lost, UNKNOWN)
            kept = torch.rand(weights.shape, device=weights.device) >= self.gram_drop
            weights = weights * kept / (1 - self.gram_drop)
        bag = (inputs["grams"], inputs["offsets"], weights)
        return {name: net(*bag) if name.startswith("ngram") else net(tokens) for name, net in self.nets.items()}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """A batch of `Encoded.batch` → logits (B, C)."""
        logits = torch.stack(list(self.branches(inputs).values()))
        return (logits / self.heat[:, None, None]).mean(0)


ARCHS = {  # the nets of each --arch
    "ngram+textcnn": ("ngram_linear", "ngram_mlp", "textcnn"),
    "ngram": ("ngram_linear", "ngram_mlp"),
    "textcnn": ("textcnn",),
    "transformer": ("transformer",),
}


def build_model(config: dict, num_classes: int, encoder: Encoder) -> IntentNet:
    """Untrained net of `config` (arch, dim, channels, hidden, dropout, ...) for what `encoder` gives.

    Raises ValueError for another arch.
    """
    if config["arch"] not in ARCHS:
        raise ValueError(f"arch is {config['arch']!r}, wanted one of {', '.join(ARCHS)}")
    dim, drop, vocab_size, ngrams = config["dim"], config["dropout"], encoder.vocab_size, len(encoder.ngrams)
    make = {
        "ngram_linear": lambda: NgramLinear(ngrams, num_classes),
        "ngram_mlp": lambda: NgramMLP(ngrams, num_classes, config["hidden"], drop),
        "textcnn": lambda: TextCNN(vocab_size, num_classes, dim, config["channels"], dropout=drop),
        "transformer": lambda: TransformerEncoder(vocab_size, num_classes, dim, max_len=encoder.max_tokens),
    }
    nets = {name: make[name]() for name in ARCHS[config["arch"]]}
    return IntentNet(nets, config["gram_drop"], config["token_drop"])
