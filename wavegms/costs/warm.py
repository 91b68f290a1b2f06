"""What measuring processes are forked from: all they need is imported, and no card was touched.

A process that has asked CUDA for its cards cannot be forked into ones that use them, and diffusers
asks as it is imported. It is told that there is none.
"""

from contextlib import suppress

import torch

_asked, torch.cuda.is_available = torch.cuda.is_available, lambda: False
try:
    with suppress(Exception):  # it says itself what is wrong, where the UNet is built
        import monai  # noqa: F401  which takes as long to import as torch

    import wavegms.costs.measure  # noqa: F401
finally:
    torch.cuda.is_available = _asked
