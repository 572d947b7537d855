"""The phantom: it must be reproducible, look like a clinic, and not be solvable by thresholds."""

import csv
import dataclasses

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tools.io.files import InputError
from tools.io.volume import load_ct, load_labels, spacing_mm
from tools.phantom.phantom import describe_patient, draw_patient, involved_fraction, phantom
from tools.tissues import pathological_tissues, tissue_labels

PATIENTS, SIZE = 12, (160, 160, 12)
SMALL = (64, 64, 6)


@pytest.fixture(scope="module")
def labels():
    return tissue_labels()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("phantom") / "cohort"
    phantom(output, patients=PATIENTS, size=SIZE)
    return output


@pytest.fixture(scope="module")
def rows(folder):
    with open(folder / "patients.csv") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def cohort(folder, rows, labels):
    """HU, label values and image of each case, axes turned to left, back and head."""
    cases = []
    for row in rows:
        hu, image = load_ct(folder / "images" / f"{row['case']}.nii.gz")
        label, _ = load_labels(folder / "labels" / f"{row['case']}.nii.gz", labels)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
        )
        hu, label = (nib.apply_orientation(array, turn) for array in (hu.astype(np.float32), label))
        cases.append((hu, label, image))
    return cases


def voxels_of(cohort, labels):
    counts = sum(np.bincount(label.ravel(), minlength=len(labels)) for _, label, _ in cohort)
    return {tissue: int(counts[value]) for tissue, value in labels.items()}


def held_out_dice(features, cohort, labels, classify):
    """Dice per pathological tissue, mean over patients; fitted on the even patients, scored on the odd, and vice versa.

    ``features`` holds an array per patient with a row per voxel of the lung.
    """
    values = [label[label > 0] for _, label, _ in cohort]
    dice = {tissue: [] for tissue in pathological_tissues()}
    for held_out in (0, 1):
        train = [index for index in range(len(cohort)) if index % 2 != held_out]
        fitted_on = (np.concatenate([part[index] for index in train]) for part in (features, values))
        predict = classify(*fitted_on, range(1, len(labels)))
        for index in range(held_out, len(cohort), 2):
            predicted = predict(features[index])
            for tissue, scores in dice.items():
                truth, found = values[index] == labels[tissue], predicted == labels[tissue]
                if truth.any():
                    scores.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    return {tissue: float(np.mean(scores)) for tissue, scores in dice.items()}


def by_histogram(flatten):
    """Classify by the histogram of HU, 20 HU a bin; ``flatten`` 1 takes all tissues as equally common."""

    def classify(train, values, classes):
        def bins(x):
            return ((np.clip(x[:, 0], -1060, 300) + 1060) // 20).astype(int)

        counts = np.stack([np.bincount(bins(train[values == value]), minlength=69) for value in classes]) + 1e-6
        chosen = 1 + (counts / counts.sum(axis=1, keepdims=True) ** flatten).argmax(axis=0)
        return lambda x: chosen[bins(x)]

    return classify


def by_gaussians(train, values, classes):
    """Classify by one Gaussian per tissue in all features (quadratic discriminant), tissues equally common."""
    models = []
    for value in classes:
        part = train[values == value]
        spread = np.cov(part.T) + 1e-3 * np.eye(part.shape[1])
        models.append((part.mean(axis=0), np.linalg.inv(spread), np.linalg.slogdet(spread)[1]))
    return lambda x: 1 + np.argmin([((x - m) @ p * (x - m)).sum(axis=1) + logdet for m, p, logdet in models], axis=0)


def local_texture(hu, label):
    """HU, and mean and log deviation in squares of 3, 5, 9 and 15 voxels, at the voxels of the lung."""
    lung = (label > 0).astype(np.float32)
    hu = np.clip(hu, -1060, 200)
    features = [hu]
    for width in (3, 5, 9, 15):
        share, first, second = (
            ndimage.uniform_filter(power * lung, (width, width, 1)) for power in (np.ones_like(hu), hu, hu**2)
        )
        mean = first / np.maximum(share, 1e-3)
        features += [mean, np.log(np.sqrt(np.maximum(second / np.maximum(share, 1e-3) - mean**2, 0)) + 5)]
    return np.stack([feature[label > 0] for feature in features], axis=1)


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_patients(tmp_path):
    phantom(tmp_path / "one", patients=1, seed=3, size=SMALL)
    phantom(tmp_path / "two", patients=2, seed=3, size=SMALL)
    phantom(tmp_path / "other", patients=1, seed=4, size=SMALL)
    for kind in ("images", "labels"):
        name = f"{kind}/phantom000.nii.gz"
        first, second, other = (nib.load(tmp_path / run / name) for run in ("one", "two", "other"))
        assert np.asarray(first.dataobj).tobytes() == np.asarray(second.dataobj).tobytes()
        assert (first.affine == second.affine).all()
        assert np.asarray(first.dataobj).tobytes() != np.asarray(other.dataobj).tobytes()
    assert (tmp_path / "one/patients.csv").read_text() in (tmp_path / "two/patients.csv").read_text()


@pytest.mark.slow
def test_files_hold_hounsfield_units_and_the_label_scheme(folder, cohort, labels):
    assert len(cohort) == PATIENTS
    image = nib.load(folder / "images/phantom000.nii.gz")
    assert image.get_data_dtype() == np.int16 and image.shape == SIZE
    assert nib.load(folder / "labels/phantom000.nii.gz").get_data_dtype() == np.uint8
    for hu, label, _ in cohort:
        assert hu.min() >= -1024 and hu.max() <= 3071
        assert hu.max() > 400  # bone
        assert np.median(hu[0]) < -950  # air beside the patient
        assert -915 < np.median(hu[label == labels["healthy"]]) < -800


@pytest.mark.slow
def test_tissues_are_as_imbalanced_as_in_a_clinic(cohort, labels):
    voxels = voxels_of(cohort, labels)
    order = ["healthy", "ground_glass", "fibrosis", "emphysema", "consolidation"]
    assert sorted(order, key=voxels.get, reverse=True) == order
    assert voxels["healthy"] > 3 * voxels["ground_glass"]
    assert voxels["emphysema"] > 2 * voxels["consolidation"]


@pytest.mark.slow
def test_a_small_cohort_shows_every_tissue_and_a_large_one_fills_five_folds(cohort, labels):
    shown = [set(np.unique(label)) for _, label, _ in cohort[:6]]
    assert set.union(*shown) == set(labels.values())
    assert sum(labels["consolidation"] in values for values in shown) == 2
    assert sum("consolidation" in describe_patient(0, index).mixture for index in range(24)) == 6


@pytest.mark.slow
def test_thresholds_on_hu_do_not_solve_the_phantom_and_texture_helps(cohort, labels):
    features = [local_texture(hu, label) for hu, label, _ in cohort]
    means = []
    for flatten in (0, 0.5, 0.75, 1):
        dice = held_out_dice(features, cohort, labels, by_histogram(flatten))
        means.append(np.mean(list(dice.values())))
        assert means[-1] < 0.60, dice
    assert max(means) > 0.45  # the classifier works
    dice = held_out_dice(features, cohort, labels, by_gaussians)
    assert np.mean(list(dice.values())) > max(means) + 0.03, dice


@pytest.mark.slow
def test_severity_is_the_drawn_fraction_and_the_requested_one(cohort, rows, labels):
    for index, ((_, label, _), row) in enumerate(zip(cohort, rows)):
        assert float(row["severity"]) == pytest.approx(involved_fraction(label, labels), abs=1e-4)
        assert float(row["severity"]) == pytest.approx(describe_patient(0, index).severity, abs=1e-3)


@pytest.mark.slow
def test_history_shifts_the_tissues(cohort, rows, labels):
    def share(history, tissue):
        found = [label for (_, label, _), row in zip(cohort, rows) if row["history"] == history]
        return np.mean([(label == labels[tissue]).sum() / (label > 0).sum() for label in found])

    histories = {row["history"] for row in rows}
    assert histories == {"smoker", "exposure", "post-infection", "none"}
    for history, tissue in (("smoker", "emphysema"), ("exposure", "fibrosis"), ("post-infection", "ground_glass")):
        assert share(history, tissue) > 1.5 * max(share(other, tissue) for other in histories - {history})
    assert share("post-infection", "consolidation") > 0
    assert sum(share(history, "consolidation") for history in histories - {"post-infection"}) == 0


def test_age_lowers_the_density_and_widens_the_airways(labels):
    density, airway = [], []
    for age in (40, 60, 80):
        patient = dataclasses.replace(describe_patient(0, 3), age=age, kernel="soft")
        hu, label, _ = draw_patient(patient, 0, (112, 112, 16))
        density.append(np.median(hu[label == labels["healthy"]]))
        lungs = ndimage.binary_dilation(label > 0, np.ones((9, 9, 1)))
        airway.append(np.count_nonzero((hu < -950) & (label == 0) & lungs))
    assert density[0] > density[1] + 12 > density[2] + 24
    assert airway[0] < airway[1] < airway[2]


@pytest.mark.slow
def test_fibrosis_is_subpleural_and_basal_and_emphysema_apical_and_central(cohort, labels):
    height, depth = {"fibrosis": [], "emphysema": [], "healthy": []}, {"fibrosis": [], "emphysema": [], "healthy": []}
    for _, label, image in cohort:
        lung = label > 0
        level = np.linspace(0, 1, label.shape[2])
        inside = np.stack([ndimage.distance_transform_edt(lung[..., k]) for k in range(label.shape[2])], axis=2)
        for tissue in height:
            found = label == labels[tissue]
            height[tissue].append(np.broadcast_to(level, label.shape)[found])
            depth[tissue].append(inside[found] * spacing_mm(image)[0])
    height = {tissue: np.concatenate(values).mean() for tissue, values in height.items()}
    depth = {tissue: np.concatenate(values).mean() for tissue, values in depth.items()}
    assert height["fibrosis"] < height["healthy"] - 0.05 and height["emphysema"] > height["healthy"] + 0.05
    assert depth["fibrosis"] < 0.7 * depth["healthy"] and depth["emphysema"] > depth["fibrosis"] + 5


@pytest.mark.slow
def test_healthy_lung_is_denser_at_the_back(cohort, labels):
    for hu, label, _ in cohort:
        healthy = label == labels["healthy"]
        front, back = np.quantile(np.nonzero(healthy)[1], (0.3, 0.7))
        rows = np.arange(label.shape[1])[:, None]
        assert np.median(hu[healthy & (rows > back)]) > np.median(hu[healthy & (rows < front)]) + 20


@pytest.mark.slow
def test_the_table_is_behind_the_patient_and_the_heart_on_the_left_in_every_orientation(cohort, labels):
    for hu, label, _ in cohort:
        body = ndimage.binary_opening(hu > -400, np.ones((5, 5, 1)))  # the table's shell is too thin to stay
        middle = slice(hu.shape[2] // 3, 2 * hu.shape[2] // 3)
        back = np.nonzero(body[..., middle])[1].max()
        front = np.nonzero(body[..., middle])[1].min()
        assert (hu[:, back + 2 :, middle] > -400).sum() > 10 * (hu[:, : front - 2, middle] > -400).sum() + 100
        low = slice(hu.shape[2] // 4, hu.shape[2] // 2)
        lung = (label[..., low] > 0).sum(axis=(1, 2))
        assert lung[: len(lung) // 2].sum() > lung[len(lung) // 2 :].sum()  # the heart takes room from the left lung


@pytest.mark.slow
def test_affines_are_oblique_axes_are_flipped_and_both_kernels_occur(cohort, rows):
    codes = {nib.aff2axcodes(image.affine) for _, _, image in cohort}
    assert len(codes) >= 4
    for _, _, image in cohort:
        matrix = np.abs(image.affine[:3, :3]) / spacing_mm(image)
        assert np.diag(matrix).min() > 0.98 and (matrix[~np.eye(3, dtype=bool)] > 1e-3).all()
        width, depth, slices = spacing_mm(image)
        assert width == pytest.approx(depth) and 2.0 < width < 2.4 and slices > 15
    assert len({round(spacing_mm(image)[0], 3) for _, _, image in cohort}) == PATIENTS
    noise = {"soft": [], "lung": []}
    for (hu, label, _), row in zip(cohort, rows):
        away = ~ndimage.binary_dilation(hu > -850, np.ones((9, 9, 1))) & (label == 0)
        noise[row["kernel"]].append(hu[away & (np.abs(hu + 1000) < 400) & (hu > -1024)].std())
    assert min(noise["lung"]) > max(noise["soft"])


def test_a_finer_grid_shows_the_same_patient(labels):
    patient = describe_patient(0, 1)
    volumes = {}
    for size in (SMALL, (128, 128, 6)):
        _, label, affine = draw_patient(patient, 0, size)
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        volumes[size] = np.bincount(label.ravel(), minlength=len(labels))[1:] * voxel_ml
    assert 2500 < volumes[SMALL].sum() < 7000  # ml, both lungs
    assert volumes[SMALL] == pytest.approx(volumes[128, 128, 6], rel=0.1)


def test_a_wide_picture_is_filled_with_air():
    hu, _, _ = draw_patient(describe_patient(0, 1), 0, (256, 64, 4))
    assert np.median(hu[:20]) < -950


def test_an_output_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        phantom(tmp_path, patients=1, size=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("size", ["160,160", (160, 160), 160, (160, 160, "many"), (160.5, 160, 24), "a,b,c", None])
def test_a_size_that_is_not_three_integers_is_refused(tmp_path, size):
    with pytest.raises(InputError) as error:
        phantom(tmp_path / "out", size=size)
    assert str(error.value) == f"size must be three integers such as 160,160,24, not {size}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "size, shown", [((32, 160, 24), "32,160,24"), ("160,63,24", "160,63,24"), ((64, 64, 3), "64,64,3")]
)
def test_a_size_that_is_too_small_is_refused(tmp_path, size, shown):
    with pytest.raises(InputError, match=f"size must be at least 64,64,4, not {shown}"):
        phantom(tmp_path / "out", size=size)


@pytest.mark.parametrize("patients", [0, -3, 2.5, "six", True])
def test_a_number_of_patients_that_is_not_positive_is_refused(tmp_path, patients):
    with pytest.raises(InputError, match=f"patients must be an integer of at least 1, not {patients}"):
        phantom(tmp_path / "out", patients=patients)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="seed must be an integer of at least 0, not -1"):
        phantom(tmp_path / "out", seed=-1)


def test_the_last_line_names_the_next_command(tmp_path, capsys):
    phantom(tmp_path / "out", patients=1, size="64,64,4")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"wrote 1 drawn patients to {tmp_path}/out; next: python -m tools dataset --images ")


@pytest.mark.slow
def test_cohorts_for_a_study_of_kernels_and_textures(tmp_path):
    phantom(tmp_path / "usual", patients=2, size=SMALL)
    phantom(tmp_path / "own", patients=2, size=SMALL, own_textures=True, name="tests")
    for patient in range(2):
        usual, own = tmp_path / "usual", tmp_path / "own"
        label, same = (np.asarray(nib.load(f"{root}/labels/{name}{patient:03d}.nii.gz").dataobj)
                       for root, name in ((usual, "phantom"), (own, "tests")))  # fmt: skip
        hu, other = (np.asarray(nib.load(f"{root}/images/{name}{patient:03d}.nii.gz").dataobj)
                     for root, name in ((usual, "phantom"), (own, "tests")))  # fmt: skip
        assert np.array_equal(label, same)
        differs = hu != other
        assert differs[label > 1].mean() > 0.9 > 0.5 > differs[label == 0].mean()
    assert (tmp_path / "own/patients.csv").read_text().splitlines()[1].startswith("tests000,tests000,")
    with pytest.raises(InputError, match="kernel must be one of soft, lung, not sharp"):
        phantom(tmp_path / "no", kernel="sharp")
    with pytest.raises(InputError, match="name must begin with a letter"):
        phantom(tmp_path / "no", name="../x")


def test_a_cohort_of_one_kernel_and_one_that_is_spared():
    from tools.phantom.phantom import describe_patient

    assert {describe_patient(0, index, "lung").kernel for index in range(6)} == {"lung"}
    for index in range(12):
        usual, spared = describe_patient(0, index), describe_patient(0, index, spared=True)
        ill = spared.mixture.get("fibrosis", 0) + spared.mixture.get("consolidation", 0)
        assert sum(spared.mixture.values()) == pytest.approx(1) and usual.kernel == spared.kernel
        assert (ill == 0 and spared.severity < usual.severity) if spared.kernel == "lung" else spared == usual
