"""Anatomy of the simulated breast: what each point of each beam scatters, reflects and absorbs."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from scipy.fft import fftfreq, irfft2, next_fast_len, rfft2, rfftfreq

# Echogenicity in dB relative to fat, attenuation in dB/cm/MHz.
SKIN, FAT, GLAND, MUSCLE = (8.0, 0.9), (0.0, 0.55), (8.0, 0.72), (-3.0, 0.75)

ANGLES = np.linspace(-np.pi, np.pi, 361)


@dataclass(frozen=True)
class Beams:
    """Sampling grid along the beams of a linear probe with parallel or diverging beams."""

    step_mm: float  # distance of samples along a beam, and of image pixels
    face_mm: float  # width of the probe's face
    divergence: float  # tangent of a beam's tilt per mm of its origin, in 1/mm; 0 is parallel
    range_mm: np.ndarray  # distance from the face along the beam, (samples, beams)
    x: np.ndarray  # lateral position in mm, 0 in the middle, (samples, beams)
    z: np.ndarray  # depth in mm, (samples, beams)

    @classmethod
    def cover(cls, field: tuple[int, int], depth_mm: float, trapezoid_deg: float) -> "Beams":
        """Lay one beam per column over a field (height, width) of pixels.

        Diverging beams reach the full width at the bottom; the outermost has the tilt.
        """
        step = depth_mm / field[0]
        tilt = math.tan(math.radians(trapezoid_deg))
        face = step * field[1] - 2 * depth_mm * tilt
        divergence = 2 * tilt / face
        origin = ((np.arange(field[1]) + 0.5) / field[1] - 0.5) * face
        range_mm = np.repeat((np.arange(field[0]) + 0.5)[:, None] * step, field[1], axis=1)
        angle = np.arctan(divergence * origin)
        return cls(
            step_mm=step,
            face_mm=face,
            divergence=divergence,
            range_mm=range_mm.astype(np.float32),
            x=(origin + range_mm * np.sin(angle)).astype(np.float32),
            z=(range_mm * np.cos(angle)).astype(np.float32),
        )

    def pitch_mm(self, depth_mm):
        """Distance between neighbouring beams in mm at a depth in mm."""
        return self.face_mm * (1 + self.divergence * depth_mm) / self.x.shape[1]

    def half_width_mm(self, depth_mm: float) -> float:
        """Half the width of the insonified field in mm at a depth in mm."""
        return self.face_mm * (1 + self.divergence * depth_mm) / 2


@dataclass(frozen=True)
class Tissue:
    """Acoustic properties on the grid of the beams; all of shape (samples, beams)."""

    echo_db: np.ndarray  # power of the diffuse scatterers relative to fat
    attenuation: np.ndarray  # in dB/cm/MHz
    reflector: np.ndarray  # complex amplitude of specular reflectors, relative to fat
    shadow_db: np.ndarray  # round-trip loss from poor contact and from fibres out of plane


@dataclass(frozen=True)
class Lesion:
    """A lesion as a closed curve."""

    kind: str  # "cyst", "solid" (benign) or "malignant"
    x: float  # lateral position of the centre in mm
    z: float  # depth of the centre in mm
    radius_mm: np.ndarray  # distance of the contour from the centre at `ANGLES`

    def distance_mm(self, beams: Beams) -> np.ndarray:
        """Radial distance from the contour in mm, negative inside, shape (samples, beams)."""
        x, z = beams.x - self.x, beams.z - self.z
        contour = np.interp(np.arctan2(z, x), ANGLES, self.radius_mm)
        return (np.hypot(x, z) - contour).astype(np.float32)


def draw_lesions(
    rng: Generator, beams: Beams, field: tuple[int, int], label: str
) -> tuple[Lesion, ...]:
    """Draw the contours of lesions that lie inside the field (height, width) and apart.

    None for the label "normal", otherwise one, and perhaps a second where there is room.
    """
    if label == "normal":
        return ()
    lesions: list[Lesion] = []
    # Share of the field that a lesion covers. At the 64 pixels of the embedded default a latent has
    # 8 x 8 cells: the border of a smaller lesion cannot be learnt in the minutes that it may take.
    for least, largest in ((0.06, 0.22), (0.04, 0.08))[: 2 if rng.random() < 0.15 else 1]:
        kind = label if label == "malignant" else str(rng.choice(["solid", "solid", "cyst"]))
        _add_contour(rng, beams, field, kind, (least, largest), 0.40, lesions)
    return tuple(lesions)


def draw_mass_and_cyst(
    rng: Generator, beams: Beams, field: tuple[int, int], label: str
) -> tuple[Lesion, ...]:
    """Draw a solid mass and a cyst inside the field and apart; of one image in six only one."""
    kinds = ["malignant" if label == "malignant" else "solid", "cyst"]
    lesions: list[Lesion] = []
    for kind in kinds if rng.random() > 1 / 6 else [str(rng.choice(kinds))]:
        _add_contour(rng, beams, field, kind, (0.05, 0.10), 0.20, lesions)
    return tuple(lesions)


def _add_contour(
    rng: Generator,
    beams: Beams,
    field: tuple[int, int],
    kind: str,
    shares: tuple[float, float],
    half_width: float,
    lesions: list[Lesion],
) -> None:
    """Adds a lesion, if there is room beside the others.

    `shares` is how much of the field it covers at least and at most, `half_width` how much of the
    face's width it reaches to either side at most.
    """
    depth = field[0] * beams.step_mm
    field_mm2 = field[0] * field[1] * beams.step_mm**2
    area = field_mm2 * np.exp(rng.uniform(*np.log(shares)))
    shape = _malignant_contour(rng) if kind == "malignant" else _benign_contour(rng)
    radius = shape * np.sqrt(area / (0.5 * np.trapezoid(shape**2, ANGLES)))
    reach = np.abs(radius * np.cos(ANGLES)).max(), np.abs(radius * np.sin(ANGLES)).max()
    room = min(1.0, half_width * beams.face_mm / reach[0], 0.33 * depth / reach[1])
    lesion = _place(rng, beams, kind, radius * room, depth, lesions)
    if lesion is not None:
        lesions.append(lesion)


def _place(
    rng: Generator, beams: Beams, kind: str, radius: np.ndarray, depth: float, others: list[Lesion]
) -> Lesion | None:
    reach_x = np.abs(radius * np.cos(ANGLES)).max()
    reach_z = np.abs(radius * np.sin(ANGLES)).max()
    for _ in range(30):
        z = rng.uniform(4 + reach_z, max(4.5 + reach_z, 0.8 * depth - reach_z))
        free = beams.half_width_mm(z - reach_z) - reach_x - 1
        x = rng.uniform(-free, free)
        gaps = [np.hypot(x - o.x, z - o.z) - radius.max() - o.radius_mm.max() - 1.5 for o in others]
        if all(gap > 0 for gap in gaps):
            return Lesion(kind=kind, x=x, z=z, radius_mm=radius)
    return None


def _ellipse(aspect: float, tilt: float) -> np.ndarray:
    """Polar radius of an ellipse with the given width over height, tilted by radians."""
    turned = ANGLES - tilt
    return 1 / np.hypot(np.cos(turned) / np.sqrt(aspect), np.sin(turned) * np.sqrt(aspect))


def _benign_contour(rng: Generator) -> np.ndarray:
    """Smooth or gently lobulated, wider than tall and parallel to the skin."""
    radius = _ellipse(rng.uniform(1.15, 2.2), rng.normal(0, 0.17))
    lobes = int(rng.integers(2, 5))
    depth = rng.uniform(0.0, 0.09)
    return radius * (1 + depth * np.cos(lobes * ANGLES + rng.uniform(0, 2 * np.pi)))


def _malignant_contour(rng: Generator) -> np.ndarray:
    """Irregular and spiculated or microlobulated, often taller than wide."""
    radius = _ellipse(rng.uniform(0.65, 1.35), rng.normal(0, 0.35))
    for wave in range(2, 9):
        bump = rng.normal(0, 0.16 / wave**0.8)
        radius = radius * (1 + bump * np.cos(wave * ANGLES + rng.uniform(0, 2 * np.pi)))
    if rng.random() < 0.5:
        for tip in rng.uniform(-np.pi, np.pi, size=rng.integers(5, 11)):
            apart = np.abs(np.angle(np.exp(1j * (ANGLES - tip))))
            radius = radius + rng.uniform(0.1, 0.35) * np.exp(-apart / rng.uniform(0.05, 0.16))
    else:
        uneven = 1.2 * np.sin(2 * ANGLES + rng.uniform(0, 2 * np.pi))
        lobes = np.abs(np.sin(rng.integers(4, 8) * ANGLES + uneven))
        radius = radius * (1 + rng.uniform(0.05, 0.14) * lobes)
    return np.maximum(radius, 0.35)


def draw_tissue(rng: Generator, beams: Beams) -> Tissue:
    """Draw the layers of a breast from skin to chest wall, without lesion."""
    depth = float(beams.z.max())
    skin = rng.uniform(1.0, 2.0) + _waves(rng, beams.x, 0.15)
    gland_top = rng.uniform(0.14, 0.3) * depth + _waves(rng, beams.x, 1.6)
    gland_base = rng.uniform(0.55, 0.8) * depth + _waves(rng, beams.x, 0.9)
    gland_base += rng.normal(0, 0.07) * beams.x
    muscle_top = gland_base + rng.uniform(1.0, 3.0)

    gland = _step(beams.z - gland_top, 0.5) * _step(gland_base - beams.z, 0.4)
    # Islands of fat in the gland mimic lesions; they are no darker than the fat above.
    lobules = _step(_noise(rng, beams, 2.2, 5.0) - rng.uniform(0.7, 1.4), 0.12)
    gland = gland * (1 - lobules)
    muscle = _step(beams.z - muscle_top, 0.3)
    cover = _step(skin - beams.z, 0.1)
    density = rng.uniform(0.45, 1.0)  # echogenic fibroglandular against fatty breast

    echo = FAT[0] + 1.5 * _noise(rng, beams, 1.5, 3.0)
    echo += gland * (GLAND[0] * density + 4.5 * _noise(rng, beams, 0.35, 1.8))
    # bright fibre bundles, long and nearly parallel to the skin
    echo += muscle * (MUSCLE[0] + 4.5 * np.maximum(_noise(rng, beams, 0.35, 6.0), -0.5))
    echo += cover * SKIN[0] + 10 * np.exp(-beams.z / 0.4)
    attenuation = FAT[1] + gland * (GLAND[1] - FAT[1]) + muscle * (MUSCLE[1] - FAT[1])
    attenuation += cover * (SKIN[1] - FAT[1])

    strands = _strands(rng, beams, 2.4, 8.0) * (1 - muscle) * rng.uniform(0.6, 1.2)
    strands += 0.8 * _strands(rng, beams, 0.7, 3.5) * gland
    lines = 5 * _line(beams.z - skin, 0.14) + 3 * _line(beams.z - muscle_top, 0.2)
    lines *= _step(_noise(rng, beams, 1.5, 3.0) + 0.4, 0.5)
    reflector = (5 * strands + lines) * (1 - cover)
    echo += 6 * np.minimum(strands, 1)
    tissue = Tissue(
        echo_db=echo,
        attenuation=attenuation,
        reflector=_with_phase(rng, beams, reflector),
        shadow_db=_shadows(rng, beams),
    )
    return _add_ribs(rng, tissue, beams, muscle_top) if rng.random() < 0.2 else tissue


def add_lesions(
    rng: Generator, tissue: Tissue, lesions: tuple[Lesion, ...], beams: Beams
) -> Tissue:
    """Put lesions into a tissue map, each darker than the tissue next to it."""
    for lesion in lesions:
        tissue = _add_lesion(rng, tissue, lesion, beams)
    return tissue


def _add_lesion(rng: Generator, tissue: Tissue, lesion: Lesion, beams: Beams) -> Tissue:
    distance = lesion.distance_mm(beams)
    around = tissue.echo_db[(distance > 0.3) & (distance < 3)].mean()
    if lesion.kind == "cyst":
        contrast, grain, alpha, blur = 32.0, 1.0, rng.uniform(0.1, 0.25), 0.15
    elif lesion.kind == "solid":
        contrast, grain, alpha, blur = rng.uniform(7, 17), 1.8, rng.uniform(0.2, 0.6), 0.2
    else:
        contrast, grain, alpha, blur = rng.uniform(10, 19), 2.8, rng.uniform(0.8, 1.6), 0.4
    # The visible margin wanders about the contour, more so where it is ill-defined.
    distance += blur * _noise(rng, beams, 0.9, 1.3)
    inside = _step(-distance, blur)
    level = around - contrast + grain * _noise(rng, beams, 0.8, 1.2)
    filled = replace(
        tissue,
        echo_db=tissue.echo_db + inside * (level - tissue.echo_db),
        attenuation=tissue.attenuation + inside * (alpha - tissue.attenuation),
        reflector=tissue.reflector * (1 - inside),
    )
    if lesion.kind == "malignant":
        return _with_halo_and_calcifications(rng, filled, distance, inside)
    return _with_capsule(rng, filled, lesion, distance, beams)


def _with_halo_and_calcifications(
    rng: Generator, tissue: Tissue, distance: np.ndarray, inside: np.ndarray
) -> Tissue:
    halo = rng.uniform(3, 8) * _line(distance - 0.9, rng.uniform(0.6, 1.2)) * (1 - inside)
    specks = rng.random(distance.shape, dtype=np.float32) < rng.choice([0.0, 0.0, 0.0015])
    return replace(
        tissue,
        echo_db=tissue.echo_db + halo,
        reflector=tissue.reflector + np.float32(9) * (specks & (distance < -0.8)),
    )


def _with_capsule(
    rng: Generator, tissue: Tissue, lesion: Lesion, distance: np.ndarray, beams: Beams
) -> Tissue:
    capsule = _line(distance, 0.28)
    x, z = np.abs(beams.x - lesion.x), np.abs(beams.z - lesion.z)
    facing = z / (np.hypot(x, z) + 1e-3)  # it reflects best above and below, across the beam
    shine = rng.uniform(0.5, 2.5) * capsule * facing**2
    return replace(
        tissue,
        echo_db=tissue.echo_db + 4 * capsule,
        # Along its flanks, tangent to the beam, the capsule is long: it casts the edge shadows.
        attenuation=tissue.attenuation + 0.9 * capsule,
        reflector=tissue.reflector + _with_phase(rng, beams, shine),
    )


def _noise(rng: Generator, beams: Beams, axial_mm: float, lateral_mm: float) -> np.ndarray:
    """Smooth random field of zero mean and unit power with the given correlation lengths."""
    shape = beams.z.shape
    # The field is periodic; it is made larger than needed so that opposite edges do not match.
    rows, columns = (next_fast_len(int(1.25 * n), real=True) for n in shape)
    pitch = beams.pitch_mm(beams.z.shape[0] * beams.step_mm / 2)
    white = rng.standard_normal((rows, columns), dtype=np.float32)
    axial = np.exp(-((np.pi * axial_mm * fftfreq(rows, beams.step_mm)) ** 2))
    lateral = np.exp(-((np.pi * lateral_mm * rfftfreq(columns, pitch)) ** 2))
    spectrum = rfft2(white) * np.outer(axial, lateral).astype(np.float32)
    smooth = irfft2(spectrum, s=(rows, columns))[: shape[0], : shape[1]]
    return (smooth - smooth.mean()) / smooth.std()


def _waves(rng: Generator, x: np.ndarray, amplitude_mm: float) -> np.ndarray:
    """Sum of a few long waves along x: the course of a boundary between layers, in mm."""
    total = np.zeros_like(x)
    for _ in range(3):
        total += np.sin(x * (2 * np.pi / rng.uniform(18, 70)) + rng.uniform(0, 2 * np.pi))
    return 0.8 * amplitude_mm * total


def _step(distance_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Soft step from 0 to 1 where the distance turns positive."""
    return 0.5 + 0.5 * np.tanh(distance_mm / width_mm)


def _line(distance_mm: np.ndarray, width_mm: float) -> np.ndarray:
    return np.exp(-((distance_mm / width_mm) ** 2))


def _strands(rng: Generator, beams: Beams, axial_mm: float, lateral_mm: float) -> np.ndarray:
    """Thin wavy sheets such as Cooper's ligaments: the zero contours of a smooth field."""
    field = _noise(rng, beams, axial_mm, lateral_mm)
    down, across = np.gradient(field, beams.step_mm)
    slope = np.hypot(down, across) + 1e-3
    # Sheets reflect best where they face the beam, and run in and out of the imaged plane.
    facing = np.abs(down) / slope
    present = _step(_noise(rng, beams, 1.2, 2.2) - 0.2, 0.5)
    return _line(field / slope, 0.16) * facing**2 * present


def _with_phase(rng: Generator, beams: Beams, amplitude: np.ndarray) -> np.ndarray:
    """Give reflectors a slowly varying phase, so that they fade in and out like real ones."""
    phase = 2.5 * _noise(rng, beams, 0.8, 1.4)
    return amplitude * np.exp(1j * phase)


def _shadows(rng: Generator, beams: Beams) -> np.ndarray:
    """Loss in dB from narrow shadows under fibrous tissue and from poor contact at one side."""
    total = np.zeros(beams.x.shape, dtype=np.float32)
    origin = beams.x[0] / beams.face_mm  # a shadow follows its beam
    for _ in range(rng.integers(0, 4)):
        width = rng.uniform(0.02, 0.05)
        column = np.exp(-(((origin - rng.uniform(-0.5, 0.5)) / width) ** 2))
        total += rng.uniform(3, 8) * column * _step(beams.z - rng.uniform(5, 18), 2.0)
    if rng.random() < 0.25:
        side = 1 if rng.random() < 0.5 else -1
        total += rng.uniform(8, 25) * _step(side * origin - rng.uniform(0.4, 0.5), 0.04)
    return total


def _add_ribs(rng: Generator, tissue: Tissue, beams: Beams, muscle_top: np.ndarray) -> Tissue:
    """Add a rib in the chest wall: a bright convex surface with a shadow behind it."""
    x = rng.uniform(-0.4, 0.4) * beams.face_mm
    z = float(muscle_top.mean()) + rng.uniform(3, 6)
    width = rng.uniform(5, 9)
    distance = (np.hypot((beams.x - x) / width, (beams.z - z - 3) / 3) - 1) * 3
    distance += 0.3 * _noise(rng, beams, 1.0, 2.0)
    bone = _step(-distance, 0.2)
    surface = _line(distance, 0.3) * (beams.z < z + 1.5)
    return replace(
        tissue,
        echo_db=tissue.echo_db + 8 * surface - 6 * bone,
        attenuation=tissue.attenuation + 4 * bone,
        reflector=tissue.reflector * (1 - bone) + _with_phase(rng, beams, 4 * surface),
    )
