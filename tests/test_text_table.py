from vidgen.text_table import table

ROWS = [["name", "ms"], ["a", "1.5"], ["longer", "12"]]


def test_numbers_line_up_to_the_right() -> None:
    assert table(ROWS) == ["name     ms", "a       1.5", "longer   12"]


def test_words_line_up_to_the_left() -> None:
    assert table(ROWS, numbers=False) == ["name    ms", "a       1.5", "longer  12"]
