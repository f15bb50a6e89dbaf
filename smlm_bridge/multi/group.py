"""Maximum likelihood of all emitters of a group at once, on their common smooth background.

Fisher scoring with Levenberg-Marquardt damping on the likelihood of shot and read noise (the read-out variance
added to data and expectation: Huang et al. 2013). What is returned as uncertainty is the bound of the same
emitters together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.multi.background import smooth
from smlm_bridge.multi.stamps import Stamps, add_windows, windows

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]

_BEYOND_PX = 2.0  # emitters may lie this far outside of what is fitted
_LEAST_DAMPING, _MOST_DAMPING = 1e-7, 1e6
_LEAST = 1e-2  # photo-electrons: expectations stay above
# Standard deviation of second differences of the background's nodes, in shot noise of a pixel: what a cell's glow
# has. A stiffer background leaves bumps that an emitter far out of focus explains.
_ROUGHNESS = 12.0


@dataclass(frozen=True)
class Prior:
    """What is known before the fit.

    Parameters
    ----------
    z_nm
        Range of heights.
    blur_nm2
        Mean and standard deviation of the variance of the additional blur; a deviation of 0 fixes it.
    second_blur_nm2
        Of the second channel, where it has a blur of its own; None: every emitter has one blur in all channels.
    """

    z_nm: tuple[float, float]
    blur_nm2: tuple[float, float] = (0.0, 0.0)
    second_blur_nm2: tuple[float, float] | None = None

    @classmethod
    def of_blur(
        cls,
        z_nm: tuple[float, float],
        blur_nm: tuple[float, float],
        second_blur_nm: tuple[float, float] | None = None,
    ) -> "Prior":
        """The prior of a blur that is uniform in a range."""
        return cls(z_nm, _variance(blur_nm), None if second_blur_nm is None else _variance(second_blur_nm))

    @property
    def blurs(self) -> list[tuple[float, float]]:
        """Of each blur that an emitter has."""
        return [self.blur_nm2] if self.second_blur_nm2 is None else [self.blur_nm2, self.second_blur_nm2]

    def mean_blur_nm2(self, count: int) -> Floats:
        """(count,) mean variances, or (count, C) where every channel has its own."""
        means = [mean for mean, _ in self.blurs]
        return np.full(count, means[0]) if len(means) == 1 else np.tile(means, (count, 1))


def _variance(blur_nm: tuple[float, float]) -> tuple[float, float]:
    """Mean and standard deviation of the square of what is uniform in a range."""
    low, high = blur_nm
    if high <= low:
        return low**2, 0.0
    mean = (low**2 + low * high + high**2) / 3
    fourth = (high**5 - low**5) / (5 * (high - low))
    return mean, float(np.sqrt(max(0.0, fourth - mean**2)))


@dataclass(frozen=True)
class Emitters:
    """What is known of n emitters.

    Parameters
    ----------
    xyz_nm : (n, 3)
        Positions.
    blur_nm2 : (n,) or (n, C)
        Variance of the additional blur, or of each channel's.
    photons : (n, C)
        In each channel.
    """

    xyz_nm: Floats
    blur_nm2: Floats
    photons: Floats

    def __len__(self) -> int:
        return len(self.xyz_nm)

    def blur_in(self, channel: int) -> Floats:
        """(n,) variances of the blur in a channel."""
        return self.blur_nm2 if self.blur_nm2.ndim == 1 else self.blur_nm2[:, channel]

    def take(self, which: NDArray[np.generic] | slice) -> "Emitters":
        """Some of them."""
        return Emitters(self.xyz_nm[which], self.blur_nm2[which], self.photons[which])


@dataclass(frozen=True)
class Box:
    """A piece of a frame that is fitted, in every channel a piece of its own.

    Parameters
    ----------
    photons : C of (h, w)
        Photo-electrons.
    read_variance : C of (h, w)
        Of the read-out, photo-electrons squared.
    others : C of (h, w)
        Expectation of emitters that are not fitted here.
    corners : C of (2,)
        Column and row of the first pixel within the channel's frame.
    """

    photons: Sequence[Frames]
    read_variance: Sequence[Frames]
    others: Sequence[Frames]
    corners: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class GroupFit:
    """A fitted group.

    Parameters
    ----------
    emitters
        What was found.
    sigma : (n, 3 + B + C)
        Bound of x, y, z (nm), variances of the B blurs (nm^2) and photons.
    images : C of (h, w)
        Expectation of the group's emitters, without background.
    background : C of (h, w)
        Fitted background.
    log_likelihood
        Of the data and the prior, up to a constant of the data.
    iterations
        Steps that were tried.
    """

    emitters: Emitters
    sigma: Floats
    images: list[Frames]
    background: list[Frames]
    log_likelihood: float
    iterations: int


@dataclass(frozen=True)
class _State:
    """A point in the space of parameters and what was computed there."""

    emitters: Emitters
    nodes: list[Floats]  # one a channel: (K,)
    stamps: list[NDArray[np.float32]]  # one a channel: (n, 5, S, S)
    images: list[Frames]
    background: list[Frames]
    log_likelihood: float


class GroupProblem:
    """One box, its windows and priors; ``fit`` finds the most likely emitters."""

    def __init__(self, box: Box, stamps: Sequence[Stamps], prior: Prior, *, node_px: float) -> None:
        """Take the data of a box; ``node_px`` is the spacing of the background's nodes."""
        self.box, self.stamps, self.prior = box, list(stamps), prior
        self.smooth = [smooth((part.shape[0], part.shape[1]), node_px) for part in box.photons]
        #: Parameters of an emitter before its photons.
        self.before = 3 + len(prior.blurs)

    def fit(
        self, start: Emitters, *, most: int = 30, tolerance: float = 0.02, worth: float = -np.inf
    ) -> GroupFit:
        """The most likely emitters, from a start whose photons need not be right.

        The damping follows how well a step was foreseen (Nielsen 1999).

        Parameters
        ----------
        start
            Positions must be within reach of the solution.
        most
            Steps to try.
        tolerance
            Gain in log-likelihood below which to stop.
        worth
            Log-likelihood below which the result is of no use: the fit ends where steps like the last one would
            not get there.
        """
        state = self._at(self._within(start), None)
        gradient, information = self._expansion(state)
        damping, growth, tried = 1e-2, 2.0, 0
        while tried < most and damping < _MOST_DAMPING:
            tried += 1
            step, foreseen = _damped(gradient, information, damping)
            following = self._moved(state, step)
            gain = following.log_likelihood - state.log_likelihood
            if not gain > 0:  # nor where it is not a number
                if foreseen < tolerance:
                    break
                damping, growth = damping * growth, 2 * growth
                continue
            damping = max(damping * max(1 / 5, 1 - (2 * gain / foreseen - 1) ** 3), _LEAST_DAMPING)
            growth, state = 2.0, following
            gradient, information = self._expansion(state)
            if gain < tolerance or state.log_likelihood + (most - tried) * gain < worth:
                break
        return self._finished(state, information, tried)

    def _within(self, emitters: Emitters) -> Emitters:
        """Clipped to the prior; photons to what can be."""
        xyz = emitters.xyz_nm.copy()
        xyz[:, 2] = np.clip(xyz[:, 2], *self.prior.z_nm)
        pixel = self.stamps[0].psf.pixel_nm
        height, width = self.box.photons[0].shape
        for axis, length in ((0, width), (1, height)):
            first = self.box.corners[0][axis]
            xyz[:, axis] = np.clip(
                xyz[:, axis], (first - _BEYOND_PX) * pixel, (first + length + _BEYOND_PX) * pixel
            )
        mean, deviation = np.array(self.prior.blurs).T
        blur = np.clip(
            _columns(emitters.blur_nm2), np.maximum(0.0, mean - 3 * deviation), mean + 3 * deviation
        )
        return Emitters(xyz, blur.reshape(emitters.blur_nm2.shape), np.maximum(emitters.photons, 1.0))

    def _at(self, emitters: Emitters, nodes: list[Floats] | None) -> _State:
        """Everything at one point; without ``nodes``, background and photons are solved for first."""
        stamps = [
            part.images(emitters.xyz_nm, emitters.blur_in(c), part.corners(emitters.xyz_nm[:, :2]))
            for c, part in enumerate(self.stamps)
        ]
        if nodes is None:
            emitters, nodes = self._linear(emitters, stamps)
        images = [self._sum(emitters, stamps[c], c) for c in range(len(stamps))]
        background = [part.image(own) for own, part in zip(nodes, self.smooth, strict=True)]
        return _State(
            emitters, nodes, stamps, images, background, self._likelihood(emitters, nodes, images, background)
        )

    def _likelihood(
        self, emitters: Emitters, nodes: list[Floats], images: list[Frames], background: list[Frames]
    ) -> float:
        box, value = self.box, 0.0
        for c, own in enumerate(nodes):
            expected = np.maximum(images[c] + background[c] + box.others[c] + box.read_variance[c], _LEAST)
            data = np.maximum(box.photons[c] + box.read_variance[c], 0.0)
            value += float((data * np.log(expected) - expected).sum(dtype=np.float64))
            value -= 0.5 * float(np.einsum("ck,kl,cl->", own[None], self._stiffness(c), own[None]))
        for blur, (mean, deviation) in zip(_columns(emitters.blur_nm2).T, self.prior.blurs, strict=True):
            if deviation > 0:
                value -= 0.5 * float((((blur - mean) / deviation) ** 2).sum())
        return value

    def _stiffness(self, channel: int) -> Floats:
        level = max(1.0, float(np.median(self.box.photons[channel])))
        return self.smooth[channel].penalty * (1.0 / (_ROUGHNESS**2 * level))

    def _linear(self, emitters: Emitters, stamps: list[NDArray[np.float32]]) -> tuple[Emitters, list[Floats]]:
        """Photons and background by weighted least squares at given positions."""
        box, count = self.box, len(emitters)
        photons = np.empty_like(emitters.photons)
        nodes = []
        for c, part in enumerate(stamps):
            shape, floor = box.photons[c].shape, self.smooth[c]
            light = self._spread(part[:, 0], emitters, c)
            weight = 1.0 / np.maximum(box.photons[c] + box.read_variance[c], 1.0)
            target = (box.photons[c] - box.others[c]) * weight
            weighted = light * weight.ravel()
            shared = floor.overlaps(weighted.reshape(count, *shape))
            normal = np.block(
                [[(weighted @ light.T).astype(np.float64), shared], [shared.T, floor.gram(weight)]]
            )
            normal[count:, count:] += self._stiffness(c)
            diagonal = np.diag_indices_from(normal)
            normal[diagonal] = (
                normal[diagonal] * (1 + 1e-6) + 1e-12
            )  # two emitters at one place share the light
            right = np.concatenate([light @ target.ravel(), floor.overlaps(target[None])[0]])
            solution = np.linalg.solve(normal, right.astype(np.float64))
            photons[:, c] = np.maximum(solution[:count], 10.0)
            nodes.append(solution[count:])
        return replace(emitters, photons=photons), nodes

    def _corners(self, emitters: Emitters, channel: int) -> NDArray[np.int64]:
        """(n, 2) corners of the windows within the box."""
        corners: NDArray[np.int64] = self.stamps[channel].corners(emitters.xyz_nm[:, :2])
        return corners - np.asarray(self.box.corners[channel], np.int64)

    def _spread(self, stamps: NDArray[np.float32], emitters: Emitters, channel: int) -> NDArray[np.float32]:
        """(n, h*w) windows laid into the box."""
        shape = self.box.photons[channel].shape
        out = np.zeros((len(stamps), *shape), np.float32)
        places = windows(self._corners(emitters, channel), self.stamps[channel].side_px, shape)
        for image, stamp, (rows, columns, own_rows, own_columns) in zip(out, stamps, places, strict=True):
            image[rows, columns] = stamp[own_rows, own_columns]
        return out.reshape(len(stamps), shape[0] * shape[1])

    def _sum(self, emitters: Emitters, stamps: NDArray[np.float32], channel: int) -> Frames:
        """(h, w) expectation of all emitters in one channel."""
        out = np.zeros(self.box.photons[channel].shape, np.float32)
        light = stamps[:, 0] * emitters.photons[:, channel, None, None].astype(np.float32)
        add_windows(out, light, self._corners(emitters, channel))
        return out

    def _expansion(self, state: _State) -> tuple[Floats, Floats]:
        """Gradient of the log-likelihood and Fisher information, emitters first (x, y, z, blur, photons each)."""
        emitters, box = state.emitters, self.box
        count, channels = len(emitters), len(self.stamps)
        per, blurs = self.before + channels, len(self.prior.blurs)
        size = count * per + sum(map(len, state.nodes))
        gradient, information = np.zeros(size), np.zeros((size, size))
        first = count * per
        for c in range(channels):
            slopes = np.zeros((count, per, box.photons[c].size), np.float32)
            for k, of in enumerate((0, 1, 2, 3 + min(c, blurs - 1))):
                slopes[:, of] = self._spread(state.stamps[c][:, k + 1], emitters, c)
                slopes[:, of] *= emitters.photons[:, c, None].astype(np.float32)
            slopes[:, self.before + c] = self._spread(state.stamps[c][:, 0], emitters, c)
            shape, floor = box.photons[c].shape, self.smooth[c]
            flat = slopes.reshape(count * per, -1)
            expected = np.maximum(
                state.images[c] + state.background[c] + box.others[c] + box.read_variance[c], _LEAST
            )
            residual = (box.photons[c] + box.read_variance[c]) / expected - 1
            of_emitters, span = slice(0, count * per), slice(first, first + len(state.nodes[c]))
            gradient[of_emitters] += (flat @ residual.ravel()).astype(np.float64)
            gradient[span] += floor.overlaps(residual[None])[0]
            scaled = flat * np.sqrt(1.0 / expected).ravel()
            information[of_emitters, of_emitters] += scaled @ scaled.T
            shared = floor.overlaps((flat / expected.ravel()).reshape(count * per, *shape))
            information[of_emitters, span] = shared
            information[span, of_emitters] = shared.T
            information[span, span] = floor.gram(1.0 / expected)
            stiff = self._stiffness(c)
            gradient[span] -= stiff @ state.nodes[c]
            information[span, span] += stiff
            first = span.stop
        self._add_prior(state, gradient, information, count, per)
        return gradient, information

    def _add_prior(self, state: _State, gradient: Floats, information: Floats, count: int, per: int) -> None:
        for k, (mean, deviation) in enumerate(self.prior.blurs):
            blur = np.arange(count) * per + 3 + k
            if deviation > 0:
                gradient[blur] -= (_columns(state.emitters.blur_nm2)[:, k] - mean) / deviation**2
                information[blur, blur] += 1 / deviation**2
            else:
                gradient[blur] = 0.0
                information[blur, :] = information[:, blur] = 0.0
                information[blur, blur] = 1.0

    def _moved(self, state: _State, step: Floats) -> _State:
        """The point one step further, within the prior."""
        count, per = len(state.emitters), self.before + len(self.stamps)
        of_emitters = step[: count * per].reshape(count, per)
        emitters = state.emitters
        moved = Emitters(
            emitters.xyz_nm + of_emitters[:, :3],
            emitters.blur_nm2 + of_emitters[:, 3 : self.before].reshape(emitters.blur_nm2.shape),
            emitters.photons + of_emitters[:, self.before :],
        )
        ends = np.cumsum([count * per, *map(len, state.nodes)])
        nodes = [
            own + step[begin:end] for own, begin, end in zip(state.nodes, ends[:-1], ends[1:], strict=True)
        ]
        return self._at(self._within(moved), nodes)

    def _finished(self, state: _State, information: Floats, tried: int) -> GroupFit:
        count, per = len(state.emitters), self.before + len(self.stamps)
        scale = 1.0 / np.sqrt(np.maximum(np.diag(information), 1e-30))
        system = information * scale[:, None] * scale
        system[np.diag_indices_from(system)] += 1e-9
        variance = np.diag(np.linalg.inv(system)) * scale**2
        sigma = np.sqrt(np.maximum(variance[: count * per], 0.0)).reshape(count, per)
        return GroupFit(state.emitters, sigma, state.images, state.background, state.log_likelihood, tried)


def _damped(gradient: Floats, information: Floats, damping: float) -> tuple[Floats, float]:
    """A damped step, and the gain in log-likelihood that is expected of it."""
    scale = 1.0 / np.sqrt(np.maximum(np.diag(information), 1e-30))
    slope = gradient * scale
    system = information * scale[:, None] * scale
    system[np.diag_indices_from(system)] += damping + 1e-9
    step = np.linalg.solve(system, slope)
    return step * scale, float(0.5 * (step @ slope + damping * (step @ step)))


def _columns(blur_nm2: Floats) -> Floats:
    """(n, B) of (n,) or (n, B)."""
    return blur_nm2[:, None] if blur_nm2.ndim == 1 else blur_nm2
