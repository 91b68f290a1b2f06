"""Settings of the simulated scanners, as data: nothing heavy is imported to look at them."""

from dataclasses import dataclass, replace

import numpy as np

SOUND_SPEED = 1.54  # mm/us, soft tissue


@dataclass(frozen=True)
class Scanner:
    """Settings of a simulated scanner; pairs are the range from which each image draws."""

    name: str  # of the dataset that it makes
    frequency_mhz: float  # of the centre
    pulse_cycles: float  # length of the pulse in wavelengths
    f_number: float  # focal length over aperture; times the wavelength, lateral resolution there
    focus_mm: float  # depth of the transmit focus
    focal_zone_mm: float  # distance from the focus at which the beam is wider by the root of two
    looks: int  # compounded envelopes; 1 is plain B-mode, more looks mean weaker speckle
    tgc_db: tuple[float, float]  # attenuation that the gain compensation assumes, dB/cm/MHz
    noise_db: float  # electronic noise relative to the echo of fat at the skin
    dynamic_range_db: float  # between black and white
    white_db: float  # level shown as white, relative to the uncompensated echo of fat
    gamma: float  # exponent of the grey map; above 1 is darker
    trapezoid_deg: tuple[float, float]  # tilt of the outermost beam; 0 is a rectangular field
    margin_px: tuple[int, int]  # black margin at the sides and below
    height_px: tuple[int, int]
    width_px: tuple[int, int]
    depth_mm: tuple[float, float]
    malignant_fraction: float  # of the cases with a lesion
    normal_every: int  # every n-th image shows no lesion; 0 means none does

    def axial_fwhm_mm(self) -> float:
        """Axial resolution: half the pulse length, in mm."""
        return self.pulse_cycles * SOUND_SPEED / self.frequency_mhz / 2

    def lateral_fwhm_mm(self, depth_mm: np.ndarray) -> np.ndarray:
        """Lateral resolution in mm at each depth in mm (same shape)."""
        defocus = (depth_mm - self.focus_mm) / self.focal_zone_mm
        return self.f_number * SOUND_SPEED / self.frequency_mhz * np.sqrt(1 + defocus**2)


# The dataset of simulated volumes, see `wavegms.phantom.volumes`.
VOLUMES = "phantom_v"
# What phantom_c tells apart: the classes of its label maps 1 and 2.
CLASSES = ("mass", "cyst")
# Likewise phantom_v, parts of one organ.
PARTS = ("head", "body")

SCANNERS: dict[str, Scanner] = {
    "phantom_a": Scanner(
        name="phantom_a",
        frequency_mhz=10.0,
        pulse_cycles=3.5,
        f_number=3.0,
        focus_mm=16.0,
        focal_zone_mm=14.0,
        looks=3,
        tgc_db=(0.57, 0.68),
        noise_db=-72.0,
        dynamic_range_db=58.0,
        white_db=30.0,
        gamma=1.5,
        trapezoid_deg=(0.0, 0.0),
        margin_px=(0, 0),
        height_px=(176, 176),
        width_px=(208, 208),
        depth_mm=(30.0, 38.0),
        malignant_fraction=0.35,
        normal_every=0,
    ),
    "phantom_b": Scanner(
        name="phantom_b",
        frequency_mhz=7.0,
        pulse_cycles=4.5,
        f_number=3.6,
        focus_mm=20.0,
        focal_zone_mm=11.0,
        looks=2,
        tgc_db=(0.55, 0.72),
        noise_db=-58.0,
        dynamic_range_db=70.0,
        white_db=30.0,
        gamma=1.55,
        trapezoid_deg=(0.0, 10.0),
        margin_px=(0, 12),
        height_px=(164, 212),
        width_px=(172, 220),
        depth_mm=(32.0, 44.0),
        malignant_fraction=0.35,
        normal_every=12,
    ),
}

SCANNERS["phantom_c"] = replace(SCANNERS["phantom_a"], name="phantom_c")

# The datasets that can be simulated.
PHANTOMS = (*SCANNERS, VOLUMES)
