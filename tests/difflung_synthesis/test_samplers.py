"""The samplers against closed forms for Gaussian data, where the flow maps quantiles to quantiles, and diffusers."""

import math

import pytest
import torch
from scripts.samplers import alpha_bars, ddim, dpm_solver, dpm_solver_flow, euler, few_step, heun

MEAN, DEVIATION = -0.6, 0.2
QUANTILES = torch.linspace(-2, 2, 101, dtype=torch.float64)
IMAGES = MEAN + DEVIATION * QUANTILES


def flow_deviation(t):
    """Deviation of x_t = (1 - t) x_0 + t eps for x_0 ~ N(MEAN, DEVIATION^2), eps ~ N(0, 1)."""
    return math.hypot((1 - t) * DEVIATION, t)


def velocity(x, t):
    """E[eps - x_0 | x_t = x]."""
    slope = (t - (1 - t) * DEVIATION**2) / flow_deviation(t) ** 2
    return slope * (x - (1 - t) * MEAN) - MEAN


def average_velocity(x, t, interval):
    """The mean of the velocity along the path of one quantile, from t to t - interval."""
    end = t - interval
    quantile = (x - (1 - t) * MEAN) / flow_deviation(t)
    return (x - ((1 - end) * MEAN + flow_deviation(end) * quantile)) / interval


def diffusion_noise(alpha_bar):
    """E[eps | x] for x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, the same Gaussians."""

    def noise(x, step):
        level = alpha_bar[step].item()
        return math.sqrt(1 - level) / (level * DEVIATION**2 + 1 - level) * (x - math.sqrt(level) * MEAN)

    return noise


def noisiest(alpha_bar):
    """The quantiles of x_T, which the probability flow maps to IMAGES."""
    level = alpha_bar[-1].item()
    return math.sqrt(level) * MEAN + math.sqrt(level * DEVIATION**2 + 1 - level) * QUANTILES


def cubic_alpha_bar(num_train_steps=1920):
    """sigma / alpha falling as t^3: smooth to the end, so that the last, first-order step does not hide the order."""
    ratio = 20 * (torch.arange(1, num_train_steps + 1, dtype=torch.float64) / num_train_steps) ** 3
    return 1 / (1 + ratio**2)


def nonlinear(x, t):
    """Stands in for a network: no closed form, only smooth."""
    return 0.6 * torch.sin(2 * x + 3 * t) + 0.3 * x * math.cos(5 * t)


def nonlinear_noise(x, step):
    """E[eps | x] for x_0 in two modes, at MEAN and -MEAN, with a wrinkle: nonlinear, and x stays of order 1."""
    level = alpha_bars()[step].item()
    alpha, sigma = math.sqrt(level), math.sqrt(1 - level)
    variance = (alpha * DEVIATION) ** 2 + sigma**2
    eps = sigma / variance * (x - alpha * MEAN * torch.tanh(alpha * MEAN * x / variance))
    return eps + 0.2 * alpha * torch.sin(3 * x + step / 100)


def error(x_0):
    return (x_0 - IMAGES).abs().max().item()


SAMPLERS = {
    "euler": lambda x, n, f=velocity: euler(f, x, n),
    "heun": lambda x, n, f=velocity: heun(f, x, n),
    "dpm_solver_flow": lambda x, n, f=velocity: dpm_solver_flow(f, x, n),
    "few_step": lambda x, n, f=average_velocity: few_step(f, x, n),
    "ddim": lambda x, n, f=nonlinear_noise: ddim(f, x, alpha_bars(), n),
    "ancestral": lambda x, n, f=nonlinear_noise: ddim(f, x, alpha_bars(), n, 1.0, torch.Generator().manual_seed(0)),
    "dpm_solver": lambda x, n, f=nonlinear_noise: dpm_solver(f, x, alpha_bars(), n),
}
every_sampler = pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS.keys())


@every_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_num_steps_counts_the_evaluations(sample, num_steps):
    calls = []

    def network(x, *when):
        calls.append(when)
        return x

    sample(torch.ones(3), num_steps, network)
    assert len(calls) == num_steps


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 4, 4), (1, 1, 3, 4, 5)])
def test_shape_and_dtype_are_kept_and_the_start_is_not_changed(sample, dtype, shape):
    start = torch.full(shape, 0.5, dtype=dtype)
    x_0 = sample(start, 5)
    assert (x_0.shape, x_0.dtype) == (start.shape, dtype)
    assert x_0.isfinite().all()
    assert (start == 0.5).all()


@every_sampler
def test_global_random_state_is_left_alone(sample):
    before = torch.get_rng_state()
    sample(torch.zeros(4), 5)
    assert torch.equal(torch.get_rng_state(), before)


@every_sampler
@pytest.mark.parametrize("num_steps", [0, -3])
def test_fewer_than_one_step_is_refused(sample, num_steps):
    with pytest.raises(ValueError, match=f"^num_steps must be at least 1, not {num_steps}$"):
        sample(torch.zeros(1), num_steps)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_more_steps_than_training_had_are_refused(sampler):
    with pytest.raises(ValueError, match="^num_steps must be at most the 1000 steps of training, not 2000$"):
        sampler(nonlinear_noise, torch.zeros(1), alpha_bars(), 2000)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
@pytest.mark.parametrize("num_steps, steps", [(1, [999]), (3, [999, 666, 332]), (5, [999, 799, 599, 399, 199])])
def test_diffusion_starts_at_the_noisiest_step(sampler, num_steps, steps):
    visited = []

    def noise(x, step):
        visited.append(step)
        return x

    sampler(noise, torch.zeros(1), alpha_bars(), num_steps)
    assert visited == steps


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_diffusion_visits_no_step_twice(sampler):
    visited = []

    def noise(x, step):
        visited.append(step)
        return x

    for num_steps in range(1, 51):
        visited.clear()
        sampler(noise, torch.zeros(1), alpha_bars(50), num_steps)
        assert visited == sorted(set(visited), reverse=True)
        assert (visited[0], min(visited) >= 0) == (49, True)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_one_diffusion_step_returns_the_predicted_image(sampler):
    level = alpha_bars()[-1].item()
    expected = (QUANTILES - math.sqrt(1 - level) * nonlinear_noise(QUANTILES, 999)) / math.sqrt(level)
    assert torch.allclose(sampler(nonlinear_noise, QUANTILES, alpha_bars(), 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", [euler, heun, dpm_solver_flow])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_straight_flow_is_exact_in_any_number_of_steps(sampler, num_steps):
    noise = QUANTILES.flip(0)
    x_0 = sampler(lambda x, t: noise - IMAGES, noise, num_steps)
    assert error(x_0) < 1e-12


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50])
def test_few_step_with_the_exact_average_velocity_is_exact(num_steps):
    assert error(few_step(average_velocity, QUANTILES, num_steps)) < 1e-12


@pytest.mark.parametrize(
    "sampler, num_steps", [(euler, 200), (heun, 60), (heun, 61), (dpm_solver_flow, 60), (few_step, 2)]
)
def test_flow_returns_the_mean_and_deviation_of_gaussian_data(sampler, num_steps):
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x_0 = sampler(average_velocity if sampler is few_step else velocity, noise, num_steps)
    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.003)
    assert x_0.std().item() == pytest.approx(DEVIATION, abs=0.003)


@pytest.mark.parametrize("sampler, num_steps", [(ddim, 1000), (dpm_solver, 250)])
def test_diffusion_returns_the_mean_and_deviation_of_gaussian_data(sampler, num_steps):
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x_0 = sampler(diffusion_noise(alpha_bars()), noise, alpha_bars(), num_steps)
    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert x_0.std().item() == pytest.approx(DEVIATION, abs=0.005)


@pytest.mark.parametrize("sampler, num_steps, near", [(ddim, 1000, 0.004), (dpm_solver, 250, 0.001)])
def test_diffusion_maps_quantiles_to_quantiles(sampler, num_steps, near):
    alpha_bar = alpha_bars()
    assert error(sampler(diffusion_noise(alpha_bar), noisiest(alpha_bar), alpha_bar, num_steps)) < near


@pytest.mark.parametrize(
    "sample, order",
    [
        (lambda n: euler(velocity, QUANTILES, n), 1),
        (lambda n: heun(velocity, QUANTILES, n), 2),
        (lambda n: heun(velocity, QUANTILES, n + 1), 2),
        (lambda n: dpm_solver_flow(velocity, QUANTILES, n), 1.7),  # 2 but for the times' reach, which grows as log n
        (lambda n: ddim(diffusion_noise(cubic_alpha_bar()), noisiest(cubic_alpha_bar()), cubic_alpha_bar(), n), 1),
        (
            lambda n: dpm_solver(diffusion_noise(cubic_alpha_bar()), noisiest(cubic_alpha_bar()), cubic_alpha_bar(), n),
            2,
        ),
    ],
    ids=["euler", "heun-even", "heun-odd", "dpm_solver_flow", "ddim", "dpm_solver"],
)
def test_order_of_convergence(sample, order):
    errors = [error(sample(n)) for n in (80, 160, 320)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("num_train_steps", [1, 250, 1000])
def test_alpha_bars_are_the_products_of_the_linear_schedule(num_train_steps):
    product, expected = 1.0, []
    for step in range(num_train_steps):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * step / max(num_train_steps - 1, 1))
        expected.append(product)
    alpha_bar = alpha_bars(num_train_steps)
    assert (alpha_bar.shape, alpha_bar.dtype) == ((num_train_steps,), torch.float64)
    assert alpha_bar.tolist() == pytest.approx(expected, rel=1e-12)


def test_no_step_of_training_is_refused():
    with pytest.raises(ValueError, match="^num_train_steps must be at least 1, not 0$"):
        alpha_bars(0)


def test_ancestral_sampling_returns_the_mean_and_deviation_and_forgets_its_start():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10_000, generator=generator)
    x_0 = ddim(diffusion_noise(alpha_bars()), start, alpha_bars(), 1000, eta=1.0, generator=generator)
    assert x_0.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x_0.std().item() == pytest.approx(DEVIATION, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([start, x_0]))[0, 1].item()) < 0.05  # 1 without fresh noise


def test_same_seed_same_result():
    def sample(seed, dtype=torch.float32):
        start = torch.zeros(2, 1, 8, 8, dtype=dtype)
        return ddim(nonlinear_noise, start, alpha_bars(), 20, 0.7, torch.Generator().manual_seed(seed))

    assert torch.equal(sample(3), sample(3))
    assert not torch.allclose(sample(3), sample(4), atol=0.1)
    assert torch.allclose(sample(3), sample(3, torch.float64).float(), atol=1e-4)  # float64 sees the same noise


def test_no_fresh_noise_ignores_the_generator():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    given = ddim(nonlinear_noise, QUANTILES, alpha_bars(), 20, 0.0, generator)
    assert torch.equal(given, ddim(nonlinear_noise, QUANTILES, alpha_bars(), 20))
    assert torch.equal(generator.get_state(), before)


def test_fresh_noise_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="^eta=0.5 draws fresh noise and needs a generator, not None$"):
        ddim(nonlinear_noise, torch.zeros(1), alpha_bars(), 10, eta=0.5)


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_share_of_fresh_noise_outside_zero_to_one_is_refused(eta):
    with pytest.raises(ValueError, match=rf"^eta must lie in \[0, 1\], not {eta}$"):
        ddim(nonlinear_noise, torch.zeros(1), alpha_bars(), 10, eta, torch.Generator())


def run_diffusers(scheduler, x, **arguments):
    """Sample with a noise scheduler of diffusers from x, driven by the stand-in network."""
    for step in scheduler.timesteps:
        x = scheduler.step(nonlinear_noise(x, step.item()), step, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_agrees_with_diffusers(num_steps, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    start = torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8)
    expected = run_diffusers(scheduler, start, eta=eta, generator=torch.Generator().manual_seed(1))
    ours = ddim(nonlinear_noise, start, alpha_bars(), num_steps, eta, torch.Generator().manual_seed(1))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-4)


def test_ancestral_sampling_agrees_with_the_ddpm_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(1000)
    start = torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8)
    expected = run_diffusers(scheduler, start, generator=torch.Generator().manual_seed(1))
    ours = ddim(nonlinear_noise, start, alpha_bars(), 1000, 1.0, torch.Generator().manual_seed(1))
    assert torch.allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 16, 20, 50, 100, 1000])
def test_dpm_solver_agrees_with_diffusers(num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(num_steps)
    expected = run_diffusers(scheduler, QUANTILES)
    ours = dpm_solver(nonlinear_noise, QUANTILES, alpha_bars(), num_steps)
    assert torch.allclose(ours, expected.double(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
def test_euler_agrees_with_diffusers(num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)])
    x = start = QUANTILES.float()
    for timestep in scheduler.timesteps:
        x = scheduler.step(nonlinear(x, timestep.item() / 1000), timestep, x).prev_sample
    assert torch.allclose(euler(nonlinear, start, num_steps), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("intervals", [1, 2, 10, 50])
def test_heun_agrees_with_diffusers(intervals):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=intervals)  # its grid: 1, ..., 1/intervals
    scheduler.set_timesteps(intervals)
    x = start = QUANTILES.float()
    for timestep in scheduler.timesteps:
        x = scheduler.step(nonlinear(x, timestep.item() / intervals), timestep, x).prev_sample
    assert torch.allclose(heun(nonlinear, start, 2 * intervals - 1), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 50])
def test_dpm_solver_flow_agrees_with_diffusers(num_steps):
    diffusers = pytest.importorskip("diffusers")
    visited = []
    dpm_solver_flow(lambda x, t: visited.append(t) or x, QUANTILES, num_steps)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
    )
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = torch.tensor([*visited, 0.0], dtype=torch.float64)  # it cannot be told its own
    x = QUANTILES
    for timestep, t in zip(scheduler.timesteps, visited):
        x = scheduler.step(nonlinear(x, t), timestep, x).prev_sample
    assert torch.allclose(dpm_solver_flow(nonlinear, QUANTILES, num_steps), x.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler, dense", [(euler, 0.13), (heun, 0.05), (dpm_solver_flow, 0.27)])
def test_what_regions_of_many_voxels_hold_after_eight_evaluations(sampler, dense):
    """Why painting uses dpm_solver_flow: three of ten regions should hold the denser of two tissues."""
    tissues, deviations, voxels = torch.tensor([[0.0], [3.0]]).double(), torch.tensor([[0.15], [0.3]]).double(), 144
    shares = torch.tensor([[0.7], [0.3]]).double()
    noise = 2**0.5 * torch.erfinv(2 * (torch.arange(4000).double() + 0.5) / 4000 - 1) / voxels**0.5

    def velocity(x, t):
        variance = ((1 - t) * deviations) ** 2 + t**2 / voxels
        centred = x - (1 - t) * tissues
        share = torch.softmax(shares.log() - (centred**2 / variance + variance.log()) / 2, dim=0)
        return (share * ((t / voxels - (1 - t) * deviations**2) / variance * centred - tissues)).sum(dim=0)

    means = sampler(velocity, noise, 8)
    assert (means > 1.5).double().mean().item() == pytest.approx(dense, abs=0.02)
    assert (sampler(velocity, noise, 400) > 1.5).double().mean().item() == pytest.approx(0.3, abs=0.01)


def test_scaling_the_data_keeps_the_deviation_of_fine_textures_in_eight_evaluations():
    """Why the pixel space has a data_scale: textures deviate by .05 to .23 in [-1, 1], the noise by 1."""

    def recovered(deviation, sampler):
        def velocity(x, t):
            return (t - (1 - t) * deviation**2) / ((1 - t) ** 2 * deviation**2 + t**2) * x

        return sampler(velocity, torch.ones(1, dtype=torch.float64), 8).item() / deviation

    assert recovered(0.1, euler) < 0.55
    for deviation in (0.05, 0.1, 0.15, 0.225):
        assert 0.98 < recovered(4 * deviation, heun) < 1.11
        assert 0.95 < recovered(4 * deviation, dpm_solver_flow) < 1.03
