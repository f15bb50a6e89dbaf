"""All emitters of a frame: fitted together, unsupported ones removed, others added where the residual asks."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from smlm_bridge.multi.background import smoothed
from smlm_bridge.multi.group import Box, Emitters, GroupFit, GroupProblem, Prior
from smlm_bridge.multi.options import Refined, RefineOptions
from smlm_bridge.multi.search import Bank, Candidates
from smlm_bridge.multi.stamps import Stamps, add_windows, windows

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]
Mask = NDArray[np.bool_]

_LINK_SHARE = 0.6  # of half a window
_MOST_ADDED = 200
_ALIKE = 0.7  # less of an emitter's evidence than this share is left where others are much like it
_NEIGHBOURS = 8
_SURE = 20.0  # times the evidence that an emitter needs: no fit without it makes up for that
_HOPE = 0.7  # of what is explained: the matched filter's grid costs less than the rest
_SAME_PLACE = 1.5  # steps of that grid
_MORE = 1.1  # times the gain with which a candidate was tried before is worth another trial
_ELSEWHERE_PX = 12  # how far from where it was the place of an emitter is sought
_PARTNERS = 3  # neighbours of which each may be one with an emitter
_APART_NM = (
    (250.0, 0.0, 0.0),
    (0.0, 250.0, 0.0),
    (0.0, 0.0, 500.0),
)  # halves of an emitter that is too bright
_ROUGH = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0]).astype(np.float32)
_LEAST_SIDE_PX = 16  # of frames whose noise can be measured
_GRAIN = 4.0  # errors of a PSF are alike over its grain: they count as if by this much larger


class Refiner:
    """Refines frames of one microscope; built once, used for every frame.

    Parameters
    ----------
    stamps
        One a channel.
    prior
        Range of heights and blur.
    options
        See ``RefineOptions``.
    """

    def __init__(self, stamps: Sequence[Stamps], prior: Prior, options: RefineOptions | None = None) -> None:
        options = options or RefineOptions()
        self.stamps, self.prior, self.options = list(stamps), prior, options
        self.bank, self.local_bank = (  # for whole frames, and around one emitter
            Bank(
                self.stamps,
                z_nm=prior.z_nm,
                step_nm=options.step_nm,
                blur_nm2=[mean for mean, _ in prior.blurs],
                inside=around_one,
            )
            for around_one in (False, True)
        )

    def for_excess(self, excess: float) -> "Refiner":
        """The same for images divided by a factor: ``least_photons`` and ``most_photons`` are divided, too."""
        other = copy(self)
        least, most = (value / excess for value in (self.options.least_photons, self.options.most_photons))
        other.options = replace(self.options, least_photons=least, most_photons=most)
        return other

    def __call__(self, photons: Frames, read_variance: Frames, start_xyz_nm: Floats) -> Refined:
        """Refine one frame.

        Parameters
        ----------
        photons, read_variance : (C, H, W)
            Photo-electrons, and the variance of the read-out.
        start_xyz_nm : (n, 3)
            Positions to start from; none for matching pursuit alone.
        """
        frame = _Frame(self, photons, read_variance, start_xyz_nm)
        frame.begin()
        frame.settle(frame.everything())
        for _ in range(self.options.passes):
            frame.measure_noise()
            changed = frame.grow(self.options.rounds)
            if frame.reconsider() or changed:
                frame.settle(frame.everything())
            else:
                break
        frame.settle(frame.everything(), tolerance=0.05)
        return frame.result()


@dataclass(frozen=True)
class _Trial:
    """Emitters that go, what comes in their place, and the gain in log-likelihood that asks for it."""

    going: list[int]
    new: Emitters | None
    least_gain: float


@dataclass(frozen=True)
class _Asked:
    """Whether the frame could do without an emitter, whether it may be two, and whether it may only move."""

    spare: bool
    bright: bool
    only_moves: bool


@dataclass(frozen=True)
class _Proposal:
    """One emitter, and what it explains beyond those that it stands for."""

    one: Emitters
    surplus: float


class _Frame:
    """The state of one frame on its way."""

    def __init__(self, refiner: Refiner, photons: Frames, read_variance: Frames, start: Floats) -> None:
        self.stamps, self.prior, self.options = refiner.stamps, refiner.prior, refiner.options
        self.bank = refiner.bank
        self.photons, self.read_variance = photons, read_variance.copy()
        channels, count = len(photons), len(start)
        self.emitters = Emitters(
            start.astype(float), self.prior.mean_blur_nm2(count), np.full((count, channels), 1.0)
        )
        self.sigma = np.full((count, 3 + len(self.prior.blurs) + channels), np.inf)
        self.origin = np.arange(count)
        self.images = np.zeros_like(photons)
        self.floor = np.zeros_like(photons)
        self.error = self.options.model_error
        self.gone = np.zeros(count, bool)
        self.local_bank = refiner.local_bank
        self.tried = Candidates(np.zeros((0, 3)), np.zeros((0, channels)), np.zeros(0))

    def everything(self) -> Mask:
        """All emitters."""
        return np.ones(len(self.emitters), bool)

    def near(self, which: Mask) -> Mask:
        """Those emitters, and others whose light they share."""
        tree = KDTree(self.emitters.xyz_nm[:, :2])
        touched = tree.query_ball_point(self.emitters.xyz_nm[which, :2], self._link_nm)
        mask = which.copy()
        for part in touched:
            mask[part] = True
        return mask

    def begin(self) -> None:
        """Move what stands wrong at the start, before others are fitted to make up for it."""
        if not len(self.emitters):
            return
        self._level()
        for group in self._groups(self.everything()):
            self._fit(group, local=False, tolerance=0.5, most=1)
        self.reconsider(only_moves=True)

    def measure_noise(self) -> None:
        """Set the variance of the read-out so that pixels scatter about the model as they are expected to.

        Cameras are often described without their read noise, and it may differ from frame to frame. Second
        differences along both axes see noise and hardly anything smooth (Immerkaer 1996), the median of their
        size hardly any emitter that is missing.
        """
        if min(self.photons.shape[1:]) < _LEAST_SIDE_PX:
            return
        expected = np.maximum(self.images + self.floor + self.read_variance, 1.0)
        left_over = self.photons - self.images - self.floor
        for c, variance in enumerate(expected):
            spread = convolve(variance, _ROUGH**2)
            scatter = 1.4826 * float(np.median(np.abs(convolve(left_over[c], _ROUGH)) / np.sqrt(spread)))
            more = (scatter**2 - 1.0) * float(np.median(variance))
            self.read_variance[c] = np.maximum(self.read_variance[c] + more, 0.0)

    def settle(self, which: Mask, *, local: bool = False, tolerance: float = 0.5) -> None:
        """Fit emitters in groups and remove what is not supported, until nothing is removed.

        ``local`` holds the background but for a slow correction.
        """
        if not local:
            self._level()
        while which.any():
            for group in self._groups(which):
                self._fit(group, local=local, tolerance=tolerance)
            support = np.where(which, self.support(), np.inf)
            dim = self.emitters.photons.sum(axis=1) < self.options.least_photons
            weak = which & (dim | (support < self.options.keep_gain))
            if not weak.any():
                return
            # Of several weak ones that share light only the weakest goes at once.
            near = KDTree(self.emitters.xyz_nm[:, :2]).query_ball_point(
                self.emitters.xyz_nm[weak, :2], self._link_nm / 2
            )
            going = np.zeros(len(weak), bool)
            rank = np.where(weak, support, np.inf)
            for i, others in zip(np.flatnonzero(weak), near, strict=True):
                going[i] = rank[i] <= rank[others].min()
            touched = self.near(going)
            self.images -= self._light(self.emitters.take(going))
            self.emitters, self.sigma = self.emitters.take(~going), self.sigma[~going]
            self.origin, which = self.origin[~going], touched[~going]

    def reconsider(self, *, only_moves: bool = False) -> bool:
        """Try to explain doubtful emitters better; whether that changed any.

        Doubtful are those much like their neighbours, and those brighter than any should be. Tried are: without
        the emitter; one in place of it and a neighbour; it somewhere else; two in place of one that is too
        bright. The matched filter proposes where, so that a fit in a side minimum is left, and says what is worth
        a fit. ``only_moves`` keeps their number.
        """
        alone, fitted = self._evidence()
        bright = self.emitters.photons.sum(axis=1) > (self.options.most_photons or np.inf)
        doubtful = np.flatnonzero((fitted < _ALIKE * alone) | bright)
        self.gone = np.zeros(len(self.emitters), bool)
        changed = False
        for i in doubtful[np.argsort(fitted[doubtful])]:
            if not self.gone[i]:
                spare = bool(fitted[i] < _SURE * self.options.keep_gain)
                asked = _Asked(spare=spare, bright=bool(bright[i]), only_moves=only_moves)
                changed |= self._replaced(int(i), asked)
        keep = ~self.gone
        self.emitters, self.sigma, self.origin = self.emitters.take(keep), self.sigma[keep], self.origin[keep]
        return changed

    def _replaced(self, i: int, asked: "_Asked") -> bool:
        tree = KDTree(self.emitters.xyz_nm[:, :2])
        count = min(_NEIGHBOURS, len(self.emitters))
        near = np.atleast_1d(tree.query(self.emitters.xyz_nm[i, :2], k=count)[1])
        near = near[~self.gone[near]]
        far = np.hypot(*(self.emitters.xyz_nm[near, :2] - self.emitters.xyz_nm[i, :2]).T) > self._link_nm
        others = near[(near != i) & ~far]
        group = np.append(others, i)
        trials = self._trials(i, others, asked)
        if not trials:
            return False
        problem = self._problem(group, local=True)
        complete = problem.fit(self.emitters.take(group), most=6).log_likelihood
        for trial in trials:
            rest = group[~np.isin(group, trial.going)]
            start = self.emitters.take(rest)
            if trial.new is not None:
                start = _joined(start, trial.new)
            if not len(start):
                continue
            worth = complete + trial.least_gain
            found = problem.fit(start, most=15, worth=worth)
            if found.log_likelihood > worth:
                replaced = self.emitters.take(group)
                self.gone[trial.going] = True
                new = found.emitters.take(slice(len(rest), None))
                self._append(new)
                rest = np.append(rest, np.arange(len(self.emitters) - len(new), len(self.emitters)))
                self._take(rest, problem, found, local=True, instead=replaced)
                return True
        return False

    def _trials(self, i: int, others: NDArray[np.intp], asked: "_Asked") -> list[_Trial]:
        """What could stand in place of an emitter, the simplest first."""
        elsewhere = self._proposed([i])
        move = [] if elsewhere is None else [_Trial([i], elsewhere.one, 1.0)]
        if asked.only_moves:
            return move
        trials = []
        if asked.spare:
            trials.append(_Trial([i], None, -self.options.keep_gain))
        pairs = [[i, int(other)] for other in others[:_PARTNERS]]
        merged = [(both, self._proposed(both)) for both in pairs]
        hopeful = [(found.surplus, both, found.one) for both, found in merged if found is not None]
        if hopeful:
            _, both, one = max(hopeful, key=lambda each: each[0])
            trials.append(_Trial(both, one, -self.options.keep_gain))
        trials += move
        if asked.bright:
            trials += [_Trial([i], self._halves(i, apart), self.options.add_gain) for apart in _APART_NM]
        return trials

    def _halves(self, i: int, apart_nm: tuple[float, float, float]) -> Emitters:
        """Two emitters in place of one, on either side of it."""
        one = self.emitters.take(np.array([i, i]))
        xyz = one.xyz_nm + np.array([[0.5], [-0.5]]) * np.array(apart_nm)
        return Emitters(xyz, one.blur_nm2, 0.5 * one.photons)

    def _proposed(self, going: list[int]) -> _Proposal | None:
        """The best single emitter in place of some, from the matched filter around them.

        None where it is one of them, or explains so much less than they do that no fit would make up for it.
        """
        old = self.emitters.take(np.asarray(going))
        half = max(part.half_px for part in self.stamps) + _ELSEWHERE_PX
        pixel = self.stamps[0].psf.pixel_nm
        middle = old.xyz_nm[:, :2].mean(axis=0)
        corners = [
            np.floor(part.here(middle[None])[0] / part.psf.pixel_nm).astype(int) - half
            for part in self.stamps
        ]
        side = 2 * half + 1
        height, width = self.photons.shape[1:]
        residual = np.zeros((len(self.photons), side, side), np.float32)
        variance = np.full_like(residual, 1e12)  # nothing is known beyond the frame
        loss = 0.0
        for c, (corner, part) in enumerate(zip(corners, self.stamps, strict=True)):
            places = part.corners(old.xyz_nm[:, :2])
            images = part.images(old.xyz_nm, old.blur_in(c), places, derivatives=False)[:, 0]
            light = np.zeros((side, side), np.float32)
            add_windows(light, images * old.photons[:, c, None, None], places - corner)
            rows, columns, own_rows, own_columns = windows(corner[None], side, (height, width))[0]
            own, floor = light[own_rows, own_columns], self.floor[c, rows, columns]
            total = self.images[c, rows, columns]
            left_over = self.photons[c, rows, columns] - (total - own) - floor
            shot = np.maximum(total + floor + self.read_variance[c, rows, columns], 1.0)
            shot = shot + (_GRAIN * self.error * (total - own)) ** 2
            loss += float((own * (left_over - 0.5 * own) / shot).sum())
            residual[c, own_rows, own_columns] = left_over
            variance[c, own_rows, own_columns] = shot
        found = self.local_bank.candidates(
            residual, variance, least_gain=max(1.0, _HOPE * loss), apart_px=side, most=1, corners=corners
        )
        if not len(found.gain):
            return None
        xyz = found.xyz_nm + np.array([*(corners[0] * pixel), 0.0])
        grid = np.array([pixel, pixel, self.options.step_nm])
        if (np.abs(xyz - old.xyz_nm) < _SAME_PLACE * grid).all(axis=1).any():
            return None
        one = Emitters(xyz, self.prior.mean_blur_nm2(1), found.photons)
        return _Proposal(one, float(found.gain[0]) - loss)

    def _append(self, new: Emitters) -> None:
        """Add emitters, whose light is not in the images yet, at the end."""
        count = len(new)
        self.emitters = _joined(self.emitters, new)
        self.sigma = np.concatenate([self.sigma, np.full((count, self.sigma.shape[1]), np.inf)])
        self.origin = np.concatenate([self.origin, np.full(count, -1)])
        self.gone = np.concatenate([self.gone, np.zeros(count, bool)])

    def support(self) -> Floats:
        """(n,) loss of log-likelihood without each emitter, to second order.

        The least of what the fit says, which knows how alike emitters are, and of what is left of it where
        the PSF's errors on the light of the others could pass for an emitter.
        """
        return np.minimum(*self._evidence())

    def _evidence(self) -> tuple[Floats, Floats]:
        """(n,) losses of log-likelihood: if the light of the others stood still, and as the fit says."""
        photons = self.emitters.photons
        fitted = 0.5 * ((photons / np.maximum(self.sigma[:, -photons.shape[1] :], 1e-9)) ** 2).sum(axis=1)
        alone = np.zeros(len(photons))
        for c, part in enumerate(self.stamps):
            corners = part.corners(self.emitters.xyz_nm[:, :2])
            light = part.images(self.emitters.xyz_nm, self.emitters.blur_in(c), corners, derivatives=False)[
                :, 0
            ]
            light *= photons[:, c, None, None].astype(np.float32)
            shot = np.maximum(self.images[c] + self.floor[c] + self.read_variance[c], 1.0)
            for i, (rows, columns, own_rows, own_columns) in enumerate(
                windows(corners, part.side_px, shot.shape)
            ):
                own = light[i, own_rows, own_columns]
                others = self.images[c, rows, columns] - own
                variance = shot[rows, columns] + (_GRAIN * self.error * others) ** 2
                alone[i] += 0.5 * float((own**2 / variance).sum())
        return alone, np.asarray(fitted)

    def grow(self, rounds: int) -> bool:
        """Add emitters, each time fitting only what is near them; whether any was added."""
        for done in range(rounds):
            added = self.add()
            if not added.any():
                return done > 0
            self.settle(self.near(added), local=True)
        return True

    def add(self) -> Mask:
        """Add emitters where the residual asks for them; which of all emitters they are."""
        residual = self.photons - self.images - self.floor
        shot = np.maximum(self.images + self.floor + self.read_variance, 1.0)
        found = self.bank.candidates(
            residual,
            shot + (_GRAIN * self.error * self.images) ** 2,
            least_gain=self.options.add_gain,
            apart_px=max(1, self.stamps[0].half_px // 3),
            most=_MOST_ADDED,
        )
        found = found.take(self._untried(found))
        self.tried = self.tried.joined(found)
        mask = np.concatenate([np.zeros(len(self.emitters), bool), np.ones(len(found.gain), bool)])
        new = Emitters(found.xyz_nm, self.prior.mean_blur_nm2(len(found.gain)), found.photons)
        self.images += self._light(new)
        self._append(new)
        return mask

    def _untried(self, found: Candidates) -> Mask:
        """Candidates that are not where one with as much to gain was tried before."""
        pixel = self.stamps[0].psf.pixel_nm
        grid = np.array([pixel, pixel, self.options.step_nm])
        apart = np.abs(found.xyz_nm[:, None] - self.tried.xyz_nm) / grid
        same = (apart < _SAME_PLACE).all(axis=2) & (found.gain[:, None] < _MORE * self.tried.gain)
        return np.asarray(~same.any(axis=1))

    def result(self) -> Refined:
        """What was found."""
        last = np.array(self.photons.shape[:0:-1]) - 1
        background = np.empty((len(self.emitters), len(self.photons)))
        for c, part in enumerate(self.stamps):
            place = np.floor(part.here(self.emitters.xyz_nm[:, :2]) / part.psf.pixel_nm).astype(int)
            column, row = np.clip(place, 0, last).T
            background[:, c] = self.floor[c, row, column]
        return Refined(
            self.emitters,
            self.sigma,
            self.origin,
            self.support(),
            background,
            self.images,
            self.floor,
        )

    @property
    def _link_nm(self) -> float:
        """Emitters that are nearer share light that matters."""
        return max(part.half_px * part.psf.pixel_nm for part in self.stamps) * _LINK_SHARE

    def _groups(self, which: Mask) -> list[NDArray[np.intp]]:
        """Emitters that share light, in groups of at most ``options.group``."""
        index = np.flatnonzero(which)
        xy = self.emitters.xyz_nm[index, :2]
        pairs = KDTree(xy).query_pairs(self._link_nm, output_type="ndarray")
        links = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(index), len(index)))
        _, label = connected_components(links, directed=False)
        parts = [index[label == i] for i in range(label.max() + 1)]
        return [piece for part in parts for piece in self._halved(part)]

    def _halved(self, group: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """A group cut across its longer side until no piece is too large."""
        if len(group) <= self.options.group:
            return [group]
        xy = self.emitters.xyz_nm[group, :2]
        order = np.argsort(xy[:, np.ptp(xy, axis=0).argmax()])
        half = len(group) // 2
        return [piece for part in (order[:half], order[half:]) for piece in self._halved(group[part])]

    def _fit(self, group: NDArray[np.intp], *, local: bool, tolerance: float, most: int = 30) -> None:
        """Fit one group with the light of the others held."""
        problem = self._problem(group, local=local)
        fitted = problem.fit(self.emitters.take(group), tolerance=tolerance, most=most)
        self._take(group, problem, fitted, local=local)

    def _problem(self, group: NDArray[np.intp], *, local: bool) -> GroupProblem:
        """The box of a group's windows with the light of all others held; ``local``: and the background."""
        emitters = self.emitters.take(group)
        light = self._light(emitters)
        photons, noise, held, corners = [], [], [], []
        for c, (rows, columns) in enumerate(self._boxes(emitters)):
            total = self.images[c, rows, columns]
            floor = self.floor[c, rows, columns] if local else 0.0
            photons.append(self.photons[c, rows, columns])
            noise.append(self.read_variance[c, rows, columns] + (self.error * total) ** 2)
            held.append(total - light[c, rows, columns] + floor)
            corners.append((columns.start, rows.start))
        box = Box(photons, noise, held, corners)
        largest = max(max(part.shape) for part in photons)
        node_px = float(largest) if local else self.options.node_px
        return GroupProblem(box, self.stamps, self.prior, node_px=node_px)

    def _take(
        self,
        group: NDArray[np.intp],
        problem: GroupProblem,
        fitted: GroupFit,
        *,
        local: bool,
        instead: Emitters | None = None,
    ) -> None:
        """Let a fit be the state of its group; ``instead``: of the emitters whose light it replaces."""
        old = self.emitters.take(group) if instead is None else instead
        # Windows move with their emitters, also beyond the box: light is exchanged as a whole.
        self.images += self._light(fitted.emitters) - self._light(old)
        for name in ("xyz_nm", "blur_nm2", "photons"):
            getattr(self.emitters, name)[group] = getattr(fitted.emitters, name)
        self.sigma[group] = fitted.sigma
        for c, ((column, row), part) in enumerate(zip(problem.box.corners, fitted.background, strict=True)):
            where = (c, slice(row, row + part.shape[0]), slice(column, column + part.shape[1]))
            self.floor[where] = part + (self.floor[where] if local else 0.0)

    def _boxes(self, emitters: Emitters) -> list[tuple[slice, slice]]:
        """Rows and columns that the windows of emitters cover, in each channel."""
        boxes = []
        for part in self.stamps:
            corners, spans = part.corners(emitters.xyz_nm[:, :2]), []
            for axis, length in ((1, self.photons.shape[1]), (0, self.photons.shape[2])):
                start = min(max(0, int(corners[:, axis].min())), length - 1)
                last = int(corners[:, axis].max()) + part.side_px
                spans.append(slice(start, max(start + 1, min(length, last))))
            boxes.append((spans[0], spans[1]))
        return boxes

    def _light(self, emitters: Emitters) -> Frames:
        """(C, H, W) expectation of emitters."""
        out = np.zeros_like(self.photons)
        for channel, part in enumerate(self.stamps):
            corners = part.corners(emitters.xyz_nm[:, :2])
            images = part.images(emitters.xyz_nm, emitters.blur_in(channel), corners, derivatives=False)[:, 0]
            add_windows(out[channel], images * emitters.photons[:, channel, None, None], corners)
        return out

    def _level(self) -> None:
        """A first background for the whole frame, by least squares on what the emitters leave."""
        for floor, rest in zip(self.floor, self.photons - self.images, strict=True):
            floor[...] = smoothed(rest, self.options.node_px)


def _joined(first: Emitters, second: Emitters) -> Emitters:
    """One after the other."""
    return Emitters(
        *(
            np.concatenate([getattr(part, name) for part in (first, second)])
            for name in ("xyz_nm", "blur_nm2", "photons")
        )
    )
