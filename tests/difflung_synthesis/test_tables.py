"""Tables of conditions in every dialect that spreadsheets write; a tissue's density may have a decimal comma."""

import pytest
from scripts.attributes import Attributes
from scripts.cases import read_conditions
from scripts.tables import read_rows

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2}
ENCODER = Attributes({"age": [0, 120], "history": ["none", "smoker"]})


@pytest.mark.parametrize(
    "text",
    [
        "case,age,history,density_ground_glass\na,61.5,smoker,-640.5\n",
        "case;age;history;density_ground_glass\na;61,5;smoker;-640,5\n",
        "Case\tAGE\tHistory\tDensity_Ground_Glass\r\n\r\na\t61,5\tsmoker\t-640,5\r\n",
        "\ufeffsep=;\ncase;age;history;density_ground_glass;\n;;;;\na;61,5;smoker;-640,5;\n",
        "\n;;;\r\ncase;age;history;density_ground_glass\na;61,5;smoker;-640,5\n",
    ],
)
def test_conditions_are_read_in_every_dialect(tmp_path, text):
    path = tmp_path / "conditions.csv"
    path.write_text(text, encoding="utf-8", newline="")
    found = read_conditions(path, ["a", "b"], ENCODER, LABELS)
    assert found == {"a": {"age": "61.5", "history": "smoker", "density_ground_glass": "-640.5"}, "b": {}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"case,age\na,61,5\n", "line 2 has 3 values for 2 columns; quote values that hold the separator"),
        (b"case,age,Age\na,6,5\n", "has two columns age; remove one"),
        (b"case,history\na,fum\xe9\n", r"is not UTF-8; save as UTF-8 \(in Excel: CSV UTF-8\)"),
        (b"case,age\na,60\na,61\n", "lines 2 and 3 both name case a; remove one"),
        ("case,age\na,60\n".encode("utf-16"), r"is not UTF-8; save as UTF-8 \(in Excel: CSV UTF-8\)"),
        ("case,age\na,60\n".encode("utf-16-le"), r"is not UTF-8, perhaps UTF-16; save as UTF-8"),
        (b'case,age\na,"' + b"6" * 200_000, "line 2 cannot be read: field larger than field limit"),
        (b"case,aeg\na,60\n", "has columns .*; expected case and any of seed, age"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, told):
    path = tmp_path / "conditions.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_conditions(path, ["a"], ENCODER, LABELS)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(ValueError, match="none.csv cannot be read: No such file"):
        read_rows(tmp_path / "none.csv")
