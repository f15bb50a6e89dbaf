"""The dense localizer, its loss and its decoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smlm_bridge.networks.backbones import UNet
from smlm_bridge.networks.decode import decode
from smlm_bridge.networks.dense import DenseLocalizer, DenseScaling, Targets, stabilise
from smlm_bridge.networks.maps import MAP_NAMES

PIXEL = 100.0
SCALING = DenseScaling(0.0, 10.0, 5.0, PIXEL, 200.0, 400.0, 2000.0, 20.0)
INDEX = {name: i for i, name in enumerate(MAP_NAMES)}


def network(seed: int = 1) -> DenseLocalizer:
    torch.manual_seed(seed)
    return DenseLocalizer(UNet(1, (8, 12), (1,)), SCALING)


def frames(batch: int = 2, side: int = 16) -> torch.Tensor:
    return torch.poisson(torch.full((batch, 1, side, side), 20.0), generator=torch.Generator().manual_seed(2))


def targets(*rows: tuple[float, ...], batch: int = 2, side: int = 16) -> Targets:
    """Rows of (image, x, y, z, photons)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    background = torch.full((batch, side, side), 20.0)
    return Targets(table[:, 0].long(), table[:, 1:4], table[:, 4], background)


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_maps_have_the_size_of_the_frames_and_physical_values() -> None:
    maps = network().eval()(frames(3, 24))
    assert maps.shape == (3, len(MAP_NAMES), 24, 24)
    values = dict(zip(MAP_NAMES, maps.unbind(1), strict=True))
    assert bool(((values["probability"] >= 0) & (values["probability"] <= 1)).all())
    for name in ("photons", "sigma_x_nm", "sigma_y_nm", "sigma_z_nm", "sigma_photons", "background"):
        assert float(values[name].detach().min()) > 0


def test_the_loss_falls_on_a_tiny_task() -> None:
    """Two fixed spots in two frames, learned by heart."""
    rows = ((0, 430.0, 750.0, 100.0, 3000.0), (1, 1110.0, 520.0, 350.0, 1500.0))
    wanted, images = targets(*rows), frames()
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    for image, x_nm, y_nm, _, photons in rows:
        spot = torch.exp(-((x - x_nm / PIXEL) ** 2 + (y - y_nm / PIXEL) ** 2) / 4)
        images[int(image), 0] += spot * photons / float(spot.sum())
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        terms = net.loss(images, wanted)
        loss = 5 * terms["detection"] + terms["localization"] + terms["background"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 10
    assert decode(net(images).detach().numpy(), pixel_nm=PIXEL)["image"].tolist() == [0, 1]


def finite_gradients(net: DenseLocalizer, wanted: Targets) -> dict[str, torch.Tensor]:
    terms = net.loss(frames(), wanted)
    total(terms).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    return {name: term.detach() for name, term in terms.items()}


def test_two_emitters_in_one_pixel() -> None:
    finite_gradients(
        network(), targets((0, 430, 750, 100, 3000), (0, 470, 710, 300, 900), (1, 430, 750, 0, 800))
    )


@pytest.mark.parametrize("x", [0.0, 1e-4, 1599.9999, 1600.0])
def test_emitters_on_the_edge_of_the_frame(x: float) -> None:
    finite_gradients(network(), targets((0, x, x, 100, 3000), (1, x, 1600 - x, 100, 3000)))


def test_a_batch_without_emitters() -> None:
    terms = finite_gradients(network(), targets())
    assert float(terms["localization"]) == 0
    assert float(terms["detection"]) > 0


def test_an_emitter_without_light_asks_for_something_finite() -> None:
    finite_gradients(network(), targets((0, 430, 750, 100, 0.0)))


def test_the_neighbourhood_ends_at_the_frame() -> None:
    """An emitter in a corner has four pixels around it; the other five must not add to the mixture."""
    net = network().eval()
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.zero_()
        corner = net.loss(frames(), targets((0, 50.0, 50.0, 200.0, 2000.0)))["localization"]
        offsets = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
    wanted = -torch.logsumexp(-0.5 * offsets.square().sum(1), 0) + np.log(4)
    assert float(corner) == pytest.approx(float(wanted), abs=1e-5)


def test_the_likelihood_is_that_of_the_mixture() -> None:
    net = network().eval()
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.zero_()
        net.out.bias[5:9] = torch.tensor([0.3, -0.2, 0.5, -1.0])
        found = net.loss(frames(), targets((1, 730.0, 660.0, 360.0, 3000.0)))["localization"]
    sigma = np.exp([0.3, -0.2, 0.5, -1.0])
    density = 0.0
    for row in (5, 6, 7):
        for column in (6, 7, 8):
            error = np.array([7.3 - column - 0.5, 6.6 - row - 0.5, (360 - 200) / 400, np.log(3000 / 2000)])
            density += np.exp(-0.5 * ((error / sigma) ** 2).sum()) / sigma.prod() / 9
    assert float(found) == pytest.approx(-np.log(density), rel=1e-5)


def test_stabilised_noise_has_unit_variance() -> None:
    generator = torch.Generator().manual_seed(4)
    for level in (10.0, 100.0, 2000.0):
        noisy = torch.poisson(torch.full((20_000,), level), generator=generator)
        noisy = noisy + 3 * torch.randn(noisy.shape, generator=generator)
        assert float(stabilise(noisy, 9.0).var()) == pytest.approx(1.0, abs=0.06)
    assert float(stabilise(torch.tensor(-50.0), 1.0)) == 0


@pytest.mark.parametrize(
    ("widths", "dilations"), [((4,), ()), ((4, 6), (1,)), ((4, 6, 8), (1, 2)), ((4, 4, 4, 4), (1,))]
)
def test_no_output_depends_on_pixels_beyond_the_reach(
    widths: tuple[int, ...], dilations: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    net = DenseLocalizer(UNet(1, widths, dilations), SCALING).eval()
    with torch.no_grad():
        net.out.weight.normal_()
    step = net.size_step
    side = -(-(2 * net.reach + 4 * step) // step) * step
    images = frames(1, side).requires_grad_()
    seen = 0
    for row in range(side // 2, side // 2 + step):
        (gradient,) = torch.autograd.grad(net.raw(images)[0, :, row, row].sum(), images)
        lit = gradient[0, 0].abs().sum(0).nonzero()
        seen = max(seen, row - int(lit.min()), int(lit.max()) - row)
    assert seen <= net.reach
    assert net.reach <= 2 * seen + 2 * step


def test_a_unet_wants_multiples_of_its_step() -> None:
    net = UNet(1, (4, 6, 8))
    assert net.size_step == 4
    assert net(torch.zeros(1, 1, 8, 12)).shape == (1, 4, 8, 12)


# --- decode ---------------------------------------------------------------------------------------------------


def empty_maps(batch: int = 1, side: int = 12) -> NDArray[np.float32]:
    maps = np.zeros((batch, len(MAP_NAMES), side, side), np.float32)
    for name, value in (("z_nm", 50.0), ("photons", 1000.0), ("sigma_x_nm", 8.0), ("sigma_y_nm", 8.0)):
        maps[:, INDEX[name]] = value
    for name, value in (("sigma_z_nm", 20.0), ("sigma_photons", 40.0), ("background", 11.0)):
        maps[:, INDEX[name]] = value
    return maps


def place(
    maps: NDArray[np.float32], image: int, x: float, y: float, shares: dict[tuple[int, int], float]
) -> None:
    """Write an emitter at (x, y) whose probability is spread over ``shares`` of (row, column)."""
    for (row, column), share in shares.items():
        maps[image, INDEX["probability"], row, column] = share
        maps[image, INDEX["dx_nm"], row, column] = x - (column + 0.5) * PIXEL
        maps[image, INDEX["dy_nm"], row, column] = y - (row + 0.5) * PIXEL


@pytest.mark.parametrize(
    ("x", "y", "shares"),
    [
        (640.0, 330.0, {(3, 6): 0.95}),
        (600.0, 350.0, {(3, 5): 0.45, (3, 6): 0.5}),
        (600.0, 300.0, {(2, 5): 0.25, (2, 6): 0.24, (3, 5): 0.26, (3, 6): 0.2}),
        (600.0, 350.0, {(3, 5): 0.48, (3, 6): 0.48}),
        (600.0, 300.0, {(2, 5): 0.25, (2, 6): 0.25, (3, 5): 0.25, (3, 6): 0.25}),
        (3.0, 2.0, {(0, 0): 0.9}),
        (1198.0, 1199.0, {(11, 11): 0.9}),
        (-10.0, 555.0, {(5, 0): 0.8}),
        (1210.0, 600.0, {(5, 11): 0.4, (6, 11): 0.4}),
    ],
)
def test_one_emitter_is_found_once_and_exactly(
    x: float, y: float, shares: dict[tuple[int, int], float]
) -> None:
    maps = empty_maps()
    place(maps, 0, x, y, shares)
    found = decode(maps, pixel_nm=PIXEL)
    assert len(found["x_nm"]) == 1
    assert found["x_nm"][0] == pytest.approx(x, abs=1e-3)
    assert found["y_nm"][0] == pytest.approx(y, abs=1e-3)
    assert found["probability"][0] == pytest.approx(sum(shares.values()), abs=1e-6)
    assert found["z_nm"][0] == pytest.approx(50)
    assert (found["photons"][0], found["background"][0]) == (pytest.approx(1000), pytest.approx(11))


def test_values_are_weighted_by_probability_and_precision() -> None:
    maps = empty_maps()
    place(maps, 0, 600.0, 350.0, {(3, 5): 0.6, (3, 6): 0.3})
    maps[0, INDEX["z_nm"], 3, 5], maps[0, INDEX["z_nm"], 3, 6] = 100.0, 400.0
    assert decode(maps, pixel_nm=PIXEL)["z_nm"][0] == pytest.approx(200, rel=1e-5)
    maps[0, INDEX["sigma_x_nm"], 3, 5] = 16.0
    assert decode(maps, pixel_nm=PIXEL)["z_nm"][0] == pytest.approx(250, rel=1e-5)


def test_threshold() -> None:
    maps = empty_maps()
    place(maps, 0, 640.0, 330.0, {(3, 6): 0.4})
    assert len(decode(maps, pixel_nm=PIXEL)["x_nm"]) == 0
    assert len(decode(maps, pixel_nm=PIXEL, threshold=0.3)["x_nm"]) == 1


def test_nothing_is_found_in_nothing() -> None:
    found = decode(empty_maps(), pixel_nm=PIXEL)
    assert {"image", "x_nm", "y_nm", "probability", "z_nm", "sigma_z_nm"} <= set(found)
    assert all(values.shape == (0,) for values in found.values())
    assert decode(empty_maps(0), pixel_nm=PIXEL)["x_nm"].shape == (0,)


def test_a_plateau_of_equal_probability_is_one_emitter() -> None:
    maps = empty_maps()
    maps[0, INDEX["probability"], 4:6, 4:6] = 1.0
    assert len(decode(maps, pixel_nm=PIXEL)["x_nm"]) == 1
    maps[0, INDEX["probability"]] = 0.2
    assert len(decode(maps, pixel_nm=PIXEL)["x_nm"]) == 1


def test_neighbours_two_pixels_apart_are_two() -> None:
    maps = empty_maps()
    place(maps, 0, 350.0, 350.0, {(3, 3): 0.9})
    place(maps, 0, 550.0, 350.0, {(3, 5): 0.9})
    assert decode(maps, pixel_nm=PIXEL)["x_nm"] == pytest.approx([350, 550])


def test_order_is_image_row_column_and_images_do_not_mix() -> None:
    maps = empty_maps(3)
    spots = [(2, 1, 1), (0, 9, 9), (0, 2, 10), (0, 2, 3), (2, 1, 8)]
    for image, row, column in spots:
        place(maps, image, (column + 0.5) * PIXEL, (row + 0.5) * PIXEL, {(row, column): 0.9})
    found = decode(maps, pixel_nm=PIXEL)
    order = zip(found["image"], found["y_nm"] // PIXEL, found["x_nm"] // PIXEL, strict=True)
    assert [tuple(map(int, spot)) for spot in order] == sorted(spots)


def test_scaling_of_the_outputs() -> None:
    twice = replace(SCALING, pixel_nm=200.0, photons=4000.0)
    one, other = network().eval(), network().eval()
    other.scaling = twice
    with torch.no_grad():
        maps, scaled = one(frames())[0], other(frames())[0]
    for name, factor in (("dx_nm", 2), ("sigma_y_nm", 2), ("photons", 2), ("sigma_photons", 2), ("z_nm", 1)):
        torch.testing.assert_close(scaled[INDEX[name]], factor * maps[INDEX[name]])
