"""Networks that are short enough to be exported in a test."""

from torch import nn


def shorten(model):
    """Leaves the outermost blocks: an export takes as long as there are operations.

    Whole networks are not left to the tests: every export compares itself.
    """
    mapping = model.mapping
    mapping.encoder = mapping.encoder[:1]
    mapping.decoder, mapping.heads = mapping.decoder[-1:], mapping.heads[-1:]
    if model.encoder is not None:
        for part in (*model.encoder.feature_extraction, model.encoder.feature_aggregation):
            part.encoder, part.middle = part.encoder[:1], nn.Identity()
            part.decoder = part.decoder[-1:]
