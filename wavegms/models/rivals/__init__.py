"""The other systems of the paper's Table 2, a file each, built from published descriptions.

Importing the package registers them. Each is there at the paper's setting and, as `<name>_small`,
at one that a processor trains in seconds.
"""

from wavegms.models.rivals import (
    acc_unet,
    egeunet,
    gss,
    medsegdiff_v2,
    multiresunet,
    nnunet,
    sdseg,
    sme_swin_unet,
    swin_unet,
    uctransnet,
    unet_3d,
)

__all__ = [
    "acc_unet",
    "egeunet",
    "gss",
    "medsegdiff_v2",
    "multiresunet",
    "nnunet",
    "sdseg",
    "sme_swin_unet",
    "swin_unet",
    "uctransnet",
    "unet_3d",
]
