import torch
from torch import nn

from mask2former.modeling import TRANSFORMER_DECODER_REGISTRY, QueryPrediction


@TRANSFORMER_DECODER_REGISTRY.register()
class OneLookDecoder(nn.Module):
    """Every query looks once at all pixels of all maps and frames."""

    def __init__(self, *, in_channels, width, num_queries, num_classes, mask_width):
        super().__init__()
        self.num_queries = num_queries
        self.queries = nn.Embedding(num_queries, width)
        self.project = nn.Linear(in_channels, width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.classify = nn.Linear(width, num_classes + 1)  # the last is "no object"
        self.embed = nn.Linear(width, mask_width)

    @classmethod
    def from_config(cls, cfg, in_channels):
        options, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
        return {
            "in_channels": in_channels,
            "width": options.HIDDEN_DIM,
            "num_queries": options.NUM_OBJECT_QUERIES,
            "num_classes": head.NUM_CLASSES,
            "mask_width": head.MASK_DIM,
        }

    def forward(self, inputs, mask_features, *, num_frames=1):
        tokens = torch.cat([maps.flatten(2) for maps in inputs], 2).transpose(1, 2)  # (B T, S, C)
        tokens = self.project(tokens.unflatten(0, (-1, num_frames)).flatten(1, 2))  # (B, T S, C)
        queries = self.queries.weight.expand(len(tokens), -1, -1)  # (B, Q, C)
        queries = queries + self.attention(queries, tokens, tokens, need_weights=False)[0]
        mask_features = mask_features.unflatten(0, (-1, num_frames))  # (B, T, C, H, W)
        return [QueryPrediction(self.classify(queries), self.embed(queries), mask_features)]  # one for each layer
