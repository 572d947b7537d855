"""Does painted tissue help? Train the segmenter once per arm, with everything but the training cases held equal."""

from pathlib import Path

from tools.comparison import power
from tools.comparison.arms import ARMS, HEADROOM, REFERENCE, arm_key
from tools.comparison.checks import (
    check,
    check_headroom,
    check_norm_apart,
    check_steps,
    held_back_cases,
    inner_datalist,
    patients_with,
    share_counts,
    shared_recipe,
    warnings,
)
from tools.comparison.experiment import Experiment
from tools.comparison.mixing import Mixing
from tools.comparison.plateau import budgets
from tools.comparison.results import SCHEMA, collect, read_results
from tools.comparison.run import Run
from tools.comparison.verdicts import format_table, parse_primary
from tools.data.datalist import read_datalist
from tools.data.twins import warn_of_near_duplicates
from tools.flags import listed
from tools.io.files import InputError, RunError, open_run, sha256, write_json
from tools.io.volume import relative
from tools.painting.hosts import check_hosts
from tools.painting.manifest import FREE_METHODS
from tools.workflows.cluster import check_cluster, cluster, everywhere, say
from tools.workflows.origin import named_weights
from tools.workflows.run import versions
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER, check_tuning


def compare(
    datalist: Path,
    output: Path | None = None,
    arms: tuple = ("real", "oversampled", "copy_paste", "cbmat_filter", "cbmat_filter_oversampled"),
    folds: tuple | None = None,
    inner: int | None = None,
    seeds: tuple = (0, 1, 2),
    ratios: tuple = (1,),
    ratio_per_tissue: dict | None = None,
    prevalence: bool = False,
    schedule: str = "mixed",
    real_share: float = 0.25,
    norm_apart: bool = False,
    fractions: tuple = (1,),
    patients: tuple | None = None,
    external: Path | None = None,
    held_back: Path | None = None,
    least_headroom: float = 0.03,
    primary: str | None = None,
    iterations: int = 2000,
    until: str | None = None,
    longer: float | None = None,
    balance: float = 1.0,
    mixture: str = "balanced",
    by_error: bool = False,
    look_alikes: bool = False,
    context: bool = False,
    densities: bool = False,
    steps: int = 8,
    tune_steps: int = 0,
    candidates: int = 1,
    max_cases: int | None = None,
    augmentation_seed: int = 0,
    paint_per_seed: bool = False,
    start: Path | None = None,
    overlays: tuple | None = None,
    overrides: dict | None = None,
    synthesis_overrides: dict | None = None,
    synthesizer: Path | None = None,
    hosts: Path | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    plan: bool = False,
) -> None:
    """Train the segmenter per arm (real, rebalanced, copy-pasted, painted), test on real patients, print the verdicts.

    Every arm gets the same number of optimizer steps, the same classical augmentation and the same real cases; nothing
    is fitted outside the training fold. A run that is finished is not repeated: start the command again to go on, or
    with more arms, folds, seeds, ratios or fractions to add them.

    Args:
        datalist: The datalist.json of the real cases.
        output: Folder for the runs, results.csv and summary.json; new, or begun with the same settings.
        arms: Some of real, oversampled, class_weighted, longer, copy_paste, drawn, no_ablation, konz, cbmat,
            cbmat_filter, each of the last six with _oversampled or _weighted, and synthetic_only; real must be there.
            Each also with _started at the end, which begins with the weights of start.
        folds: Folds to hold out, one after the other; default all.
        inner: Compare on the training patients of this fold alone, divided into three folds of their own, to choose
            settings without a look at its test patients.
        seeds: Seeds of the segmenter; each is a training run of its own. A verdict needs two, and three folds.
        ratios: Ratios of synthetic to real cases as the segmenter draws them, for example 0.25,0.5,1,2.
        ratio_per_tissue: Ratios of single tissues, such as {"consolidation": 0.25}; the others keep that of ratios. A
            case with several tissues counts for the one with the smallest.
        prevalence: Whether painted cases are drawn so that each tissue is as frequent among them as in the real ones.
        schedule: When painted cases are drawn: mixed, synthetic_first (they alone, then real ones alone) or real_last
            (mixed, then real ones alone).
        real_share: Share of the steps at the end with real cases alone, where the schedule is not mixed.
        norm_apart: Whether batch norm takes painted cases apart in training, so that the segmenter keeps the statistics
            of real ones alone.
        fractions: Shares of the training patients, for a learning curve, for example 0.1,0.25,0.5,1.
        patients: Numbers of training patients instead, the same in each fold, for example 1,2,5,10,20,all.
        external: A datalist.json of other patients; every segmenter is tested on them too.
        held_back: A datalist.json of further labelled patients, about five times those trained on. An arm more_real
            trains with them too and says what a perfect generator could give; it runs first.
        least_headroom: Mean Dice that more_real must gain over real, else the other arms are not run; 0 runs them.
        primary: The one question named beforehand, ARM,TISSUE, for example cbmat_filter,mean. Its verdict is not
            corrected for the number of the others; mean stands for the mean over the pathological tissues.
        iterations: Optimizer steps of every segmenter; the most of them with until.
        until: "plateau" finds each fold's number of steps on an inner split of its training patients: the smallest
            after which doubling gains less than 0.005 of mean Dice. Every arm of the fold gets that number.
        longer: Steps of the arm longer over those of the others; by default it gets as many more as the seconds are
            enough for that augment took for the dearest painted arm.
        balance: How far augment fills up the rare tissues.
        mixture: balanced, or joint for tissues and volumes as they lie together in training cases; as augment takes it.
        by_error: With joint and until plateau, training cases whose tissues the inner segmenter finds badly are
            followed more often.
        look_alikes: With joint and until plateau, training cases are followed more often that show what the inner
            segmenter takes for another tissue, and lack that one.
        context: Whether lesions are moved with what touches them, halos and mixtures.
        densities: Whether each tissue is painted with the mean HU of the cases whose lesions are moved.
        steps: Sampling steps of the synthesizer.
        tune_steps: Optimizer steps that the weights of synthesizer go on with, on each fold's training cases, before
            they paint.
        candidates: Paintings of each map; the one that the gate accepts and that the fold's real-only segmenter finds
            least of is kept.
        max_cases: Largest number of new cases of augment.
        augmentation_seed: Seed of augment.
        paint_per_seed: Whether each seed gets maps, a synthesizer and painted cases of its own, so that their luck
            averages out over the seeds; else one synthesizer per fold serves all seeds, which takes less time.
        start: Weights with their card.json that the arms with _started begin with, or shipped for those of the bundle.
            All arms then take the voxel size of these weights.
        overlays: Configs of the segmenter laid over its train.json for every arm, for example whole_slices.yaml.
        overrides: Config ids of the segmenter's train.json, for example {"device": "cpu", "batch_size": 2}.
        synthesis_overrides: Config ids of the synthesizer, passed to augment.
        synthesizer: Weights with their card.json to paint with in every fold, instead of training some in each, or
            shipped for those of the bundle.
        hosts: Folder of CTs of normal lungs that nobody labelled, which receive the new tissue of every arm; as augment
            takes it.
        workers: Runs side by side, on a cluster of Dask on this machine; each gets a GPU of its own where there are
            several, else a share of the cores.
        scheduler: Address of a scheduler of Dask whose workers make the runs instead, or the JSON file that says it.
        plan: Train nothing; print what such a comparison could find, judged by the finished runs in output.

    Raises:
        InputError: for an argument or datalist that cannot be compared, or if any stage has seen a test patient.
        RunError: if runs failed; the others are finished and kept.
    """
    datalist = Path(datalist)
    overrides, synthesis_overrides = dict(overrides or {}), dict(synthesis_overrides or {})
    synthesizer, start = named_weights(SYNTHESIZER, synthesizer), named_weights(SEGMENTER, start)
    if scheduler is not None:
        datalist, output, synthesizer, start, hosts = everywhere(datalist, output, synthesizer, start, hosts)
    real = read_datalist(datalist)
    if inner is not None:
        real = inner_datalist(real, datalist, inner)
    folds = listed(folds) or sorted({case.fold for case in real["training"] if case.fold >= 0})
    arms = [str(arm) for arm in listed(arms)]
    arms = list(dict.fromkeys([*[arm for arm in (REFERENCE, HEADROOM) if held_back], *arms]))
    seeds, ratios, fractions = (listed(values) for values in (seeds, ratios, fractions))
    overlays = tuple(map(str, listed(overlays)))
    counted = {"iterations": iterations, "workers": workers, "candidates": candidates}
    check(real, datalist, arms, folds, seeds, ratios, fractions, counted, overrides, overlays)
    counts = share_counts(real, folds, fractions, listed(patients))
    fractions = list(counts) if patients is not None else fractions
    mixing = Mixing(dict(ratio_per_tissue or {}), prevalence, schedule, real_share, norm_apart)
    mixing.check(real["training"], real["labels"], budgets(iterations)[0] if until else iterations)
    if norm_apart:
        check_norm_apart(arms, overrides)
    recipe = shared_recipe(real, arms, folds, start, overlays, overrides, mixing)
    check_steps(real, arms, folds, iterations, until, longer)
    if (by_error or look_alikes) and not (until and mixture == "joint"):
        named = "by_error" if by_error else "look_alikes"
        raise InputError(f"{named} asks the inner segmenter of --until plateau, for --mixture joint; give both")
    trained_anew = sorted({ARMS[arm].method for arm in arms} - {None, *FREE_METHODS, "cbmat"})
    check_tuning(tune_steps, synthesizer)
    if synthesizer and trained_anew:
        raise InputError(f"--synthesizer gives the weights, but {', '.join(trained_anew)} are ways to train them anew")
    keys = list(dict.fromkeys(arm_key(name, ratio) for name in arms for ratio in ratios))
    tested = patients_with(real, folds)
    tissues = [name for name in real["labels"] if name != "background"]
    named = parse_primary(primary, keys, tissues)
    if plan:
        pilot = read_results(output) if output else None
        if not pilot:
            raise InputError(
                "compare --plan needs --output, a folder with the results.csv of a small comparison on like data: how "
                "much patients and trainings vary is taken from it"
            )
        everybody = {case.patient for case in real["training"] if case.fold in folds}
        print(power.format_plan(power.plan(tested, len(everybody), len(folds), len(seeds), len(keys), pilot)))
        return
    if hosts:
        check_hosts(hosts, [], real["training"])  # every patient is tested in some fold
    if output is None:
        raise InputError("compare needs --output, the folder of its runs")
    others = read_datalist(Path(external)) if external else None
    if others and others["labels"] != real["labels"]:
        raise InputError(f"{external} has labels {others['labels']}, but {datalist} has {real['labels']}")
    more = held_back_cases(held_back, real, others, arms, least_headroom)
    painting = {"balance": balance, "steps": steps, "max_cases": max_cases}
    settings = {
        "command": "compare",
        "schema": SCHEMA,
        "version": versions()["lung_tissue_seg"],
        "datalist_sha256": sha256(datalist),
        "inner": inner,
        "external_sha256": sha256(external) if external else None,
        "held_back_sha256": sha256(held_back) if held_back else None,
        "iterations": iterations,
        "until": until,
        "longer": longer,
        "mixing": mixing.described(),
        **painting,
        "mixture": None if mixture == "balanced" else mixture,
        "by_error": by_error or None,
        "look_alikes": look_alikes or None,
        "context": context or None,
        "tune_steps": tune_steps or None,
        "densities": densities or None,
        "candidates": candidates if candidates != 1 else None,
        "augmentation_seed": augmentation_seed,
        "paint_per_seed": paint_per_seed,
        "primary": ",".join(named) if named else None,
        "overrides": overrides,
        "overlays": list(overlays) or None,
        "start_sha256": sha256(start) if start else None,
        "synthesis_overrides": synthesis_overrides,
        "synthesizer_sha256": sha256(synthesizer) if synthesizer else None,
        "hosts": relative(hosts, output) if hosts else None,
    }
    check_cluster(workers, scheduler, output)
    output = open_run(Path(output), settings)
    if inner is not None:
        datalist = output / "datalist.json"
        write_json(datalist, real | {"training": [case.item(output) for case in real["training"]]})
    for sentence in warnings(real, folds, tested) + warn_of_near_duplicates(real["training"]):
        say(sentence)
    painting |= {"seed": augmentation_seed, "overrides": synthesis_overrides, "synthesizer": synthesizer}
    painting |= {"hosts": hosts, "mixture": mixture, "candidates": candidates, "context": context}
    painting |= {"tune_steps": tune_steps, "densities": densities}
    experiment = Experiment(
        datalist, real, output, seeds[0], iterations, recipe, painting, others, paint_per_seed, bool(until), longer,
        more, by_error, look_alikes, {share: count for share, count in counts.items() if share < 1},
    )  # fmt: skip
    runs = [
        Run(fold, float(fraction), seed, key)
        for fraction in sorted(fractions, reverse=True)
        for fold in folds
        for seed in seeds
        for key in keys
    ]
    first = [run for run in runs if run.key in (REFERENCE, HEADROOM)] if more and least_headroom else []
    with cluster(workers, scheduler, output, [datalist, external, held_back, start, synthesizer, hosts]) as client:
        failed = experiment.run_all(first, client)
        if first and not failed:
            check_headroom(collect(output, real)["rows"], least_headroom)
        failed = failed or experiment.run_all(runs, client)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs failed ({'; '.join(failed)}), so there is no result yet; "
            "the others are kept: start the same command again to repeat only these"
        )
    summary = collect(output, real)
    print(f"\n{format_table(summary['rows'])}\n")
    if more:
        print("of headroom: share of what more real patients gain that an arm takes")
    for told in summary["plateaus"]:
        print(told)
    print(f"difference: Dice over all patients, 1 or 0 where a tissue is absent, minus that of arm {REFERENCE}")
    print("interval: of one question alone, with patients, trainings and painted sets as chance; the fold is the unit")
    print(f"gain or loss: p (Holm) of at most 0.05, corrected for all rows{' but the primary one' if named else ''}")
    print(f"wrote results.csv and summary.json in {output}; next: python -m tools report --directory {output}")
