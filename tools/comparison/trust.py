"""``python -m tools trust``: how often verdict, gate and classifier err, where the truth is known."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.bundles import load_script
from tools.comparison.power import Spread, smallest_gain
from tools.comparison.simulate import experiment
from tools.comparison.verdicts import MEAN, summarise
from tools.data.datalist import Case
from tools.flags import check_numbers
from tools.gate.fakes import FAKES, fakes
from tools.gate.power import judge_fakes
from tools.gate.realness import tile_features
from tools.io.files import InputError
from tools.io.markdown import MarkedPage, table
from tools.phantom.phantom import phantom
from tools.tissues import pathological_tissues, tissue_labels, words
from tools.workflows.synthesizer import SYNTHESIZER

BEGIN, END = "<!-- campaign -->", "<!-- end of campaign -->"
DEVIATIONS = (0.0, 0.01, 0.02, 0.03, 0.05)  # Dice, of (fold x arm)
PATIENTS, FOLDS, SEEDS = (10, 20, 40), (1, 3, 5), 3
FAMILY = {"patients": 20, "folds": 5, "seeds": 2, "arms": 12, "fold": 0.02}
PLANNED = (20, 40, 100, 200)  # patients, of whom the pages say what five folds can find
SPREADS = {
    "none": Spread(fold=0.0, patient=0.05, run=0.02, noise=0.05),
    "0.01": Spread(fold=0.01, patient=0.05, run=0.02, noise=0.05),
    "0.03": Spread(fold=0.03, patient=0.05, run=0.02, noise=0.05),
}
QUESTIONS = 20  # four arms beside real, five tissues
SIZE = (144, 144, 8)  # voxels of a drawn patient


def trust(
    page: Path, seed: int = 0, experiments: int = 1000, drawn: int = 40, arms: int = FAMILY["arms"], mixed: int = 200
) -> None:
    """Count false verdicts, power, what the gate rejects and what a classifier tells apart, where the truth is known.

    Every figure is a simulation or is measured on drawn patients, so it says how the judges err, not how good any
    painting is. The tables go between the marks in the page, or make up a new one.

    Args:
        page: Markdown page, for example docs/trust.md.
        seed: Seed for all random draws.
        experiments: Simulated comparisons per cell of a table; half of them per family of questions.
        drawn: Drawn patients for gate and classifier; three fifths train, the others are unseen.
        arms: Arms of a family of questions, real among them.
        mixed: Simulated comparisons for the mixed model of statsmodels.

    Raises:
        InputError: if a number is too small, or the page has one mark without the other.
    """
    check_numbers({"experiments": experiments, "drawn": drawn, "arms": arms, "mixed": mixed})
    marked = MarkedPage(page, (BEGIN, END), "Trust")
    if drawn < 10:
        raise InputError(f"drawn is {drawn}, but the gate needs at least 10 patients to learn from and to be shown")
    command = f"python -m tools trust --page {marked.shown} --seed {seed} --experiments {experiments} --drawn {drawn}"
    parts = [f"Made by `{command} --arms {arms} --mixed {mixed}`."]
    parts += [
        false_verdicts(seed, experiments),
        mixed_model(seed, mixed),
        family(seed, max(1, experiments // 2), arms),
    ]
    parts += [questions(), *painted_or_real(seed, drawn)]
    marked.write("\n\n".join(parts))
    print(f"wrote the tables of {page}")


def _share(called: Callable[[list[dict]], bool], experiments: int, seed: int, **design) -> float:
    """Return how often a comparison of identical arms is called something."""
    rng = np.random.default_rng(seed)
    return float(np.mean([called(experiment(rng, **design)) for _ in range(experiments)]))


def _judged(records: list[dict], primary: tuple[str, str] | None = None) -> list[dict]:
    """Return the compared rows of some records."""
    arms, tissues = (list(dict.fromkeys(record[key] for record in records)) for key in ("arm", "tissue"))
    return [row for row in summarise(records, tissues, arms, primary=primary) if "verdict" in row]


def _claimed(records: list[dict]) -> bool:
    """Return whether any row is a gain or a loss."""
    return any(row["verdict"] in ("gain", "loss") for row in _judged(records))


def false_verdicts(seed: int, experiments: int) -> str:
    """Return the table of false verdicts of two identical arms, by folds, patients and the luck of a fold."""
    rows = []
    for folds in tqdm(FOLDS, desc="false verdicts", unit="number of folds", disable=None):
        for patients in PATIENTS:
            design = {"patients": patients, "folds": folds, "seeds": SEEDS}
            shares = [_share(_claimed, experiments, seed, fold=fold, **design) for fold in DEVIATIONS]
            rows.append([str(folds), str(patients), *(f"{100 * share:.1f}" for share in shares)])
    head = ["folds", "patients", *(f"{fold:g}" for fold in DEVIATIONS)]
    error = 100 * np.sqrt(0.05 * 0.95 / experiments)
    told = (
        f"**False verdicts in percent**, of {experiments} comparisons of two identical arms with {SEEDS} seeds, by the "
        f"deviation\nin Dice of what a fold's painted set does. One standard error of 5 % is {error:.1f}."
    )
    return f"{told}\n\n{table(head, rows)}"


def mixed_model(seed: int, experiments: int) -> str:
    """Return the false verdicts of a mixed model of statsmodels, for comparison."""
    rows = []
    for folds in (3, 5):
        design = {"patients": 40, "folds": folds, "seeds": SEEDS}
        shares = [_share(_mixed_claims, experiments, seed, fold=fold, **design) for fold in DEVIATIONS]
        rows.append([str(folds), *(f"{100 * share:.1f}" for share in shares)])
    told = (
        f"**The same of a mixed model** (statsmodels' MixedLM, fold as random effect, REML, Wald test; {experiments}\n"
        "comparisons, 40 patients), which is why the verdict is not made by it."
    )
    return f"{told}\n\n{table(['folds', *(f'{fold:g}' for fold in DEVIATIONS)], rows)}"


def _mixed_claims(records: list[dict]) -> bool:
    """Return whether a mixed model of the patients' differences, with the fold as random effect, finds one."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    values: dict[tuple, dict[str, list[float]]] = {}
    for record in records:
        own = values.setdefault((record["patient"], record["fold"]), {})
        own.setdefault(record["arm"], []).append(record["dice_all"])
    differences = [np.mean(own["arm1"]) - np.mean(own["real"]) for own in values.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the estimate lies on the border of what is possible
        model = MixedLM(np.array(differences), np.ones((len(values), 1)), groups=[fold for _, fold in values])
        try:
            return bool(model.fit(reml=True).pvalues[0] < 0.05)
        except (np.linalg.LinAlgError, ValueError):
            return False


def family(seed: int, experiments: int, arms: int) -> str:
    """Return how many studies of identical arms have any false verdict, and how often the primary question is one."""
    design = FAMILY | {"arms": arms, "tissues": tuple(name for name in tissue_labels() if name != "background")}
    primary, rng, found = ("arm1", MEAN), np.random.default_rng(seed), []
    for _ in tqdm(range(experiments), desc="families of questions", unit="study", disable=None):
        rows = _judged(experiment(rng, **design), primary)
        alone = [row["p"] <= 0.05 for row in rows]
        others = [row["verdict"] != "no gain" for row in rows if not row["primary"]]
        named = [row["verdict"] != "no gain" for row in rows if row["primary"]]
        found.append((any(alone), any(others), named[0]))
    uncorrected, corrected, one = 100 * np.mean(found, axis=0)
    rows = [
        ["any interval of one question alone excludes 0", f"{uncorrected:.0f}"],
        ["any verdict of the family (Holm)", f"{corrected:.1f}"],
        ["the primary question's verdict", f"{one:.1f}"],
    ]
    told = (
        f"**Studies with a false verdict in percent**: {arms - 1} arms identical to real, five tissues and their mean, "
        f"{FAMILY['patients']} patients,\n{FAMILY['folds']} folds, {experiments} studies."
    )
    return f"{told}\n\n{table(['studies in which', 'percent'], rows)}"


def questions() -> str:
    """Return which gains five folds can find, by patients and by what a fold's painted set does."""
    rows = []
    for patients in PLANNED:
        cells = []
        for spread in SPREADS.values():
            gains = [smallest_gain(patients, 5, SEEDS, spread, number) for number in (1, QUESTIONS)]
            cells.append(" / ".join("none" if gain is None else f"{gain:.3f}" for gain in gains))
        rows.append([str(patients), *cells])
    told = (
        f"**What five folds can answer**: the smallest true gain in Dice that is found in 80 % of comparisons with "
        f"{SEEDS} seeds, as\nthe primary question / as one of {QUESTIONS}. Patients differ by 0.05 in what an arm does "
        "to them, a patient's noise is 0.05,\na run's luck 0.02. The columns are the deviation of a fold's painted set."
    )
    return f"{told}\n\n{table(['patients', *SPREADS], rows)}"


def painted_or_real(seed: int, drawn: int) -> list[str]:
    """Return what the gate rejects and what the classifier tells apart, on drawn patients."""
    with tempfile.TemporaryDirectory() as name:
        phantom(Path(name, "drawn"), patients=drawn, seed=seed, size=SIZE)
        images = sorted(Path(name, "drawn/images").iterdir())
        cases = [Case(path, Path(name, "drawn/labels", path.name), path.name.split(".")[0], 0) for path in images]
        trained = drawn * 3 // 5
        return [rejected(judge_fakes(cases[:trained], cases[trained:], seed), trained), told_apart(cases, seed)]


def rejected(judged: list[dict], trained: int) -> str:
    """Return the table of what the gate rejects."""
    tissues = [name for name in pathological_tissues() if any(row["tissue"] == name for row in judged)]
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in judged):
        own = {row["tissue"]: row for row in judged if row["kind"] == kind}
        cells = [f"{own[name]['rejected']} of {own[name]['cases']}" if name in own else "" for name in tissues]
        share = 100 * sum(row["rejected"] for row in own.values()) / sum(row["cases"] for row in own.values())
        rows.append([words(kind), *cells, f"{share:.0f} %"])
    told = (
        f"**What the gate rejects**: real tissue of drawn patients it has not seen, and seven fakes in its place; "
        f"{trained} training\npatients."
    )
    return f"{told}\n\n{table(['kind', *map(words, tissues), 'all'], rows)}"


def told_apart(cases: list[Case], seed: int) -> str:
    """Return how well a classifier tells tiles of other patients from real ones: the headline of every evaluation."""
    crossed = load_script(SYNTHESIZER, "classifier").crossed_auc
    tiles: dict[str, dict[str, list[list[np.ndarray]]]] = {}
    for number, case in enumerate(cases):
        label, hu, _ = case.volumes()
        for name in pathological_tissues():
            where = label == tissue_labels()[name]
            if where.any():
                half = tiles.setdefault(name, {kind: [[], []] for kind in ("real", *FAKES)})
                for kind, shown in (("real", hu), *fakes(hu, where, seed + number)):
                    half[kind][number // 2 % 2].append(tile_features(shown, where)[16])
    rows = []
    for kind in ("real", *FAKES):
        cells = []
        for found in tiles.values():
            real, other = ([np.concatenate(side) for side in found[name]] for name in ("real", kind))
            if kind == "real":  # one half of each side stands for painted tissue
                sides = [[rows[0::2], rows[1::2]] for rows in real]
            else:
                sides = [[other[side], real[side]] for side in (0, 1)]
            area = crossed(sides)
            cells.append("" if np.isnan(area) else f"{area:.2f}")
        rows.append([words(kind), *cells])
    told = (
        "**What the classifier tells apart**: area under its curve on drawn patients it has not seen; 0.5 where it\n"
        "cannot. Empty: too few tiles."
    )
    return f"{told}\n\n{table(['shown as painted', *map(words, tiles)], rows)}"
