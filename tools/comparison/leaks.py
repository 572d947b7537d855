"""Has any stage of a comparison seen a test patient? Answered from what the stages wrote down, file by file."""

from pathlib import Path

from tools.comparison.arms import arm_of
from tools.data.datalist import Case, patients, read_datalist, split
from tools.data.provenance import (
    GATE_CARD,
    HOSTS_CARD,
    MAPS_CARD,
    SYNTHESIZER_CARD,
    cases_read,
    check_disjoint,
    find_twin,
)
from tools.io.files import InputError, read_json
from tools.painting.manifest import FREE_METHODS, read_manifest


def augmented_stages(directory: Path, method: str) -> dict[str, list[dict]]:
    """Return stage to the cases it has read, from the cards in a folder of ``augment``.

    Raises:
        InputError: if a stage left no card, so that a leak cannot be ruled out.
    """
    directory = Path(directory)
    cards = {"tissue maps and their frequencies": MAPS_CARD}
    if (directory / HOSTS_CARD).is_file():
        cards["hosts without labels"] = HOSTS_CARD
    if method not in FREE_METHODS:
        cards |= {"synthesizer": SYNTHESIZER_CARD, "quality gate": GATE_CARD}
    stages = {}
    for stage, name in cards.items():
        content = read_json(directory / name) if (directory / name).is_file() else {}
        if not content.get("cases"):
            raise InputError(f"{directory / name} does not say which cases were read; a leak cannot be ruled out")
        stages[stage] = content["cases"]
        if content.get("segmenter"):
            stages["segmenter of the quality gate"] = content["segmenter"]["cases"]
    return stages


def check_augmented(directory: Path, method: str, real: dict, fold: int, unfiltered: bool = False) -> tuple[dict, dict]:
    """Read what ``augment`` wrote and check that no stage of it has seen the fold's patients.

    Args:
        directory: Folder that ``augment`` wrote.
        method: Method with which it was made.
        real: The datalist given by the user, from ``read_datalist``.
        fold: The held-out fold.
        unfiltered: Read all painted cases instead of the accepted ones.

    Returns:
        The augmented datalist, and stage to the patients it was fitted on.

    Raises:
        InputError: if it was made for another fold or other labels, a stage saw a test patient, or a painted case has a
            test case as its source or as the donor of a lesion.
    """
    directory = Path(directory)
    path = directory / ("datalist_unfiltered.json" if unfiltered else "datalist.json")
    datalist = read_datalist(path)
    if datalist.get("held_out_fold") != fold:
        raise InputError(f"{path} was made with fold {datalist.get('held_out_fold')} held out, not fold {fold}")
    if datalist["labels"] != real["labels"]:
        raise InputError(f"{path} has labels {datalist['labels']}, but the datalist compared has {real['labels']}")
    training, held_out = split(real, fold)
    test = cases_read(held_out)
    fitted = {
        stage: check_disjoint(str(directory), stage, cases, test)
        for stage, cases in augmented_stages(directory, method).items()
    }
    names = {row["case"] for row in test} - {case.name for case in training}
    for line in read_manifest(directory / "manifest.jsonl"):
        donors = [donor["case"] for donor in line.get("donors", [])]
        for role, cases in (("source", [line["source"]]), ("donor", donors)):
            shared = sorted(names & set(cases))
            if shared:
                raise InputError(f"leak in {directory}: {line['case']} has the test case {shared[0]} as its {role}")
        source = {"image_sha256": line.get("source_sha256"), "content_sha256": line.get("source_content_sha256")}
        twin = find_twin(source, test)
        if twin:
            raise InputError(f"leak in {directory}: the source of {line['case']} is the CT of test case {twin['case']}")
    return datalist, fitted


def check_run(
    own: dict, fitted: dict, real: dict, fold: int, key: str, external: list[Case] = (), more: list[Case] = ()
) -> dict:
    """Check the datalist that an arm's segmenter will get, and return every stage with its patients.

    Args:
        own: The arm's datalist, from ``read_datalist``.
        fitted: Stage to patients, from ``check_augmented``; empty for arms without painted cases.
        real: The datalist given by the user (or the share of it in use), from ``read_datalist``.
        fold: The held-out fold.
        key: Key of the arm, for the message.
        external: Further test cases, of which nothing may have been seen either.
        more: Real cases that were held back and that the arm is given.

    Raises:
        InputError: if the segmenter or any other stage sees a test patient, or the real cases are not those of the
            datalist.
    """
    where = f"arm {key}, fold {fold}"
    real_training, real_test = split(real, fold)
    training, test = split(own, fold)
    held_out = cases_read([*real_test, *external])
    segmenter = check_disjoint(where, "segmenter", cases_read(training), held_out)
    outside = set(patients(list(external)))
    for stage, names in fitted.items():
        shared = sorted(outside & set(names))
        if shared:
            raise InputError(f"leak in {where}: stage {stage} was fitted on external patients {', '.join(shared)}")
    wanted = {"test": real_test, "training": [] if arm_of(key)[0].alone else [*real_training, *more]}
    for name, found in (("test", test), ("training", training)):
        files = {(case.image, case.label) for case in found if not case.synthetic}
        differing = sorted(files ^ {(case.image, case.label) for case in wanted[name]})
        if differing or (name == "test" and any(case.synthetic for case in found)):
            first = differing[0][0] if differing else "a synthetic case"
            raise InputError(f"{where}: its real {name} cases differ from the datalist's ({first})")
    return {"segmenter": segmenter} | fitted
