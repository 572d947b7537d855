"""New tissue maps for one fold, drawn from the training patients' lesions."""

from pathlib import Path

from tools.data.datalist import read_fold
from tools.flags import check_numbers
from tools.io.files import InputError, new_directory
from tools.maps.bank import draw_bank
from tools.maps.statistics import markdown
from tools.maps.statistics import save as save_table


def maps(
    datalist: Path,
    fold: int,
    output: Path,
    balance: float = 1.0,
    seed: int = 0,
    max_cases: int | None = None,
    procedural: float = 0.25,
) -> None:
    """Draw a bank of new tissue maps for one fold.

    The maps follow the lesions of the fold's training patients in size, shape and place: some lesions are moved and
    deformed, some drawn anew by a model of their statistics. A table says how near the bank comes to the data, beside
    the distance of one half of the training patients to the other. Paint the maps with `augment --maps`.

    Args:
        datalist: The datalist.json that `dataset` writes.
        fold: The fold that is held out.
        output: New folder for maps/, maps.json, statistics.csv, statistics.md and statistics.png.
        balance: Volume that each pathological tissue shall reach, as a share of the most frequent one's.
        seed: Seed for all random draws.
        max_cases: Largest number of maps; the number of training cases if not given.
        procedural: Share of the lesions that the model draws; the others are moved.

    Raises:
        InputError: if the input is unusable, or the output holds something.
    """
    if not 0 < balance <= 1:
        raise InputError(f"balance must be above 0 and at most 1, not {balance}")
    check_numbers({"max_cases": 1 if max_cases is None else max_cases})
    training, _ = read_fold(datalist, fold)
    with new_directory(Path(output)) as folder:
        bank = draw_bank(training, folder / "maps", balance, seed, max_cases or len(training), procedural)
        if bank.plan:
            print(markdown(save_table(bank.real, bank.new, folder)))
    next_step = f"python -m tools augment --datalist {datalist} --fold {fold} --maps {output} --output AUGMENTED"
    wrote = f"wrote {len(bank.plan)} maps to {output}; next: {next_step}"
    print(wrote if bank.plan else "the tissues are balanced already")
