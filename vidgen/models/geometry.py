"""Pixels to latents to tokens: the only place that computes the sizes."""

from dataclasses import dataclass
from typing import Protocol


class Compressing(Protocol):
    """An autoencoder or its configuration."""

    @property
    def compression(self) -> tuple[int, int, int]: ...

    @property
    def causal(self) -> bool: ...


@dataclass(frozen=True)
class Geometry:
    """What an autoencoder and a model's patches make of a video's frames, rows and columns."""

    compression: tuple[int, int, int] = (4, 8, 8)  # frames, rows, columns behind a latent position
    causal: bool = True  # the first frame is a latent frame of its own: T = 4k + 1; else T = 4k
    patch: int = 2  # side, in latents, of the model's tokens

    @classmethod
    def of(cls, autoencoder: Compressing, patch: int = 1) -> "Geometry":
        """With the default patch a token is one latent position."""
        return cls(autoencoder.compression, autoencoder.causal, patch)

    @property
    def unit(self) -> tuple[int, int]:
        """Rows and columns of a token, in pixels: a video's sides are multiples of them."""
        _, rows, columns = self.compression
        return rows * self.patch, columns * self.patch

    @property
    def side(self) -> int:
        """Side of a token, in pixels, of an autoencoder that compresses both sides alike."""
        rows, columns = self.unit
        if rows != columns:
            raise ValueError(f"tokens are {rows}x{columns} pixels; expected squares")
        return rows

    @property
    def first(self) -> int:
        """Pixel frames of the first latent frame that are not `compression[0]`: 1 if causal."""
        return 1 if self.causal else 0

    @property
    def least_frames(self) -> int:
        """The shortest video; a single frame is an image, which every autoencoder takes."""
        step = self.compression[0]
        if self.causal:
            return step + 1
        # Without causality a single latent frame is an image's: `step` frames would come back as 1.
        return 2 * step if step > 1 else 1

    @property
    def frame_form(self) -> str:
        """The frame counts it takes, in words."""
        step = self.compression[0]
        if self.causal:
            return f"{step}k+1"
        return f"1 or a multiple of {step} from {self.least_frames} on"

    def takes(self, frames: int) -> bool:
        step = self.compression[0]
        return frames == 1 or (frames >= self.least_frames and (frames - self.first) % step == 0)

    def nearest_frames(self, frames: int) -> tuple[int, int]:
        """The frame counts it takes just below and above one that it does not take."""
        step, least = self.compression[0], self.least_frames
        low = (frames - self.first) // step * step + self.first
        return low if low >= least else 1, max(low + step, least)

    def latent_frames(self, frames: int) -> int:
        """Of a frame count that `takes` allows; of another, those that its whole steps fill."""
        return max(1, (frames - self.first) // self.compression[0] + self.first)

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of a video (not an image) of so many latent frames."""
        return (latent_frames - self.first) * self.compression[0] + self.first

    def frames_behind(self, latent: int, frames: int) -> slice:
        """The pixel frames, of `frames`, that a latent frame stands for."""
        if frames == 1:
            return slice(0, 1)
        end = self.pixel_frames(latent + 1)
        return slice(max(0, end - self.compression[0]), end)

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video; raises ValueError naming the nearest sizes it can take."""
        for name, size, unit in zip(("height", "width"), (height, width), self.unit, strict=True):
            if size <= 0 or size % unit:
                low = size // unit * unit
                near = f"nearest are {low} and {low + unit}" if low > 0 else f"nearest is {unit}"
                raise ValueError(f"{name} {size} is not a multiple of {unit}; the {near}")
        if not self.takes(frames):
            low, high = self.nearest_frames(frames)
            near = "nearest is 1" if frames < 1 else f"nearest are {low} and {high}"
            raise ValueError(
                f"{frames} frames: this autoencoder takes {self.frame_form}; the {near}"
            )
        _, rows, columns = self.compression
        return self.latent_frames(frames), height // rows, width // columns

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens along frames, rows and columns, of the whole ones that fit."""
        rows, columns = self.unit
        return self.latent_frames(frames), height // rows, width // columns

    def tokens(self, frames: int, height: int, width: int) -> int:
        t, h, w = self.token_grid(frames, height, width)
        return t * h * w


DEFAULT = Geometry()  # of most video autoencoders, and of the report's model
