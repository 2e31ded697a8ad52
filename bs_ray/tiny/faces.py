"""The tiny world: a renderer of 64 x 64 faces from continuous attributes.

Every attribute is a number in [0, 1], and independent of the others except for beards on women, so
that a slider may move one attribute and no other. Shapes are signed-distance coverages, painted at
twice the size and averaged down (anti-aliasing).

Legend: B faces; images are float32 RGB in [-1, 1], shape [B, 3, 64, 64]; coordinates run from -1
to 1, x to the right and y down; a column of attributes is a float32 tensor of shape [B].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
_SUPERSAMPLE = 2

#: The attributes that the reader reads and evaluations report, in this order.
ATTRIBUTES = (
    "smile",
    "age",
    "chubby",
    "glasses",
    "hair_length",
    "beard",
    "man",
    "hair_light",
    "skin",
    "eye_size",
    "pose",
    "light",
)
#: The parameters that make a face the same person; the others are expression, styling or the photo.
IDENTITY = (
    "man",
    "skin",
    "hair_hue",
    "hair_light",
    "eye_size",
    "eye_hue",
    "eye_gap",
    "nose_length",
    "nose_width",
    "brow",
    "mouth_width",
    "face_length",
)
#: Everything that determines a picture.
SCENE = tuple(dict.fromkeys((*ATTRIBUTES, *IDENTITY, "background", "backdrop_light", "shirt")))

PALETTE = {
    "red": (0.78, 0.22, 0.20),
    "orange": (0.90, 0.58, 0.22),
    "green": (0.28, 0.60, 0.32),
    "blue": (0.24, 0.40, 0.76),
    "purple": (0.52, 0.30, 0.66),
    "white": (0.88, 0.88, 0.86),
}
_EYES = ((0.20, 0.42, 0.66), (0.24, 0.50, 0.26), (0.36, 0.22, 0.10))

Scene = dict[str, Tensor]
Value = Tensor | float


def sample_scenes(count: int, seed: int) -> Scene:
    """`count` random scenes: float32 columns [count] in [0, 1], one for each name of SCENE."""
    generator = torch.Generator().manual_seed(seed)
    scene = {name: torch.rand(count, generator=generator) for name in SCENE}
    worn = torch.rand(count, generator=generator) < 0.4
    scene["glasses"] = torch.where(worn, 0.85 + 0.15 * scene["glasses"], torch.zeros(count))
    # Man and woman are the ends of a scale with few faces in the middle.
    scene["man"] = torch.where(scene["man"] < 0.5, 0.5 * scene["man"], 0.5 + 0.5 * scene["man"])
    bearded = torch.rand(count, generator=generator) < 0.45
    beard = torch.where(bearded, 0.4 + 0.6 * scene["beard"], torch.zeros(count))
    scene["beard"] = torch.where(scene["man"] > 0.5, beard, torch.zeros(count))
    return scene


def same_person(scene: Scene, seed: int) -> Scene:
    """The same people in other pictures: IDENTITY is kept, everything else is random."""
    other = sample_scenes(len(scene["man"]), seed)
    other |= {name: scene[name] for name in IDENTITY}
    other["beard"] = torch.where(
        scene["man"] > 0.5, other["beard"], torch.zeros_like(other["beard"])
    )
    return other


def attribute_matrix(scene: Scene, names: tuple[str, ...] = ATTRIBUTES) -> Tensor:
    """The named columns side by side: float32 [B, len(names)]."""
    return torch.stack([scene[name] for name in names], dim=1)


def render(scene: Scene, chunk: int = 256) -> Tensor:
    """Pictures of the scenes: float32 [B, 3, 64, 64] in [-1, 1]."""
    count = len(scene["age"])
    parts = [
        _Canvas({name: column[i : i + chunk] for name, column in scene.items()}).draw()
        for i in range(0, count, chunk)
    ]
    return torch.cat(parts)


def render_wild(scene: Scene, seed: int) -> Tensor:
    """The same scenes as in-the-wild photos: clutter, colour casts, occluders, blur and noise.

    float32 [B, 3, 64, 64] in [-1, 1]; a row depends on (seed, its position) only.
    """
    images = render_on_clutter(scene, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.stack([_take_photo(image, generator) for image in images])


def render_on_clutter(scene: Scene, seed: int, chunk: int = 256) -> Tensor:
    """The faces in front of random shapes instead of a plain backdrop: [B, 3, 64, 64]."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for i in range(0, len(scene["age"]), chunk):
        canvas = _Canvas({name: column[i : i + chunk] for name, column in scene.items()})
        canvas.clutter(generator)
        parts.append(canvas.draw())
    return torch.cat(parts)


def _take_photo(image: Tensor, generator: torch.Generator) -> Tensor:
    """An image [3, 64, 64] with a camera's faults: occluder, cast, gamma, blur, noise."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    image = (image + 1) / 2
    if uniform(0, 1) < 0.25:  # something in front of a corner: a hand, a leaf, a finger on the lens
        colour = torch.rand(3, 1, 1, generator=generator)
        y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        corner_x, corner_y = SIZE * float(uniform(0, 1) < 0.5), uniform(40, 70)
        radius = uniform(10, 18)
        inside = ((x - corner_x) ** 2 + (y - corner_y) ** 2).sqrt()
        image = torch.lerp(image, colour, torch.sigmoid(radius - inside))
    cast = 1 + 0.14 * (torch.rand(3, 1, 1, generator=generator) - 0.5)
    image = (image * cast).clamp(1e-4, 1) ** uniform(0.8, 1.25)
    if uniform(0, 1) < 0.4:
        sigma = uniform(0.3, 0.7)
        kernel = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 5)
        image = F.conv2d(
            F.pad(image[None], (2, 2, 2, 2), "replicate"), kernel[:, :, :, None], groups=3
        )
        image = F.conv2d(image, kernel[:, :, None, :], groups=3)[0]
    noise = torch.randn(image.shape, generator=generator) * uniform(0, 0.025)
    return (image + noise).clamp(0, 1) * 2 - 1


def _colour(rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


def _blend(column: Tensor, colours: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Walk through `colours` as the column goes from 0 to 1: [B, 3, 1, 1]."""
    stops = torch.tensor(colours)
    place = column.clamp(0, 1) * (len(colours) - 1)
    low = place.floor().long().clamp(max=len(colours) - 2)
    share = (place - low)[:, None]
    return torch.lerp(stops[low], stops[low + 1], share)[:, :, None, None]


def palette_index(column: Tensor) -> Tensor:
    """The index in PALETTE of a column in [0, 1]: int64 [B]."""
    return (column * len(PALETTE)).long().clamp(max=len(PALETTE) - 1)


def _from_palette(column: Tensor) -> Tensor:
    return torch.tensor(list(PALETTE.values()))[palette_index(column)][:, :, None, None]


def _bent_line(row: float, u: Tensor) -> Tensor:
    return row + 0.02 * torch.cos(3 * u)


class _Canvas:
    """One chunk of faces, painted back to front."""

    def __init__(self, scene: Scene):
        self.scene = {name: column[:, None, None] for name, column in scene.items()}
        self.columns = scene
        side = SIZE * _SUPERSAMPLE
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        self.y, self.x = axis[None, :, None], axis[None, None, :]
        self.pixel = 2.0 / SIZE
        count = len(scene["age"])
        self.image = self._backdrop().expand(count, 3, side, side).clone()
        self._measure()

    def __getattr__(self, name: str) -> Tensor:
        """An attribute's column as [B, 1, 1], to combine with the coordinate grids."""
        try:
            return self.__dict__["scene"][name]
        except KeyError:
            raise AttributeError(name) from None

    def _backdrop(self) -> Tensor:
        shade = 1 - 0.25 * (self.y + 1) / 2 + 0.3 * (self.backdrop_light - 0.5)
        return _from_palette(self.columns["background"]) * shade[:, None]

    def _measure(self) -> None:
        """Measure where things are; the pose slides features across the head."""
        turn = 2 * self.pose - 1
        self.cx = 0.05 * turn
        self.fx = self.cx + 0.11 * turn
        self.cy = torch.tensor(0.08)
        self.half_height = 0.60 + 0.07 * self.face_length
        self.half_width = 0.40 + 0.03 * self.man + 0.17 * self.chubby
        self.eye_x = 0.19 + 0.05 * self.eye_gap
        self.eye_y = -0.06
        self.mouth_y = 0.41
        hair = _blend(
            self.columns["hair_light"], ((0.07, 0.06, 0.06), (0.38, 0.27, 0.18), (0.86, 0.74, 0.50))
        )
        tint = _blend(self.columns["hair_hue"], ((1.0, 1.0, 1.0), (1.25, 0.75, 0.55)))
        self.hair_rgb = (hair * tint).clamp(0, 1)
        self.skin_rgb = _blend(
            self.columns["skin"], ((0.97, 0.82, 0.72), (0.82, 0.62, 0.48), (0.45, 0.29, 0.20))
        )

    # --- brushes -----------------------------------------------------------------------------
    def paint(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0) -> None:
        """Fill where `distance` (in coordinate units) is negative, with a soft pixel-wide edge."""
        cover = (0.5 - distance / self.pixel).clamp(0, 1) * opacity
        self.image = torch.lerp(self.image, colour.expand_as(self.image), cover[:, None])

    def shade(self, amount: Tensor) -> None:
        """Multiply the picture by 1 - amount."""
        self.image = self.image * (1 - amount[:, None])

    def ellipse(self, cx: Value, cy: Value, rx: Value, ry: Value) -> Tensor:
        """An approximate signed distance to an ellipse."""
        radius = (((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2).sqrt()
        return (radius - 1) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))

    def box(self, cx: Value, cy: Value, rx: Value, ry: Value, round_: float = 0.05) -> Tensor:
        """Signed distance to a box with rounded corners."""
        dx = (self.x - cx).abs() - rx + round_
        dy = (self.y - cy).abs() - ry + round_
        outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt()
        return outside + torch.maximum(dx, dy).clamp(max=0) - round_

    def curve(
        self, cx: Value, half_width: Value, height: Callable[[Tensor], Tensor], thick: Value
    ) -> Tensor:
        """A stroke along y = height(u), u in [-1, 1] across the stroke's width."""
        u = (self.x - cx) / half_width
        along = (u.abs() - 1).clamp(min=0) * half_width
        off = (self.y - height(u.clamp(-1, 1))).abs()
        return (off**2 + along**2).sqrt() - thick

    def spot(self, cx: Value, cy: Value, sx: float, sy: float) -> Tensor:
        """A soft blob of height 1."""
        return torch.exp(-((((self.x - cx) / sx) ** 2 + ((self.y - cy) / sy) ** 2) / 2))

    # --- the picture -------------------------------------------------------------------------
    def clutter(self, generator: torch.Generator) -> None:
        """Random shapes behind the person."""
        count = len(self.columns["age"])

        def column() -> Tensor:
            return torch.rand(count, 1, 1, generator=generator)

        for index in range(5):
            colour = torch.rand(count, 3, 1, 1, generator=generator)
            cx, cy = 2.4 * column() - 1.2, 2.4 * column() - 1.2
            rx, ry = 0.1 + 0.5 * column(), 0.1 + 0.5 * column()
            shape = self.ellipse(cx, cy, rx, ry) if index % 2 else self.box(cx, cy, rx, ry)
            self.paint(shape, colour, 0.85)

    def draw(self) -> Tensor:
        """Paint everything. Returns float32 [B, 3, 64, 64] in [-1, 1]."""
        self._shoulders()
        self._hair_behind()
        self._head()
        self._wrinkles()
        self._nose()
        self._beard()
        self._mouth()
        self._eyes()
        self._hair_in_front()
        self._glasses()
        return F.avg_pool2d(self.image.clamp(0, 1), _SUPERSAMPLE) * 2 - 1

    def _shoulders(self) -> None:
        shirt = _from_palette(self.columns["shirt"]) * 0.9
        self.paint(self.ellipse(0.0, 1.18, 0.80 + 0.08 * self.man, 0.45), shirt)

    def _hair_behind(self) -> None:
        top = self.cy - self.half_height - 0.10
        bottom = torch.lerp(torch.tensor(-0.10), torch.tensor(1.0), self.hair_length)
        middle, half = (top + bottom) / 2, (bottom - top) / 2
        width = 0.52 + 0.16 * self.hair_length
        self.paint(self.box(self.cx, middle, width, half, 0.22), self.hair_rgb * 0.72)

    def _face_distance(self) -> Tensor:
        v = ((self.y - self.cy) / self.half_height).clamp(-1.2, 1.2)
        # A larger power fills the jaw: slim faces taper to the chin, chubby ones do not.
        fullness = torch.where(v > 0, 1.75 + 1.5 * self.chubby + 0.35 * self.man, torch.tensor(2.0))
        half = self.half_width * (1 - v.abs().clamp(max=1) ** fullness).clamp(min=0) ** 0.5
        side = (self.x - self.cx).abs() - half
        return torch.maximum(side, (v.abs() - 1) * self.half_height)

    def _head(self) -> None:
        neck = 0.14 + 0.06 * self.chubby + 0.07 * self.man
        self.paint(self.box(self.cx, 0.80, neck, 0.25), self.skin_rgb * 0.78)
        for side in (-1, 1):
            ear = self.ellipse(self.cx + side * self.half_width, 0.06, 0.07, 0.12)
            self.paint(ear, self.skin_rgb * 0.88)
        face = self._face_distance()
        direction = (2 * self.light - 1) * (self.x - self.cx) / 0.5
        lit = self.skin_rgb * (1 + 0.24 * direction.clamp(-1, 1))[:, None]
        self.paint(face, lit.clamp(0, 1))
        self.inside = (0.5 - face / self.pixel).clamp(0, 1)
        for side in (-1, 1):  # round cheeks
            cheek = self.spot(self.fx + side * 0.30, 0.24, 0.10, 0.09) * self.inside
            blush = _colour((0.88, 0.42, 0.36)).expand_as(self.image)
            self.image = torch.lerp(self.image, blush, (0.30 * self.chubby * cheek)[:, None])

    def _wrinkles(self) -> None:
        """Age is lines and hollows of the skin alone; hair colour and shape are independent."""
        age, fx = self.age, self.fx
        lines = torch.zeros_like(self.inside)
        for row, width in ((-0.36, 0.24), (-0.27, 0.27)):
            # u is within the stroke, so the line bends gently over the brow.
            stroke = self.curve(fx, width, partial(_bent_line, row), 0.014)
            lines = lines + (0.5 - stroke / self.pixel).clamp(0, 1)
        hollows = torch.zeros_like(self.inside)
        for side in (-1, 1):
            fold_x = fx + side * 0.22
            fold = ((self.x - fold_x) - side * 0.30 * (self.y - 0.25)).abs() - 0.014
            fold = torch.maximum(fold, (self.y - 0.29).abs() - 0.13)
            lines = lines + (0.5 - fold / self.pixel).clamp(0, 1)
            bag = self.curve(
                fx + side * self.eye_x, 0.10, lambda u: self.eye_y + 0.17 - 0.04 * u**2, 0.016
            )
            lines = lines + (0.5 - bag / self.pixel).clamp(0, 1)
            hollows = hollows + self.spot(fold_x, 0.28, 0.05, 0.12)
            hollows = hollows + 0.8 * self.spot(fx + side * self.eye_x, 0.09, 0.10, 0.05)
        hollows = hollows + 0.6 * self.spot(fx, -0.31, 0.22, 0.07)
        amount = 0.42 * lines.clamp(max=1) + 0.20 * hollows.clamp(max=1)
        self.shade(age * amount * self.inside)

    def _nose(self) -> None:
        length, width = 0.16 + 0.08 * self.nose_length, 0.06 + 0.04 * self.nose_width
        tip = 0.06 + length
        self.shade(0.22 * self.spot(self.fx + 0.035, tip - 0.08, 0.025, 0.09) * self.inside)
        stroke = self.curve(self.fx, width, lambda u: tip - 0.035 * u**2, 0.016)
        self.paint(stroke, self.skin_rgb * 0.58)

    def _mouth_height(self, u: Tensor) -> Tensor:
        bend = 2 * self.smile - 1
        return self.mouth_y - 0.15 * bend * (u**2 - 0.35)

    def _mouth(self) -> None:
        width = 0.17 + 0.04 * self.mouth_width + 0.03 * self.smile
        opened = (2.2 * (self.smile - 0.5)).clamp(0, 1)
        lips = torch.lerp(
            _colour((0.80, 0.20, 0.26)), _colour((0.56, 0.32, 0.26)), self.man[:, None]
        )
        u = (self.x - self.fx) / width
        low = self._mouth_height(u.clamp(-1, 1)) + 0.03
        high = self._mouth_height(torch.ones_like(u)) + 0.01
        teeth = torch.maximum(torch.maximum(self.y - low, high - self.y), (u.abs() - 1) * width)
        self.paint(teeth, _colour((0.95, 0.94, 0.90)), opened)
        self.paint(self.curve(self.fx, width, self._mouth_height, 0.038), lips)

    def _eyes(self) -> None:
        iris = _blend(self.columns["eye_hue"], _EYES)
        big = 0.75 + 0.5 * self.eye_size
        brow_rgb = self.hair_rgb * 0.6
        for side in (-1, 1):
            ex = self.fx + side * self.eye_x
            white = self.ellipse(ex, self.eye_y, 0.105 * big, 0.072 * big)
            self.paint(white, _colour((0.96, 0.96, 0.96)))
            self.paint(self.ellipse(ex, self.eye_y, 0.052 * big, 0.062 * big), iris)
            self.paint(
                self.ellipse(ex, self.eye_y, 0.024 * big, 0.030 * big), _colour((0.05, 0.05, 0.05))
            )
            lid = self.curve(
                ex, 0.11 * big, lambda u: self.eye_y - 0.075 * big * (1 - 0.6 * u**2), 0.012
            )
            self.paint(lid, _colour((0.12, 0.08, 0.08)))
            brow = self.curve(
                ex,
                0.12,
                lambda u: self.eye_y - 0.155 - 0.02 * (1 - u**2),
                0.014 + 0.014 * self.brow + 0.012 * self.man,
            )
            self.paint(brow, brow_rgb)

    def _beard(self) -> None:
        jaw = torch.sigmoid((self.y - 0.36 + 0.35 * (self.x - self.fx) ** 2) / 0.03)
        side = torch.sigmoid(((self.x - self.cx).abs() - self.half_width + 0.09) / 0.02)
        area = torch.maximum(jaw, side * torch.sigmoid((self.y - 0.05) / 0.05)) * self.inside
        # The chin and upper lip keep off the mouth so that smiles stay readable.
        mouth = self.spot(self.fx, self.mouth_y, 0.19, 0.10)
        cover = 0.85 * self.beard * area * (1 - mouth)
        self.image = torch.lerp(
            self.image, (self.hair_rgb * 0.6).expand_as(self.image), cover[:, None]
        )

    def _hair_in_front(self) -> None:
        cap = self.ellipse(self.cx, -0.18, 0.54 + 0.03 * self.chubby, 0.62)
        hairline = self.y - (-0.43 + 0.25 * ((self.x - self.fx) / 0.5) ** 2)
        shine = self.hair_rgb * (1 + 0.35 * self.spot(self.cx - 0.15, -0.62, 0.2, 0.06))[:, None]
        self.paint(torch.maximum(cap, hairline), shine.clamp(0, 1))
        reach = torch.lerp(torch.tensor(-0.25), torch.tensor(0.95), self.hair_length)
        for side in (-1, 1):  # locks beside the face show the length from the front
            middle, half = (reach - 0.30) / 2, (reach + 0.30) / 2 + 0.05
            lock = self.box(self.cx + side * 0.56, middle, 0.10, half.clamp(min=0.02), 0.08)
            self.paint(lock, self.hair_rgb * 0.9)

    def _glasses(self) -> None:
        frame = _colour((0.10, 0.10, 0.12))
        for side in (-1, 1):
            lens = self.ellipse(
                self.fx + side * (self.eye_x + 0.01), self.eye_y + 0.01, 0.165, 0.145
            )
            self.paint(lens, _colour((0.75, 0.85, 0.95)), 0.18 * self.glasses)
            self.paint(lens.abs() - 0.021, frame, self.glasses)
        bridge = self.box(self.fx, self.eye_y, 0.05, 0.018, 0.01)
        self.paint(bridge, frame, self.glasses)
