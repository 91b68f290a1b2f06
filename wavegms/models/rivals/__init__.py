"""The systems of the paper's Table 2, a file each; importing this registers them."""

from wavegms.models.rivals import (  # noqa: F401
    sme_swin_unet,
    swin_unet,
    uctransnet,
)
