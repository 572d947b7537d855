"""The command line: exit codes, help, and wrong calls that must run nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tools.__main__ as cli
from tools.data import dataset as dataset_module
from tools.io.files import InputError

ROOT = Path(__file__).resolve().parents[2]
CALL = ["dataset", "--images", "a", "--labels", "b", "--output", "c"]


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Replace the dataset command by one of the same flags that records what it is called with."""
    recorded = []

    def dataset(
        images: Path,
        labels: Path,
        output: Path,
        label_map: Path | dict | None = None,
        patients: Path | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        """Record."""
        recorded.append({key: value for key, value in locals().items() if key != "recorded"})

    monkeypatch.setattr(dataset_module, "dataset", dataset)
    return recorded


@pytest.fixture
def toy(monkeypatch) -> dict:
    """Replace the dataset command by one with other kinds of flags."""
    recorded = {}

    def dataset(name: str, rate: float = 0.5, quick: bool = False, seeds: list[int] | None = None) -> None:
        """Record."""
        recorded.update(name=name, rate=rate, quick=quick, seeds=seeds)

    monkeypatch.setattr(dataset_module, "dataset", dataset)
    return recorded


def test_stand_in_has_the_flags_of_the_command(monkeypatch, request):
    real = cli._flags(dataset_module.dataset)
    request.getfixturevalue("calls")
    assert cli._flags(dataset_module.dataset) == real


def test_help_lists_every_command_with_its_summary(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(cli.COMMANDS)
    assert any(line.endswith("write a datalist and a data card.") for line in lines)
    assert all(len(line.split()) > 3 for line in lines[2:])


def test_call_without_command_prints_help_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"dataset": "data.dataset"})
    assert cli.main([]) == 2
    assert "usage: python -m tools <command>" in capsys.readouterr().out


def test_help_does_not_import_the_commands():
    code = "import sys, tools.__main__ as cli; cli.COMMANDS.pop('demo'); print(cli.usage(), *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "tools.__main__" in imported and not {"torch", "monai", "tools.data.dataset"} & imported


@pytest.mark.parametrize("words", [["dataset", "--help"], [*CALL, "-h"]])
def test_help_of_a_command_shows_its_flags_and_runs_nothing(words, calls, capsys, monkeypatch):
    assert cli.main(words) == 0
    assert calls == []
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(
        "usage: python -m tools dataset --images IMAGES --labels LABELS --output OUTPUT [--label_map"
    )
    assert first.endswith("[--folds 5] [--seed 0]")


def test_help_of_a_command_explains_each_flag(capsys):
    cli.main(["dataset", "--help"])
    text = capsys.readouterr().out
    assert all(f"{flag}: " in text for flag in cli._flags(dataset_module.dataset))


def test_values_reach_the_command(calls):
    assert cli.main([*CALL, "--folds", "3", "--seed=7", "--label-map", "{1: ground_glass, 3: consolidation}"]) == 0
    assert calls == [
        {
            "images": "a",
            "labels": "b",
            "output": "c",
            "label_map": {1: "ground_glass", 3: "consolidation"},
            "patients": None,
            "folds": 3,
            "seed": 7,
        }
    ]


def test_paths_that_look_like_numbers_or_lists_stay_text(calls):
    words = ["--images", "12", "--labels=1e3", "--output", "[1]", "--patients", "a,b", "--label_map", "007"]
    assert cli.main(["dataset", *words]) == 0
    called = [calls[0][key] for key in ("images", "labels", "output", "patients", "label_map")]
    assert called == ["12", "1e3", "[1]", "a,b", "007"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["datset"], "tools has no command datset; did you mean dataset?"),
        (["zzz"], "tools has no command zzz; there are demo, phantom, "),
        ([*CALL, "--ouput", "d"], "dataset has no flag --ouput; did you mean --output?"),
        ([*CALL, "--fold=3"], "dataset has no flag --fold; did you mean --folds?"),
        ([*CALL, "--zzz"], "dataset has no flag --zzz; it has --images, --labels, --output"),
        ([*CALL, "-s", "3"], "dataset has no flag -s; flags begin with two dashes"),
        ([*CALL, "-", "upper"], "dataset has no flag -; flags begin with two dashes"),
        ([*CALL, "--", "--interactive"], "dataset has no flag --; it has --images"),
        ([*CALL, "extra"], "dataset cannot place 'extra'; each value follows its flag, as in --images VALUE"),
        (["dataset", "a", "b", "c"], "dataset cannot place 'a'"),
        ([*CALL, "--output", "d"], "dataset got --output twice"),
        ([*CALL, "--patients"], "dataset got no value for --patients"),
        ([*CALL, "--patients="], "dataset got no value for --patients"),
        (["dataset", "--images", "--labels", "b", "--output", "c"], "dataset got no value for --images"),
        (["masks", "--check", "m"], "masks is now maps, and masks --check is check_maps --maps FOLDER"),
        (["bench", "synthesis"], "bench is now bench_synthesis, bench_segmentation, or bench_accuracy"),
        (["augment", "--replay", "m", "case"], "augment --replay is now replay --manifest MANIFEST --case CASE"),
        ([*CALL, "--format", "nnunet"], "dataset --format is now export_nnunet --datalist DATALIST after dataset"),
        (["dataset", "--datalist", "d"], "dataset --datalist is now export_nnunet --datalist DATALIST"),
        (["augment", "--output", "o"], "augment needs --datalist, --fold; python -m tools augment --help explains"),
        (["maps", "--fold", "0"], "maps needs --datalist, --output; python -m tools maps --help explains"),
        (["quantify", "--images", "a"], "quantify needs --tissues, --output; python -m tools quantify --help explains"),
        ([*CALL, "--folds", "many"], "dataset --folds needs a whole number, not 'many'"),
        ([*CALL, "--folds", "2.5"], "dataset --folds needs a whole number, not '2.5'"),
    ],
)
def test_wrong_call_is_refused_with_advice_and_runs_nothing(words, told, calls, capsys):
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--name", "a", "--rate", "fast"], "dataset --rate needs a number, not 'fast'"),
        (["--name", "a", "--quick", "yes"], "dataset --quick is True or False, not 'yes'"),
        (["--name", "a", "--quick=yes"], "dataset --quick is True or False, not 'yes'"),
    ],
)
def test_wrong_kind_of_value_is_refused(words, told, toy, capsys):
    assert cli.main(["dataset", *words]) == 2
    assert told in capsys.readouterr().err
    assert toy == {}


def test_texts_numbers_switches_and_lists_keep_their_kind(toy):
    assert cli.main(["dataset", "--name", "1,2", "--rate", "-1e-3", "--quick", "--seeds", "[0,1]"]) == 0
    assert toy == {"name": "1,2", "rate": -1e-3, "quick": True, "seeds": [0, 1]}
    assert cli.main(["dataset", "--quick", "False", "--name", "-5"]) == 0
    assert toy == {"name": "-5", "rate": 0.5, "quick": False, "seeds": None}


@pytest.fixture
def free(monkeypatch) -> list:
    """Replace dataset by a command that takes values without a flag, and maps by one that takes one."""
    recorded = []

    def dataset(*ct: Path, output: Path, quick: bool = False, share: float = 0.5) -> None:
        """Record."""
        recorded.append((ct, output, quick, share))

    def maps(ct: Path, /, *, output: Path, density: float | None = None) -> None:
        """Record."""
        recorded.append((ct, output, density))

    monkeypatch.setattr(dataset_module, "dataset", dataset)
    monkeypatch.setattr("tools.maps.maps.maps", maps)
    return recorded


def test_values_without_a_flag_stay_text_wherever_they_stand(free):
    assert cli.main(["dataset", "12", "[1]", "--output", "3", "--share", "1", "a,b"]) == 0
    assert cli.main(["dataset", "--output", "out", "--quick", "007"]) == 0
    assert cli.main(["dataset", "--output", "out", "--quick", "False", "x y"]) == 0
    assert free == [(("12", "[1]", "a,b"), "3", False, 1), (("007",), "out", True, 0.5), (("x y",), "out", False, 0.5)]
    assert cli.main(["maps", "1e3", "--output", "o", "--density", "-600"]) == 0
    assert free[-1] == ("1e3", "o", -600)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset", "--output", "o"], "dataset needs CT; python -m tools dataset --help explains"),
        (["dataset", "a"], "dataset needs --output;"),
        (["dataset", "--ct", "a", "--output", "o"], "dataset has no flag --ct; it has --output, --quick, --share"),
        (
            ["maps", "a", "b", "--output", "o"],
            "maps cannot place 'b'; each value follows its flag, as in --output VALU",
        ),
        (["maps", "a", "-", "--output", "o"], "maps has no flag -; flags begin with two dashes"),
        (["maps", "", "--output", "o"], "maps has no flag ; flags begin with two dashes"),
    ],
)
def test_missing_and_surplus_values_without_a_flag_are_refused(words, told, free, capsys):
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err
    assert free == []


def test_help_shows_values_without_a_flag(free, capsys):
    cli.main(["dataset", "--help"])
    cli.main(["maps", "--help"])
    text = capsys.readouterr().out
    assert "usage: python -m tools dataset CT ... --output OUTPUT [--quick] [--share 0.5]" in text
    assert "usage: python -m tools maps CT --output OUTPUT [--density DENSITY]" in text


def test_wrong_input_and_interruption_end_with_1_and_a_sentence(monkeypatch, capsys):
    def fail(error: BaseException):
        def dataset() -> None:
            raise error

        monkeypatch.setattr(dataset_module, "dataset", dataset)
        return cli.main(["dataset"])

    assert fail(InputError("case.nii is wrong")) == 1
    assert capsys.readouterr().err == "dataset: case.nii is wrong\n"
    assert fail(KeyboardInterrupt()) == 1
    assert capsys.readouterr().err.startswith("dataset: interrupted")
    assert fail(OSError(errno.ENOSPC, "No space left on device", "out/a.nii.gz")) == 1
    assert capsys.readouterr().err.startswith("dataset: out/a.nii.gz: No space left on device; make room")
    assert fail(OSError(errno.EROFS, "Read-only file system")) == 1
    assert capsys.readouterr().err.startswith("dataset: a result cannot be written: Read-only file system; make room")
    with pytest.raises(OSError, match="Bad file descriptor"):  # a fault of the program is not hidden
        fail(OSError(errno.EBADF, "Bad file descriptor"))


def test_an_interruption_while_modules_load_ends_with_a_sentence(monkeypatch, capsys):
    def command_function(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "command_function", command_function)
    assert cli.main(["dataset"]) == 1
    assert capsys.readouterr().err.startswith("dataset: interrupted")


def test_program_ends_with_the_exit_codes_and_without_traceback(tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "tools", *words], cwd=ROOT, capture_output=True, text=True)

    output = tmp_path / "12"
    failed = run("dataset", "--images", str(tmp_path), "--labels", str(tmp_path), "--output", str(output))
    assert failed.returncode == 1 and not output.exists()
    assert f"dataset: 2 problems\n  {tmp_path} holds no .nii or .nii.gz file" in failed.stderr
    wrong = run("dataset", "--imges", "a")
    assert (wrong.returncode, wrong.stderr) == (2, "dataset has no flag --imges; did you mean --images?\n")


def test_names_with_umlauts_are_read_in_any_locale(tmp_path):
    """Python reads names of files as ASCII in the locale C where its UTF-8 mode is off."""
    (tmp_path / "J\u00fcrgen").mkdir()
    words = [sys.executable, "-m", "tools", "maps", "--datalist", "J\u00fcrgen", "--fold", "0", "--output", "out"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, env=environment)
    assert done.returncode == 1 and done.stderr.decode("utf-8").startswith("maps: J\u00fcrgen cannot be read: ")


def test_failed_run_is_a_message_without_a_traceback(monkeypatch, capsys, tmp_path):
    import tools.data.dataset
    from tools.__main__ import main
    from tools.io.files import RunError

    def dataset(images: Path) -> None:
        """Stand-in that fails."""
        raise RunError("run 3 died; its log is run.log")

    monkeypatch.setattr(tools.data.dataset, "dataset", dataset)
    assert main(["dataset", "--images", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "dataset: run 3 died; its log is run.log\n"
