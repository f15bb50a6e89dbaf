"""Scenes are drawn from declared ranges, rendered deterministically and recorded by the camera."""

import json

import pytest
import torch

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.gaussian import Gaussian
from smlm_bridge.psf.gaussian import GaussianPSF
from smlm_bridge.simulate.background import BackgroundRanges, draw_background
from smlm_bridge.simulate.render import in_label_set, record, render
from smlm_bridge.simulate.scene import Ranges, Scene, draw

PIXEL, SHAPE = 100.0, (40, 60)
RANGES = Ranges(
    z_nm=(-300.0, 500.0),
    photons=(500.0, 5000.0),
    density_um2=(0.1, 0.4),
    background=BackgroundRanges((5.0, 50.0), gradient=20.0, glow=(10.0, 30.0), perlin=(5.0, 40.0)),
    blur_nm=(10.0, 60.0),
    read_noise_e=(1.0, 3.0),
    label_min_photons=1000.0,
    margin_nm=700.0,
)
PSF = GaussianPSF(Gaussian((130.0, 130.0), (-200.0, 200.0), (400.0, 400.0)), PIXEL)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene_of(ranges: Ranges = RANGES, *, seed: int = 1, frames: int = 50, **options: object) -> Scene:
    return draw(ranges, seeded(seed), frames=frames, shape=SHAPE, pixel_nm=PIXEL, **options)


def test_one_seed_one_scene() -> None:
    one, two, three = (scene_of(seed=seed, frames=5) for seed in (1, 1, 2))
    for name in ("frame", "xyz_nm", "photons", "blur_nm", "background", "read_noise_e"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(one.background, three.background)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    record(scene_of(frames=2), render(scene_of(frames=2), PSF), Camera(em_gain=50.0), seeded())
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("law", ["uniform", "loguniform"])
def test_everything_lies_within_its_range(law: str) -> None:
    ranges = Ranges.from_json({**RANGES.to_json(), "photons_law": law})
    scene = scene_of(ranges)
    x, y, z = scene.xyz_nm.T
    for values, low, high in (
        (x, -700, 6700),
        (y, -700, 4700),
        (z, -300, 500),
        (scene.photons, 500, 5000),
        (scene.blur_nm, 10, 60),
        (scene.read_noise_e, 1, 3),
    ):
        assert low <= float(values.min()) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < float(values.max()) <= high + 1e-3
    assert scene.background.shape == (50, *SHAPE)
    assert scene.frame.dtype == torch.int64
    assert bool((scene.frame.diff() >= 0).all())


def test_laws_of_photons() -> None:
    many = {"emitters": 400, "frames": 20}
    uniform, loguniform, gamma = (
        scene_of(Ranges((0.0, 1.0), photons=photons, photons_law=law), **many).photons
        for photons, law in (((1.0, 100.0), "uniform"), ((1.0, 100.0), "loguniform"), ((3.0, 50.0), "gamma"))
    )
    assert float(uniform.mean()) == pytest.approx(50.5, rel=0.03)
    assert float(loguniform.log10().mean()) == pytest.approx(1.0, rel=0.03)
    assert float(gamma.mean()) == pytest.approx(150, rel=0.03)
    assert float(gamma.var()) == pytest.approx(3 * 50**2, rel=0.1)


def test_density_counts_emitters_per_area_with_the_margin() -> None:
    scene = scene_of(Ranges((0.0, 1.0), density_um2=(0.5, 0.5), margin_nm=1000.0), frames=200)
    assert scene.frame.numel() / 200 == pytest.approx(0.5 * 8 * 6, rel=0.05)
    inside = in_label_set(scene, pixel_nm=PIXEL, min_photons=0.0)
    assert inside.frame.numel() / 200 == pytest.approx(0.5 * 6 * 4, rel=0.05)


def test_a_number_of_emitters_and_a_clear_border() -> None:
    scene = scene_of(emitters=7, clear_nm=900.0, frames=30)
    assert torch.bincount(scene.frame).tolist() == [7] * 30
    x, y = scene.xyz_nm[:, 0], scene.xyz_nm[:, 1]
    assert 900 <= float(x.min()) < float(x.max()) <= 5100
    assert 900 <= float(y.min()) < float(y.max()) <= 3100
    with pytest.raises(InputRejected, match="leaves no room"):
        scene_of(clear_nm=2100.0)


def test_no_emitters_at_all() -> None:
    scene = scene_of(emitters=0, frames=3)
    assert torch.equal(render(scene, PSF), scene.background)


def test_labels_are_inside_and_bright() -> None:
    scene = scene_of()
    asked = in_label_set(scene, pixel_nm=PIXEL, min_photons=1000.0)
    x, y = asked.xyz_nm[:, 0], asked.xyz_nm[:, 1]
    assert bool(((x >= 0) & (x < 6000) & (y >= 0) & (y < 4000) & (asked.photons >= 1000)).all())
    assert 0 < asked.frame.numel() < scene.frame.numel()
    assert torch.equal(asked.background, scene.background)


def background(**parts: object) -> torch.Tensor:
    return draw_background(BackgroundRanges(**parts), seeded(3), frames=200, shape=SHAPE)


def test_a_constant_background() -> None:
    level = background(constant=(10.0, 30.0))
    assert torch.equal(level, level[:, :1, :1].expand_as(level))
    assert 10 <= float(level.min()) < 11 < 29 < float(level.max()) <= 30


def test_a_gradient_rises_straight_and_no_more_than_it_says() -> None:
    level = background(constant=(50.0, 50.0), gradient=20.0)
    rise = level.amax((1, 2)) - level.amin((1, 2))
    assert 5 < float(rise.max()) <= 20
    bent = level[:, :, 2:] - 2 * level[:, :, 1:-1] + level[:, :, :-2]
    assert float(bent.abs().max()) < 1e-4


def test_a_glow_has_one_bright_centre() -> None:
    level = background(constant=(0.0, 0.0), glow=(10.0, 20.0), glow_width_px=(5.0, 8.0))
    assert float(level.amax((1, 2)).min()) > 10 * 0.9
    assert float(level.max()) <= 20
    corners = level[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.median()) < 0.01
    row = level.amax(2).argmax(1)
    assert bool(((row > 5) & (row < 35)).all())


def test_perlin_noise_is_smooth_and_bounded() -> None:
    level = background(constant=(0.0, 0.0), perlin=(10.0, 10.0))
    assert float(level.min()) >= 0
    assert float(level.max()) <= 10
    step, spread = level.diff(dim=2).std(), level.std()
    assert float(spread) > 0.5
    assert float(step) < 0.5 * float(spread)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (64, 48)])
def test_backgrounds_of_every_size(shape: tuple[int, int]) -> None:
    level = draw_background(RANGES.background, seeded(), frames=2, shape=shape)
    assert level.shape == (2, *shape)
    assert torch.isfinite(level).all()


def test_rendering_adds_emitters_and_background() -> None:
    scene = scene_of(frames=3)
    expected = render(scene, PSF)
    assert bool((expected >= scene.background - 1e-3).all())
    one = scene.frame == 1
    alone = PSF.images(scene.xyz_nm[one], SHAPE, blur_nm=scene.blur_nm[one]) * scene.photons[one, None, None]
    torch.testing.assert_close(expected[1], scene.background[1] + alone.sum(0), rtol=1e-4, atol=1e-3)


def test_records_are_whole_counts_of_the_camera() -> None:
    scene = scene_of(Ranges((0.0, 1.0), background=BackgroundRanges((40.0, 40.0))), emitters=0, frames=100)
    camera = Camera(offset=100.0, e_per_adu=0.5, read_noise_e=2.0)
    counts = record(scene, render(scene, PSF), camera, seeded())
    assert torch.equal(counts, counts.round())
    assert float(counts.min()) >= 0
    photons = camera.to_photons(counts.numpy())
    assert photons.mean() == pytest.approx(40, rel=0.005)
    assert photons.var() == pytest.approx(44, rel=0.03)


def test_read_noise_of_the_scene_adds_to_the_cameras() -> None:
    ranges = Ranges((0.0, 1.0), background=BackgroundRanges((40.0, 40.0)), read_noise_e=(6.0, 6.0))
    scene = scene_of(ranges, emitters=0, frames=100)
    counts = record(scene, render(scene, PSF), Camera(offset=500.0, read_noise_e=2.0), seeded())
    assert float(counts.var()) == pytest.approx(40 + 4 + 36, rel=0.03)


def test_counts_are_never_negative() -> None:
    scene = scene_of(
        Ranges((0.0, 1.0), background=BackgroundRanges((0.0, 0.0)), read_noise_e=(9.0, 9.0)), frames=2
    )
    assert float(record(scene, render(scene, PSF), Camera(), seeded()).min()) == 0


def test_ranges_survive_json() -> None:
    text = json.dumps(RANGES.to_json())
    again = Ranges.from_json(json.loads(text))
    assert again == RANGES
    assert again.to_json() == RANGES.to_json()
    assert Ranges.from_json({"z_nm": [0, 100]}) == Ranges((0, 100))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"z_nm": 5.0},
        {"z_nm": [0, 1, 2]},
        {"z_nm": ["a", "b"]},
        {"z_nm": [100, 0]},
        {"z_nm": [0, float("nan")]},
        {"z_nm": [0, float("inf")]},
        {"z_nm": [0, 1], "colour": 1},
        {"z_nm": [0, 1], "photons": [0, 10]},
        {"z_nm": [0, 1], "photons": [20, 10]},
        {"z_nm": [0, 1], "photons": [float("nan"), 10]},
        {"z_nm": [0, 1], "photons_law": "normal"},
        {"z_nm": [0, 1], "density_um2": [-1, 1]},
        {"z_nm": [0, 1], "blur_nm": [5, 1]},
        {"z_nm": [0, 1], "read_noise_e": [-1, 1]},
        {"z_nm": [0, 1], "margin_nm": float("nan")},
        {"z_nm": [0, 1], "margin_nm": "wide"},
        {"z_nm": [0, 1], "label_min_photons": -1},
        {"z_nm": [0, 1], "background": 5},
        {"z_nm": [0, 1], "background": {"colour": 1}},
        {"z_nm": [0, 1], "background": {"constant": [9, 1]}},
        {"z_nm": [0, 1], "background": {"gradient": -1}},
        {"z_nm": [0, 1], "background": {"glow": [0, 5], "glow_width_px": [0, 5]}},
    ],
)
def test_ranges_name_what_is_wrong(wrong: dict[str, object]) -> None:
    with pytest.raises(InputRejected, match="ranges"):
        Ranges.from_json(wrong)
